"""The environment script, with stubs in place of Python and the compiler, and the package that is built."""

from __future__ import annotations

import email
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from mmengine.config import Config

from mm_ummae.compatibility import HOSTS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'scripts' / 'setup_env.sh'
PINS = ROOT / 'requirements' / 'onedl.txt'
ORIGINAL_PINS = ROOT / 'requirements' / 'openmmlab.txt'
# Target of the Makefile -> the environment and the pins that it stands for
STACKS = {'test': ('.venv', PINS), 'test-openmmlab': ('.venv-openmmlab', ORIGINAL_PINS)}
COMMANDS = (
    *('cat', 'cut', 'dirname', 'env', 'grep', 'ls', 'mkdir', 'mktemp', 'mv', 'nproc', 'realpath', 'rm'),
    *('sha256sum', 'sh', 'sleep', 'tail', 'touch', 'uname', 'xargs'),
)
COMPILERS = ('gcc', 'g++', 'make')

# Answers what the script asks of Python, notes each call of pip, and compiles nothing.
PYTHON_STUB = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
    *sys.version_info*) echo "${STUB_VERSION:-3.11}" ;;
    *sysconfig*) echo "$STUB_INCLUDE" ;;
    *torch.__version__*) echo 2.11.0+stub ;;
    *"-m venv"*) mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"; cat "$0" >"$3/bin/pip"
        chmod +x "$3/bin/python" "$3/bin/pip" ;;
    *"-m pip wheel"*) echo "$*" >>"$STUB_CALLS"; echo compiling 1>&2
        [ -z "$STUB_FAIL" ] || { echo "ops.cpp:7: error: no such thing"; exit 1; }
        while [ "$1" != --wheel-dir ]; do shift; done; echo wheel >"$2/mmcv.whl" ;;
    *"-m pip install"*) echo "$*" >>"$STUB_CALLS" ;;
esac
"""


class Sandbox:
    """A folder with its own PATH, Python and wheel cache, in which the script runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / 'bin'
        self.bin.mkdir()
        for name in (*COMMANDS, 'chmod'):
            (self.bin / name).symlink_to(shutil.which(name))
        for name in COMPILERS:
            self.write(self.bin / name, '#!/bin/sh\n')
        self.write(folder / 'include' / 'Python.h', '')
        self.python = self.write(folder / 'python', PYTHON_STUB)
        self.venv, self.calls = folder / 'venv', folder / 'calls.txt'

    @staticmethod
    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess:
        settings = dict(
            PATH=str(self.bin),
            HOME=str(self.folder),
            PYTHON=str(self.python),
            MM_UMMAE_CACHE=str(self.folder / 'cache'),
            STUB_INCLUDE=str(self.folder / 'include'),
            STUB_CALLS=str(self.calls),
        )
        settings.update(env)
        command = [shutil.which('bash'), str(SCRIPT), *map(str, arguments or (self.venv,))]
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)

    def refused(self, *arguments: object, **env: str) -> str:
        """The one line of a call that fails before anything is made."""
        done = self.run(*arguments, **env)
        assert done.returncode == 1, done.stdout + done.stderr
        assert not done.stdout and not self.venv.exists() and not self.calls.exists()
        (line,) = done.stderr.splitlines()
        assert line.startswith('setup: ')
        return line


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


# What the script refuses


def test_wrong_python(sandbox: Sandbox) -> None:
    line = sandbox.refused(STUB_VERSION='3.9')
    assert f'Python 3.11 is needed, but {sandbox.python} is 3.9' in line and 'PYTHON=' in line


def test_wrong_python_on_the_path(sandbox: Sandbox) -> None:
    """python3 is taken where there is no python3.11."""
    sandbox.write(sandbox.bin / 'python3', PYTHON_STUB)
    assert f'{sandbox.bin / "python3"} is 3.12' in sandbox.refused(PYTHON='', STUB_VERSION='3.12')


def test_no_python(sandbox: Sandbox) -> None:
    assert 'there is no python3 on PATH' in sandbox.refused(PYTHON='')


def test_python_that_does_not_run(sandbox: Sandbox) -> None:
    broken = sandbox.write(sandbox.folder / 'broken', '#!/bin/sh\nexit 3\n')
    assert f'cannot run {broken}' in sandbox.refused(PYTHON=str(broken))


@pytest.mark.parametrize('tool', COMPILERS)
def test_missing_compiler(sandbox: Sandbox, tool: str) -> None:
    (sandbox.bin / tool).unlink()
    line = sandbox.refused()
    assert f"{tool} is needed to compile MMCV's ops" in line and 'apt-get install build-essential' in line


def test_missing_headers(sandbox: Sandbox) -> None:
    line = sandbox.refused(STUB_INCLUDE='/nowhere')
    assert '/nowhere/Python.h is missing' in line and 'python3.11-dev' in line


