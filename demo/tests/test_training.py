"""Child processes of the demo: what is read from them, and when they are started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import training
from demo.screen import step
from demo.training import run_training

TOOL = """
import os, sys, time
print('threads', os.environ.get('OMP_NUM_THREADS'), *sys.argv[1:])
print('Epoch(train) [2][ 5/31]  lr: 1e-3  eta: 0:04:39  time: 0.2  loss: 0.7985', flush=True)
time.sleep(0.1)
sys.exit('fail=True' in sys.argv)
"""


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the files of a run, and a tool that leaves none."""
    (tmp_path / 'train.py').write_text(TOOL)
    monkeypatch.setattr(training, 'TOOLS', tmp_path)
    folder = tmp_path / 'run' / '20260101' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"loss": 2.0, "step": 1, "mode": "train"}\n{"top1": 20}')
    (tmp_path / 'run' / 'last_checkpoint').write_text('last.pth\n')
    return tmp_path / 'run'


def test_training(work_dir: Path) -> None:
    result = run_training('x', 'config.py', work_dir, {'a.b': 1, 'c': None}, threads=3)
    assert result.metrics == dict(loss=2.0, step=1, top1=20) and result.checkpoint == 'last.pth'
    assert result.scalars == str(work_dir / '20260101' / 'vis_data' / 'scalars.json')
    assert result.seconds > 0 and 0.001 < result.peak_memory_gb < 0.1, 'memory of this process was counted'
    command = f'threads 3 {training.CONFIGS}/config.py --work-dir {work_dir} --cfg-options a.b=1 c=None'
    assert (work_dir / 'output.txt').read_text().splitlines()[0] == command


def test_failed_and_interrupted_runs_are_not_finished(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = work_dir / 'result.json'
    run_training('x', 'config.py', work_dir, {})
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(training, '_run', None)  # fails
        run_training('x', 'config.py', work_dir, {}, force=True)
    assert not record.exists()
    with pytest.raises(RuntimeError, match=r'failed with status 1; the whole log is .*output\.txt\nthreads'):
        run_training('x', 'config.py', work_dir, {'fail': True})
    assert not record.exists()
    monkeypatch.setattr(Path, 'replace', None)  # fails after the record is written
    with pytest.raises(TypeError):
        run_training('x', 'config.py', work_dir, {})
    assert not record.exists()


def test_progress_is_read_from_the_log() -> None:
    for line, state in {
        '(train)  [12][ 5/31]  lr: 1e-03  eta: 0:04:39  loss: 0.7  loss_a: 0.1': 'epoch 12, iteration 5/31, loss 0.7',
        '(train) [  5/150]  eta: 0:04:39  time: 0.3  loss: 4.2  decode.loss_ce: 3.0': 'iteration 5/150, loss 4.2',
        '(val) [ 5/13]    eta: 0:04:39  time: 0.41  data_time: 0.02  ': 'evaluation 5/13',
        '(test) [ 5/13]    eta: 0:04:39  time: 0.41': 'evaluation 5/13',
    }.items():
        found = training.PROGRESS.search(f'11/21 06:53:25 - mmengine - INFO - Iter{line}')
        assert training._state(**found.groupdict()) == f'{state}, 0:04:39 left'
    assert not training.PROGRESS.search('Iter(val) [13/13]    coco/bbox_mAP: 0.1230  data_time: 0.01')


def test_a_log_has_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with step('seed 0, [a]', interval=3600) as seldom, step('two', interval=0) as often:
        seldom('loss 1.0')
        often('loss 1.0')
    assert capsys.readouterr().out == 'two: loss 1.0\ntwo: done in 0 s\nseed 0, [a]: done in 0 s\n'
    with pytest.raises(ValueError), step('fails'):
        raise ValueError
    assert capsys.readouterr().out == ''


def test_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log and result lie beside the folder of the command, which takes no other files."""

    def run(title: str, command: list[str], log: Path, threads: int | None) -> tuple[float, float]:
        out = Path(command[command.index('--out') + 1])
        assert log.parent == out.parent and not out.exists()
        (out / 'run' / '2026' / 'vis_data').mkdir(parents=True)
        (out / 'run' / '2026' / 'vis_data' / 'scalars.json').write_text('{"loss": 0.5}')
        (out / 'run' / 'last_checkpoint').write_text('epoch_9.pth')
        return 1.0, 0.5

    monkeypatch.setattr(training, '_run', run)
    result = training.run_command('x', tmp_path / 'images', tmp_path / 'a', 'um-swin-test', ['--seed', '2'])
    assert result.metrics == dict(loss=0.5) and result.checkpoint == str(tmp_path / 'a' / 'run' / 'backbone.pth')
    assert training.run_command('x', tmp_path / 'images', tmp_path / 'a', 'um-swin-test', ['--seed', '2']) == result
