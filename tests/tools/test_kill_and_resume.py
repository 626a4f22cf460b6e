"""scripts/kill_and_resume.py: a run that is killed and resumed is the run without a break, bit for bit."""

from __future__ import annotations

import importlib.util
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.runs import ROOT


@pytest.fixture(scope='module')
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location('kill_and_resume', ROOT / 'scripts' / 'kill_and_resume.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.integration
@pytest.mark.slow
def test_killed_run_equals_the_run_without_a_break(
    script: ModuleType, tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """SIGTERM reaches the loader processes, too; SIGKILL leaves half a file, under no final name."""
    method = script.METHODS[0]
    kinds = ['SIGTERM', 'SIGKILL in a save']
    whole = script.Run(method, script.make_data(tmp_path / 'data'), tmp_path / 'whole', epochs=3)
    tool('train').main(whole.arguments())
    row = script.kill_and_resume(method, whole, tmp_path / 'parts', kinds, random.Random(0), first_workers=2)
    assert row['problems'] == []
    assert row['equal'] and row['resumed'] == 2 and row['half_written'] == 0
    assert [kill['status'] for kill in row['kills']] == [75, -signal.SIGKILL]
    assert [kill['workers'] for kill in row['kills']] == [2, 0]

    # What the script would find
    other = script.differences(whole.last, tmp_path / 'parts' / 'epoch_2.pth')
    assert {name.partition('.')[0] for name in other} == {'state_dict', 'optimizer', 'history'}
    content = whole.last.read_bytes()
    (whole.work_dir / 'epoch_4.pth').write_bytes(content[: len(content) // 2])
    assert script.half_written(whole.work_dir) == ['epoch_4.pth']


def test_each_method_needs_a_kill(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.main(['--kills', '3'])
    assert '--kills is 3, but each of 4 methods needs one' in capsys.readouterr().err