def test_missing_pins(sandbox: Sandbox) -> None:
    missing = sandbox.folder / 'nowhere.txt'
    assert f'no such requirement file: {missing}' in sandbox.refused(sandbox.venv, missing)


# What it does


def expected_stamp(venv: Path, cuda: str = '0', pins: bytes | None = None) -> Path:
    """Of pins, setup.py, our version and the place, as the script names it."""
    files = (ROOT / 'setup.py').read_bytes() + (ROOT / 'mm_ummae' / 'version.py').read_bytes()
    content = (pins or PINS.read_bytes()) + files + f'{ROOT} {cuda}\n'.encode()
    return venv / f'.mm_ummae-{hashlib.sha256(content).hexdigest()[:16]}'


def test_a_finished_environment_is_left_alone_until_the_pins_change(sandbox: Sandbox) -> None:
    sandbox.venv.mkdir()
    expected_stamp(sandbox.venv).touch()
    done = sandbox.run(PYTHON='/nowhere')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    other = sandbox.write(sandbox.folder / 'pins.txt', PINS.read_text() + '# changed\n')
    for arguments, env in (((sandbox.venv, other), {}), ((sandbox.venv,), dict(FORCE_CUDA='1'))):
        done = sandbox.run(*arguments, STUB_VERSION='3.9', **env)
        assert done.returncode == 1 and 'Python 3.11 is needed' in done.stderr


@pytest.mark.parametrize('pins', [PINS, ORIGINAL_PINS], ids=lambda path: path.stem)
def test_a_whole_setup_and_a_second_one_from_the_kept_wheel(sandbox: Sandbox, pins: Path) -> None:
    """torch before MMCV, which is compiled against it and once only; our own package comes last."""
    done = sandbox.run(sandbox.venv, pins)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = sandbox.calls.read_text().splitlines()
    pinned = versions(pins)
    (mmcv,) = (f'{name}=={pinned[name]}' for name in HOSTS['mmcv'][0] if name in pinned)
    order = (f'torch=={pinned["torch"]}', f' {mmcv}', '/mmcv.whl', f'-r {pins}', f'-e {ROOT}')
    positions = [next(i for i, call in enumerate(calls) if part in call) for part in order]
    assert positions == sorted(positions), calls
    assert 'pip wheel --no-build-isolation' in calls[positions[1]]
    installs = [call for call in calls if 'pip install' in call]
    assert all(f'--constraint {pins}' in call for call in installs), 'a version that is not pinned comes first'
    (wheel,) = (sandbox.folder / 'cache').rglob('*.whl')
    assert wheel.parent.name.startswith(f'{mmcv}-torch2.11.0+stub-') and wheel.parent.name.endswith('cuda0')
    assert list(sandbox.venv.glob('.mm_ummae-*')) == [expected_stamp(sandbox.venv, pins=pins.read_bytes())]

    sandbox.calls.unlink()
    again = sandbox.run(sandbox.venv, pins)
    assert (again.returncode, again.stdout) == (0, '') and not sandbox.calls.exists()
    other = sandbox.run(sandbox.folder / 'other', pins)
    assert other.returncode == 0 and 'compiled before' in other.stdout
    assert 'pip wheel' not in sandbox.calls.read_text()


def test_a_failed_compilation_shows_its_end_and_leaves_no_stamp(sandbox: Sandbox) -> None:
    done = sandbox.run(STUB_FAIL='1')
    assert done.returncode == 1
    assert 'ops.cpp:7: error: no such thing' in done.stderr
    assert done.stderr.splitlines()[-1].startswith('setup: compiling onedl-mmcv==')
    assert not list(sandbox.venv.glob('.mm_ummae-*')) and not list(sandbox.folder.rglob('*.whl'))


# The two stacks


def versions(pins: Path) -> dict[str, str]:
    return dict(line.split('==') for line in pins.read_text().splitlines() if '==' in line)


@pytest.mark.parametrize(('target', 'stack'), STACKS.items(), ids=STACKS)
def test_a_target_tests_its_stack(target: str, stack: tuple[str, Path]) -> None:
    """Each makes its own environment from its own pins; what pytest runs is the same."""
    venv, pins = stack
    settings = {name: value for name, value in os.environ.items() if not name.startswith(('MAKE', 'MFLAGS'))}
    command = ['make', '--dry-run', '--no-print-directory', target]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    setup, test = done.stdout.splitlines()
    assert test == f'{venv}/bin/python -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile'
    script, *arguments = setup.split()
    assert ROOT / script == SCRIPT
    # Without arguments the script takes the first stack
    assert arguments == ([] if target == 'test' else [venv, str(pins.relative_to(ROOT))])


