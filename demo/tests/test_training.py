"""Child processes of the demo: what is read from them, and when they are started again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mmengine.config import DictAction

from demo import training
from demo.screen import step
from demo.training import PROGRESS, run_test, run_training

TOOL = """
import json, os, pathlib, sys
from time import sleep
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
for time, top1 in (('20250101', 10), ('20260101', 20)):
    (folder / time / 'vis_data').mkdir(parents=True, exist_ok=True)
    (folder / time / 'vis_data' / 'scalars.json').write_text('{"loss": 2.0, "step": 1}\\n{"top1": %d}' % top1)
    (folder / time / f'{time}.json').write_text(json.dumps(dict(top1=top1)))
(folder / 'last_checkpoint').write_text('last.pth\\n')
print('threads', os.environ.get('OMP_NUM_THREADS'), *sys.argv[1:])
print('Epoch(train) [2][ 5/31]  lr: 1e-3  eta: 0:04:39  time: 0.2  loss: 0.7985', flush=True)
sleep(0.1)
sys.exit('fail=True' in sys.argv)
"""


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With tools that only leave files, also those of an earlier run."""
    for name in ('train', 'test'):
        (tmp_path / f'{name}.py').write_text(TOOL)
    monkeypatch.setattr(training, 'TOOLS', tmp_path)
    return tmp_path / 'run'


def test_training(work_dir: Path) -> None:
    result = run_training('x', 'config.py', work_dir, {'a.b': 1, 'c': None}, threads=3)
    assert result.metrics == dict(loss=2.0, step=1, top1=20) and result.checkpoint == 'last.pth'
    assert result.scalars == str(work_dir / '20260101' / 'vis_data' / 'scalars.json')
    assert result.seconds > 0 and 0.001 < result.peak_memory_gb < 0.1, 'memory of this process was counted'
    words = (work_dir / 'output.txt').read_text().splitlines()[0].split()
    assert words == ['threads', '3', str(training.CONFIGS / 'config.py'), '--work-dir', str(work_dir), *words[5:]]
    assert words[5:] == ['--cfg-options', 'a.b=1', 'c=None'] and DictAction._parse_iterable('None') is None


def test_evaluation(work_dir: Path) -> None:
    assert run_test('x', 'config.py', 'last.pth', work_dir, {'a': 1}, ['--tta']) == dict(top1=20)
    words = (work_dir / 'output.txt').read_text().splitlines()[0].split()
    assert (
        words[:2] == ['threads', '1'] and words[3:] == f'last.pth --work-dir {work_dir} --tta --cfg-options a=1'.split()
    )


def test_a_finished_run_is_kept_unless_options_change_or_force(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_training('x', 'config.py', work_dir, {'a': 1})
    record = work_dir / 'result.json'
    kept = record.read_text()

    def start(*args: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(training, '_run', start)
    assert run_training('x', 'config.py', work_dir, {'a': 1}) == result
    for options, force in (({'a': 1}, True), ({'a': 2}, False)):
        record.write_text(kept)
        with pytest.raises(InterruptedError):
            run_training('x', 'config.py', work_dir, options, force)
        assert not record.exists(), 'an interrupted run counts as finished'


def test_a_failed_run_shows_its_end(work_dir: Path) -> None:
    with pytest.raises(RuntimeError, match=r'failed with status 1; the whole log is .*output\.txt\nthreads'):
        run_training('x', 'config.py', work_dir, {'fail': True})
    assert not (work_dir / 'result.json').exists()


def test_an_interrupted_record_is_not_half_written(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, 'replace', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_training('x', 'config.py', work_dir, {})
    assert not (work_dir / 'result.json').exists()
    monkeypatch.undo()
    monkeypatch.setattr(training, 'TOOLS', work_dir.parent)
    run_training('x', 'config.py', work_dir, {})
    assert json.loads((work_dir / 'result.json').read_text())['result']['metrics']['top1'] == 20


@pytest.mark.parametrize(
    ('line', 'state'),
    [
        (
            'Epoch(train)  [12][ 5/31]  lr: 1.4e-03  eta: 0:04:39  grad_norm: 1.2  loss: 0.7985  loss_a: 0.1',
            'epoch 12, iteration 5/31, loss 0.7985, 0:04:39 left',
        ),
        (
            'Iter(train) [  5/150]  base_lr: 2.9e-04  eta: 12:01:30  time: 0.3  loss: 4.2  decode.loss_ce: 3.0',
            'iteration 5/150, loss 4.2, 12:01:30 left',
        ),
        ('Iter(val) [ 5/13]    eta: 0:00:03  time: 0.41  data_time: 0.02  ', 'evaluation 5/13, 0:00:03 left'),
        ('Iter(test) [ 5/13]    eta: 0:00:03  time: 0.41', 'evaluation 5/13, 0:00:03 left'),
        ('Iter(val) [13/13]    coco/bbox_mAP: 0.1230  data_time: 0.01', None),
        ('Saving checkpoint at 1 epochs', None),
    ],
)
def test_progress_is_read_from_the_log(line: str, state: str | None) -> None:
    found = PROGRESS.search(f'11/21 06:53:25 - mmengine - INFO - {line}')
    assert (found and training._state(**found.groupdict())) == state


def test_a_log_has_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with step('seed 0, [a]', interval=3600) as seldom, step('two', interval=0) as often:
        seldom('loss 1.0')
        often('loss 1.0')
    assert re.fullmatch(r'two: loss 1\.0\ntwo: done in 0 s\nseed 0, \[a\]: done in 0 s\n', capsys.readouterr().out)
    with pytest.raises(ValueError), step('fails'):
        raise ValueError
    assert capsys.readouterr().out == ''
