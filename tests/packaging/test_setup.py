"""scripts/setup_env.sh, with a stub in place of Python and the compilers, and the two sets of pins."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_ummae.compatibility import HOSTS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'scripts' / 'setup_env.sh'
ONEDL = ROOT / 'requirements' / 'onedl.txt'
OPENMMLAB = ROOT / 'requirements' / 'openmmlab.txt'
both_stacks = pytest.mark.parametrize('pins', [ONEDL, OPENMMLAB], ids=lambda path: path.stem)
COMMANDS = (
    *('cat', 'chmod', 'cut', 'dirname', 'grep', 'ls', 'mkdir', 'mktemp', 'mv', 'nproc', 'realpath', 'rm'),
    *('sha256sum', 'sh', 'sleep', 'tail', 'touch', 'uname'),
)

# Answers the script's questions to Python, records the calls of pip, and compiles nothing
PYTHON = """#!/bin/sh
case "$*" in
    *sys.version_info*) echo "${STUB_VERSION:-3.11}" ;;
    *sysconfig*) echo "$STUB_INCLUDE" ;;
    *torch.__version__*) echo 2.11.0+stub ;;
    *"-m venv"*) mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"; cat "$0" >"$3/bin/pip"
        chmod +x "$3/bin/python" "$3/bin/pip" ;;
    *"-m pip wheel"*) echo "$*" >>"$STUB_CALLS"
        [ -z "$STUB_FAIL" ] || { echo "ops.cpp:7: error: no such thing"; exit 1; }
        while [ "$1" != --wheel-dir ]; do shift; done; echo wheel >"$2/mmcv.whl" ;;
    *"-m pip "*) echo "$*" >>"$STUB_CALLS" ;;
esac
"""
Setup = Callable[..., subprocess.CompletedProcess]


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Runs the script for ``tmp_path/venv`` with commands, wheel cache and Python of its own."""
    commands, include = tmp_path / 'bin', tmp_path / 'include'
    for folder in (commands, include):
        folder.mkdir()
    for name in COMMANDS:
        (commands / name).symlink_to(shutil.which(name))
    for name in ('gcc', 'g++', 'make'):
        executable(commands / name, '#!/bin/sh\n')
    (include / 'Python.h').touch()
    settings = dict(
        PATH=str(commands),
        HOME=str(tmp_path),
        PYTHON=str(executable(tmp_path / 'python', PYTHON)),
        MM_UMMAE_CACHE=str(tmp_path / 'cache'),
        STUB_INCLUDE=str(include),
        STUB_CALLS=str(tmp_path / 'calls'),
    )

    def run(pins: Path = ONEDL, venv: str = 'venv', **changes: str) -> subprocess.CompletedProcess:
        command = [shutil.which('bash'), str(SCRIPT), str(tmp_path / venv), str(pins)]
        return subprocess.run(command, env=settings | changes, capture_output=True, text=True, timeout=120)

    return run


def versions(pins: Path) -> dict[str, str]:
    return dict(line.split('==') for line in pins.read_text().splitlines() if '==' in line)


# The script


@both_stacks
def test_a_whole_setup_and_further_ones(pins: Path, setup: Setup, tmp_path: Path) -> None:
    """PyTorch before MMCV, which is compiled once; our own package last. A finished environment is left alone."""
    done = setup(pins)
    assert done.returncode == 0, done.stdout + done.stderr
    calls, pinned = (tmp_path / 'calls').read_text().splitlines(), versions(pins)
    (mmcv,) = (f'{name}=={pinned[name]}' for name in HOSTS['mmcv'][0] if name in pinned)
    order = (f'torch=={pinned["torch"]}', f' {mmcv}', '/mmcv.whl', f'-r {pins}', f'-e {ROOT}')
    positions = [next(i for i, call in enumerate(calls) if part in call) for part in order]
    assert positions == sorted(positions), calls
    assert all(f'--constraint {pins}' in call for call in calls if 'pip install' in call), 'not pinned'
    (wheel,) = (tmp_path / 'cache').rglob('*.whl')
    assert wheel.parent.name.startswith(f'{mmcv}-torch2.11.0+stub-') and wheel.parent.name.endswith('cuda0')
    (stamp,) = (tmp_path / 'venv').glob('.mm_ummae-*')

    (tmp_path / 'calls').unlink()
    again = setup(pins)
    assert (again.returncode, again.stdout) == (0, '') and not (tmp_path / 'calls').exists()
    other = setup(pins, venv='other')
    assert 'compiled before' in other.stdout and 'pip wheel' not in (tmp_path / 'calls').read_text()
    changed = tmp_path / 'changed.txt'
    changed.write_text(pins.read_text() + '# changed\n')
    assert setup(changed).returncode == 0
    assert [path.name == stamp.name for path in (tmp_path / 'venv').glob('.mm_ummae-*')] == [False]


