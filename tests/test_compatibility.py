"""The check of the hosts' versions, and that reading our own version needs none of them."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mm_ummae
from mm_ummae.compatibility import HOSTS, check_versions, installed_version

ROOT = Path(__file__).parents[1]
# A set of versions within all ranges, under the original names
SUPPORTED = {
    'torch': '2.1.0',
    'mmengine': '0.10.5',
    'mmcv': '2.1.0',
    'mmpretrain': '1.2.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
}


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Let exactly these distributions be installed."""

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, 'version', version)


def test_what_is_installed_here_is_supported() -> None:
    check_versions()
    assert mm_ummae.__version__ == metadata.version('mm_ummae')


def test_lowest_versions_of_the_original_distributions_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, SUPPORTED)
    check_versions()
    for package, (distributions, lowest, _, _) in HOSTS.items():
        assert installed_version(distributions).startswith(lowest), package


def test_local_and_post_versions_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {**SUPPORTED, 'torch': '2.11.0+cu128', 'mmcv': '2.2.0.post1'})
    check_versions()


def test_the_maintained_distributions_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that requirements/onedl.txt pins."""
    lines = (ROOT / 'requirements' / 'onedl.txt').read_text().splitlines()
    pins = dict(line.split('==') for line in lines if '==' in line)
    assert {'torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain'} <= pins.keys()
    install(monkeypatch, pins)
    check_versions()
    for package, (distributions, _, _, _) in HOSTS.items():
        assert installed_version(distributions) is not None, f'no pin for {package}'


@pytest.mark.parametrize(
    ('name', 'version', 'message'),
    [
        ('torch', '1.13.1', r'torch 1\.13\.1 is installed, mm_ummae supports >=2\.1,<3'),
        ('torch', '3.0.0', r'torch 3\.0\.0 is installed, mm_ummae supports >=2\.1,<3'),
        ('mmengine', '0.10.4', r'mmengine 0\.10\.4 is installed, mm_ummae supports >=0\.10\.5,<1'),
        ('mmcv', '2.0.1', r'mmcv 2\.0\.1 is installed, mm_ummae supports >=2\.1\.0,<3'),
        ('mmpretrain', '0.25.0', r'mmpretrain 0\.25\.0 is installed, mm_ummae supports >=1\.2\.0,<2'),
        ('mmdet', '2.28.2', r'mmdet 2\.28\.2 is installed, mm_ummae supports >=3\.3\.0,<4'),
        ('mmsegmentation', '0.30.0', r'mmseg 0\.30\.0 is installed, mm_ummae supports >=1\.2\.2,<2'),
    ],
)
def test_versions_out_of_range_are_named(
    name: str, version: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optional host that is installed is checked too: its configs would fail later."""
    install(monkeypatch, {**SUPPORTED, name: version})
    with pytest.raises(RuntimeError, match=message) as error:
        check_versions()
    assert str(error.value).count('is installed') == 1
    assert 'requirements/' in str(error.value)


@pytest.mark.parametrize('name', ['torch', 'mmengine', 'mmcv', 'mmpretrain'])
def test_missing_host_is_named_with_what_provides_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {key: value for key, value in SUPPORTED.items() if key != name})
    distributions, lowest, limit, _ = HOSTS[name]
    with pytest.raises(RuntimeError) as error:
        check_versions()
    message = f'{name} is not installed, mm_ummae needs {" or ".join(distributions)} >={lowest},<{limit}'
    assert message in str(error.value)


def test_dense_hosts_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {name: SUPPORTED[name] for name in ('torch', 'mmengine', 'mmcv', 'mmpretrain')})
    check_versions()


def test_all_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {'torch': '1.0', 'mmengine': '0.10.5', 'mmdet': '2.0'})
    with pytest.raises(RuntimeError, match=r'torch 1\.0 .*mmcv is not .*mmpretrain is not .*mmdet 2\.0 '):
        check_versions()


def test_version_is_read_without_any_host() -> None:
    """As setup.py reads it, in an environment that has nothing but Python (-S: no site-packages)."""
    code = (
        'import sys\n'
        'version = {}\n'
        f'exec(open({str(ROOT / "mm_ummae" / "version.py")!r}).read(), version)\n'
        'print(version["__version__"], "torch" in sys.modules, "mmengine" in sys.modules)\n'
    )
    done = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [mm_ummae.__version__, 'False', 'False']