def test_each_stack_has_one_distribution_of_every_host() -> None:
    """Two distributions provide each import package: both in one environment would overwrite each other."""
    maintained, original = versions(PINS), versions(ORIGINAL_PINS)
    for package, (distributions, *_) in HOSTS.items():
        (first,) = (name for name in distributions if name in maintained)
        (second,) = (name for name in distributions if name in original)
        assert (first == second) == (package == 'torch'), package


def test_both_stacks_lint_and_test_with_the_same_tools() -> None:
    maintained, original = versions(PINS), versions(ORIGINAL_PINS)
    for name in ('codespell', 'pytest', 'pytest-xdist', 'pyyaml', 'ruff'):
        assert maintained[name] == original[name], name


@pytest.mark.parametrize('pins', [PINS, ORIGINAL_PINS], ids=lambda path: path.stem)
def test_the_page_on_set_up_gives_the_pinned_versions(pins: Path) -> None:
    page, pinned = (ROOT / 'docs' / 'setup.md').read_text(), versions(pins)
    assert f' {pinned["torch"]}, {pinned["torchvision"]} |' in page
    for package, (names, *_) in HOSTS.items():
        (name,) = (name for name in names if name in pinned)
        assert package == 'torch' or f'| `{name}` {pinned[name]} |' in page, name


# The package

GENERATED = ('build', 'mm_ummae.egg-info', 'mm_ummae/.mim')


def files(folder: Path) -> set[str]:
    """Files below a folder, links as such, without compiled Python."""
    paths = (path for path in folder.rglob('*') if path.is_file() or path.is_symlink())
    return {str(path.relative_to(folder)) for path in paths if '__pycache__' not in path.parts}


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree: building writes into it."""
    copy = tmp_path_factory.mktemp('tree')
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope='module')
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    before = files(tree)
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps', '-w', str(folder)]
    done = subprocess.run([*command, str(tree)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # Whatever building leaves in the tree is what .gitignore names
    ignored = (tree / '.gitignore').read_text().split()
    assert {'build/', '*.egg-info/', 'mm_ummae/.mim/'} <= set(ignored)
    assert not [name for name in files(tree) - before if not name.startswith(GENERATED)]
    (path,) = folder.glob('*.whl')
    return path


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_code_configs_and_tools(wheel: Path, tree: Path) -> None:
    """Everything that mim looks for, and every module: the files of the tree, no more and no fewer."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith('mm_ummae/')}
    mim = {f'mm_ummae/.mim/{part}/{name}' for part in ('configs', 'tools') for name in files(tree / part)}
    code = {str(path.relative_to(tree)) for path in (tree / 'mm_ummae').rglob('*.py') if '.mim' not in path.parts}
    assert names == mim | code | {'mm_ummae/.mim/model-index.yml'}
    assert 'mm_ummae/demo/training.py' in names and 'mm_ummae/.mim/tools/train.py' in names


def test_configs_of_the_wheel_can_be_read(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for name in (
        'demo/ummae_swin-test_1xb64-coslr-20e_demo-128px',
        'upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512',
    ):
        (path,) = (tmp_path / 'mm_ummae' / '.mim' / 'configs').glob(f'{name}.py')
        assert 'mm_ummae.' in Config.fromfile(path).pretty_text


def test_the_wheel_requires_no_host(wheel: Path) -> None:
    """Two distributions provide each host: neither may be required, or pip would add it beside the other."""
    content = metadata(wheel)
    assert content['Name'] in ('mm_ummae', 'mm-ummae') and content['Requires-Python'] == '>=3.10'
    required = [line for line in content.get_all('Requires-Dist') if 'extra ==' not in line]
    assert sorted(required) == ['matplotlib', 'numpy', 'packaging', 'pillow']
    assert {'demo', 'dev'} <= set(content.get_all('Provides-Extra'))


def test_an_editable_install_links_configs_and_tools(tree: Path, tmp_path: Path) -> None:
    """So that mim runs what the user edits."""
    copy = shutil.copytree(tree, tmp_path / 'tree', ignore=shutil.ignore_patterns('build', '*.egg-info', '.mim'))
    code = f'from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})'
    done = subprocess.run([sys.executable, '-c', code], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ('configs', 'tools', 'model-index.yml'):
        link = copy / 'mm_ummae' / '.mim' / name
        assert link.is_symlink() and link.resolve() == copy / name


def test_metadata_is_told_without_torch(tree: Path) -> None:
    code = (
        'import runpy, sys\n'
        'sys.argv = ["setup.py", "--name", "--version"]\n'
        'runpy.run_path("setup.py", run_name="__main__")\n'
        'print(sorted({"torch", "mmengine", "mm_ummae"} & set(sys.modules)))\n'
    )
    environment = {**os.environ, 'PYTHONPATH': ''}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    version: dict[str, str] = {}
    exec((tree / 'mm_ummae' / 'version.py').read_text(), version)
    assert done.stdout.split() == ['mm_ummae', version['__version__'], '[]']