def test_a_failed_compilation_shows_its_output_and_leaves_no_stamp(setup: Setup, tmp_path: Path) -> None:
    done = setup(STUB_FAIL='1')
    assert done.returncode == 1 and 'ops.cpp:7: error: no such thing' in done.stderr
    assert done.stderr.splitlines()[-1].startswith('setup: compiling onedl-mmcv==')
    assert not list((tmp_path / 'venv').glob('.mm_ummae-*')) and not list(tmp_path.rglob('*.whl'))


@pytest.mark.parametrize(
    ('changes', 'remove', 'message'),
    [
        (dict(STUB_VERSION='3.9'), None, r'Python 3.11 is needed, but {folder}/python is 3.9 (name another one with'),
        (dict(PYTHON=''), None, 'Python 3.11 is needed, but there is no python3 on PATH'),
        (dict(PYTHON='/nowhere'), None, 'cannot run /nowhere'),
        ({}, 'g++', "g++ is needed to compile MMCV's ops (Debian: apt-get install build-essential"),
        (dict(STUB_INCLUDE='/nowhere'), None, '/nowhere/Python.h is missing (Debian: apt-get install python3.11-dev)'),
        (dict(pins=Path('/nowhere.txt')), None, 'no such requirement file: /nowhere.txt'),
    ],
)
def test_missing_prerequisites_are_named(
    changes: dict, remove: str | None, message: str, setup: Setup, tmp_path: Path
) -> None:
    """In the last line, before anything is made."""
    if remove:
        (tmp_path / 'bin' / remove).unlink()
    done = setup(**changes)
    assert done.returncode == 1 and not done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith('setup: ') and message.format(folder=tmp_path) in line
    assert not (tmp_path / 'venv').exists() and not (tmp_path / 'calls').exists()


# The two stacks


@pytest.mark.parametrize(
    ('target', 'venv', 'arguments', 'marked'),
    [
        ('test', '.venv', [], ' -m "not slow and not browser"'),
        ('test-slow', '.venv', [], ' -m slow'),
        ('test-openmmlab', '.venv-openmmlab', ['.venv-openmmlab', 'requirements/openmmlab.txt'], ' -m "not browser"'),
    ],
)
def test_each_target_tests_its_stack(target: str, venv: str, arguments: list[str], marked: str) -> None:
    """In its own environment with its own pins; the first two together run everything."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(('MAKE', 'MFLAGS'))}
    command = ['make', '--dry-run', '--no-print-directory', target]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.split() == ['scripts/setup_env.sh', *arguments]
    assert second == f'{venv}/bin/python -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile{marked}'


def test_each_stack_has_one_distribution_of_every_host() -> None:
    """Two distributions in one environment would overwrite each other's import package."""
    for package, (distributions, *_) in HOSTS.items():
        (first,) = (name for name in distributions if name in versions(ONEDL))
        (second,) = (name for name in distributions if name in versions(OPENMMLAB))
        assert (first == second) == (package == 'torch'), package


@both_stacks
def test_all_requirements_are_pinned(pins: Path) -> None:
    """Those of the package, its tests and the demo; the tools for tests and lint are the same in both stacks."""
    pinned = versions(pins)
    for name in ('runtime', 'demo', 'deploy', 'dev', 'dicom'):
        for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines():
            if line and not line.startswith('#') and line != 'pre-commit':  # not needed by any target
                assert line.partition('>=')[0] in pinned, line
    for name in ('codespell', 'pytest', 'pytest-xdist', 'pyyaml', 'ruff'):
        assert pinned[name] == versions(ONEDL)[name], name
