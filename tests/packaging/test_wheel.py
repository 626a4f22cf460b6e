"""The wheel: its content, and its use in an environment of its own, away from the checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from mm_ummae.version import __version__
from tests.runs import ITERATIONS, PRETRAIN, logged, pretrain_options

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
OWN = f"_base_ = __import__('mm_ummae').config_path('{PRETRAIN.name}')"
CODE = """
import runpy, sys
import mm_ummae
from mm_ummae.resources import FOLDER
from mmengine.config import Config
for path in sorted((FOLDER / 'tools').glob('*.py')):
    sys.argv = [str(path), '--help']
    try:
        runpy.run_path(str(path), run_name='__main__')
    except SystemExit as done:
        assert not done.code, path
print(mm_ummae.__version__, mm_ummae.__file__, Config.fromfile('own.py').model.type, len(mm_ummae.list_models()))
"""


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Output of a command that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> set[str]:
    """Files below a folder without compiled Python."""
    paths = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths if '__pycache__' not in path.parts}


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree without ignored files, where building may write; with remains of an old build."""
    copy = tmp_path_factory.mktemp('tree')
    names = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=ROOT).split('\0')
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    (copy / 'build' / 'lib' / 'mm_ummae').mkdir(parents=True)
    (copy / 'build' / 'lib' / 'mm_ummae' / 'moved.py').touch()
    return copy


@pytest.fixture(scope='module')
def wheel(tree: Path) -> Path:
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-build-isolation', '--no-deps', '-w', 'dist', '.', cwd=tree)
    (path,) = (tree / 'dist').glob('*.whl')
    return path


@pytest.fixture(scope='module')
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel and, by links, everything installed here but this package."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder / 'env', symlinks=True)
    python = folder / 'env' / 'bin' / 'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', wheel, cwd=folder)
    (folder / 'hosts').mkdir()
    for site in (Path(path) for path in sys.path if path.endswith(('site-packages', 'dist-packages'))):
        for path in site.iterdir():
            link = folder / 'hosts' / path.name
            ours = re.match(r'ummae-|mm_ummae|__editable__|__pycache__', path.name) or path.suffix == '.pth'
            if not ours and not link.exists():
                link.symlink_to(path)
    (site,) = (folder / 'env' / 'lib').glob('python*/site-packages')
    (site / 'hosts.pth').write_text(f'{folder / "hosts"}\n')
    return python


@pytest.fixture
def installed(python: Path, tmp_path: Path) -> Callable[..., str]:
    """Output of the new environment's Python, in an empty folder: ``installed('-m', 'mim', ...)``."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'VIRTUAL_ENV'))}
    return lambda *arguments: run(python, *arguments, cwd=tmp_path, env=env)


# Building


def test_the_wheel_contains_code_configs_and_tools(wheel: Path, tree: Path) -> None:
    """Every module, and all that mim looks for: the files of the tree, no more and no fewer."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
    mim = {f'mm_ummae/.mim/{part}/{name}' for part in ('configs', 'tools', 'weights') for name in files(tree / part)}
    code = {f'mm_ummae/{name}' for name in files(tree / 'mm_ummae')}
    assert names == mim | code | {'mm_ummae/.mim/model-index.yml'}
    assert {'mm_ummae/models/__init__.py', 'mm_ummae/.mim/tools/train.py'} <= names


def test_building_leaves_only_ignored_files(wheel: Path, tree: Path) -> None:
    ignored = (tree / '.gitignore').read_text().split()
    assert {'build/', 'dist/', '*.egg-info/'} <= set(ignored) and not (tree / 'mm_ummae' / '.mim').exists()
    made = {name for name in files(tree) if not (ROOT / name).exists()}
    assert {name.partition('/')[0] for name in made} <= {'build', 'dist', 'ummae.egg-info'}


def test_metadata(wheel: Path) -> None:
    """No host is required: two distributions provide each, and pip would add one beside the other."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        content: Message = email.message_from_bytes(archive.read(name))
    assert (content['Name'], content['Version'], content['Requires-Python']) == ('ummae', __version__, '>=3.10')
    required = [line for line in content.get_all('Requires-Dist') if 'extra ==' not in line]
    assert sorted(required) == ['matplotlib', 'numpy', 'packaging', 'pillow', 'safetensors', 'scipy', 'tifffile']
    assert {'demo', 'deploy', 'dev'} <= set(content.get_all('Provides-Extra'))


def test_a_source_distribution_contains_what_the_wheel_needs(wheel: Path, tree: Path, tmp_path: Path) -> None:
    code = f'from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})'
    run(sys.executable, '-c', code, cwd=tree)
    shutil.unpack_archive(next(tmp_path.glob('*.tar.gz')), tmp_path)
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for part in ('mm_ummae', 'configs', 'tools', 'weights', 'requirements'):
        assert files(source / part) == files(tree / part), part
    assert {'setup.py', 'model-index.yml', 'README.md', 'LICENSE', 'NOTICE'} <= files(source)


def test_an_editable_install_links_configs_and_tools(wheel: Path, tree: Path, tmp_path: Path) -> None:
    """Edits of the checkout take effect in mim."""
    copy = shutil.copytree(tree, tmp_path / 'tree', ignore=shutil.ignore_patterns('build', 'dist', '*.egg-info'))
    code = f'from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})'
    run(sys.executable, '-c', code, cwd=copy)
    for name in ('configs', 'tools', 'weights', 'model-index.yml'):
        link = copy / 'mm_ummae' / '.mim' / name
        assert link.is_symlink() and link.resolve() == copy / name


# Use


def test_import_inheritance_and_tools(installed: Callable[..., str], python: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / 'own.py').write_text(OWN)
    output = installed('-c', CODE)
    version, file, model, count = output.splitlines()[-1].split()
    assert (version, model) == (__version__, 'mm_ummae.UMMAE') and int(count) > 20
    assert Path(file).is_relative_to(python.parents[1]), 'imported from elsewhere'
    for path in (tree / 'tools').glob('*.py'):
        assert f'usage: {path.name}' in output


@pytest.mark.parametrize(
    ('command', 'expected'),
    [
        ('list', rf'ummae +{re.escape(__version__)}'),
        ('search ummae --valid-config', r'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px'),
        ('run ummae visualize -- --help', r'usage: visualize\.py .*config checkpoint images'),
    ],
)
def test_mim(command: str, expected: str, installed: Callable[..., str]) -> None:
    """By the name of the distribution, from any folder."""
    assert re.search(expected, installed('-m', 'mim', *command.split()), re.DOTALL)


def test_mim_trains_by_the_name_of_a_config(
    installed: Callable[..., str], python: Path, demo_data: Path, tmp_path: Path
) -> None:
    options = ('--work-dir', 'run', '--cfg-options', *pretrain_options(demo_data, 1))
    output = installed('-m', 'mim', 'train', 'ummae', PRETRAIN.name, *options)
    (used,) = re.findall(r'will use (\S+) instead', output)
    assert Path(used).is_relative_to(python.parents[1])
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    (folder,) = (path for path in (tmp_path / 'run').iterdir() if path.is_dir())
    assert len(logged(folder)) == ITERATIONS
