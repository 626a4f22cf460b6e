"""Check of the versions of the hosts on import."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

import mm_ummae
from mm_ummae.compatibility import HOSTS, check_versions, installed_version

ROOT = Path(__file__).parents[2]
# The lowest supported versions, under the original names
LOWEST = {
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


def test_the_installed_versions_are_supported() -> None:
    check_versions()
    assert mm_ummae.__version__ == metadata.version('ummae')


@pytest.mark.parametrize(
    'versions',
    [
        LOWEST,
        {**LOWEST, 'torch': '2.11.0+cu128', 'mmcv': '2.2.0.post1'},
        {name: LOWEST[name] for name in ('torch', 'mmengine', 'mmcv', 'mmpretrain')},
    ],
    ids=['lowest', 'local and post versions', 'without MMDetection and MMSegmentation'],
)
def test_supported_versions_pass(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, versions)
    check_versions()


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_the_pinned_versions_pass(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / 'requirements' / f'{stack}.txt').read_text().splitlines()
    install(monkeypatch, dict(line.split('==') for line in lines if '==' in line))
    check_versions()
    for package, (distributions, *_) in HOSTS.items():
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
        ('torch', None, r'torch is not installed, mm_ummae needs torch >=2\.1,<3'),
        ('mmengine', None, r'mmengine is not installed, mm_ummae needs mmengine or onedl-mmengine >=0\.10\.5,<1'),
        ('mmcv', None, r'mmcv is not installed, mm_ummae needs mmcv or mmcv-lite or onedl-mmcv >=2\.1\.0,<3'),
        ('mmpretrain', None, r'mmpretrain is not .* mmpretrain or onedl-mmpretrain >=1\.2\.0,<2'),
    ],
)
def test_wrong_and_missing_versions_are_named(
    name: str, version: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed host is checked even if it is optional: its configs would fail later."""
    versions = {**LOWEST, name: version}
    install(monkeypatch, {key: value for key, value in versions.items() if value is not None})
    with pytest.raises(RuntimeError, match=rf'^{message}\. requirements/ lists versions that work together$'):
        check_versions()


@pytest.mark.parametrize(
    ('versions', 'message'),
    [
        (
            {'onedl-mmengine': '0.10.12', 'torch': '2.1.2+cu121'},
            r'mmengine 0\.10\.12 does not .* torch 2\.1\.2.*GradScaler',
        ),
        (
            {'onedl-mmengine': '0.10.9', 'torch': '2.2.2'},
            r'mmengine 0\.10\.9 does not work with torch 2\.2\.2: mmengine im',
        ),
        ({'onedl-mmengine': '0.10.9', 'torch': '2.3.0'}, None),
        ({'onedl-mmengine': '0.10.8', 'torch': '2.1.0'}, None),
        ({'mmengine': '0.10.7', 'torch': '2.11.0', 'transformers': '4.57.0'}, None),  # its loaders are replaced
        ({'mmengine': '0.10.5', 'torch': '2.5.0+cpu'}, None),
        ({'mmengine': '0.10.5', 'torch': '2.4.1', 'transformers': '4.40.0'}, None),
        (
            {'mmengine': '0.10.5', 'torch': '2.5.0', 'transformers': '4.40.0'},
            r'mmengine 0\.10\.5 does not work with torch 2\.5\.0 beside transformers: .*Adafactor twice\. req',
        ),
    ],
)
def test_pairs_that_do_not_work(versions: dict[str, str], message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried: mmengine 0.10.5 to 0.10.7 and onedl-mmengine 0.10.8 to 0.10.12, each with PyTorch 2.1.2 and 2.11."""
    others = {name: version for name, version in LOWEST.items() if name not in ('mmengine', 'torch')}
    install(monkeypatch, {**others, **versions})
    if message is None:
        check_versions()
    else:
        with pytest.raises(RuntimeError, match=message):
            check_versions()


def test_all_problems_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {'torch': '1.0', 'mmengine': '0.10.5', 'mmdet': '2.0'})
    with pytest.raises(RuntimeError, match=r'torch 1\.0 .*mmcv is not .*mmpretrain is not .*mmdet 2\.0 '):
        check_versions()
