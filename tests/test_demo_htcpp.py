"""HTC++ against Mask R-CNN in the demo: equal time, equal start, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmengine.config import Config, DictAction

from demo import detectors
from demo.detectors import DETECTORS, HTCPP, Losses, detector_table, loss_table, read_losses, run_detector, save_losses, schedule_options, seconds_per_iteration, summarise
from demo.tasks import TASKS
from demo.training import TrainingResult, run_test
from demo.make_data import make_demo_data

from .leaves import ROOT
from .test_tools import tool


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = dict(num_coco_train=16, num_coco_val=2, num_ade_train=1, num_ade_val=1)
    labelled = dict(num_pretrain=1, num_labelled_train=10, num_labelled_val=10)
    return make_demo_data(tmp_path_factory.mktemp('htcpp') / 'data', **counts, **labelled)


def with_options(path: str, options: list[str]) -> Config:
    """As ``--cfg-options`` does."""
    cfg = Config.fromfile(ROOT / path)
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in (o.split('=', 1) for o in options)})
    return cfg


# Equal conditions


def test_both_are_timed_on_one_thread(data: Path) -> None:
    threads = torch.get_num_threads()
    configs = {name: with_options(path, TASKS['Mask R-CNN'].data_options(data)) for name, path in DETECTORS.items()}
    for cfg in configs.values():
        cfg.train_dataloader.batch_size = 2
    seconds = seconds_per_iteration(configs, repeats=1)
    assert set(seconds) == set(DETECTORS) and min(seconds.values()) > 0
    assert torch.get_num_threads() == threads
    assert all(cfg.train_dataloader.num_workers > 0 for cfg in configs.values()), 'the configs changed'


def test_each_gets_iterations_for_the_same_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demo = tool('demo_htcpp')
    seen = {}

    def timed(configs: dict[str, Config]) -> dict[str, float]:
        seen.update(configs)
        return {'HTC++': 1.8, 'Mask R-CNN': 0.6}

    monkeypatch.setattr(demo, 'seconds_per_iteration', timed)
    record = tmp_path / 'new' / 'timing.json'
    iterations, _ = demo.equal_time(200, tmp_path, record, False)
    assert iterations == {'HTC++': 200, 'Mask R-CNN': 600}
    monkeypatch.setattr(demo, 'seconds_per_iteration', lambda configs: dict.fromkeys(configs, 1.0))
    assert demo.equal_time(200, tmp_path, record, False)[0] == iterations, 'what finished before would not fit'
    assert demo.equal_time(200, tmp_path, record, True)[0] == {'HTC++': 200, 'Mask R-CNN': 200}
    assert all(str(tmp_path) in cfg.train_dataloader.dataset.data_root for cfg in seen.values())


@pytest.mark.parametrize('name', DETECTORS)
def test_a_schedule_of_another_length(name: str) -> None:
    """Ends where training does, is evaluated once, and warms up as before."""
    before = Config.fromfile(ROOT / DETECTORS[name])
    cfg = with_options(DETECTORS[name], schedule_options(before, 77))
    warmup, cosine = cfg.param_scheduler
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (77, 77)
    assert warmup == before.param_scheduler[0]
    assert cosine.begin + cosine.T_max == cosine.end == 77 and cosine.begin == warmup.end


def recorder(calls: list[dict], metrics: dict[str, float], scalars: Path) -> Any:
    """Stands for a training or a test."""

    def run(title: str, script: Path, config: Path, *args: Any, **kwargs: Any) -> Any:
        calls.append(dict(title=title, script=script.name, config=config, args=args, **kwargs))
        found = {f'coco/{kind}_mAP': metrics[config.name] for kind in ('bbox', 'segm')}
        return TrainingResult(60.0, 1.0, found, 'last.pth', str(scalars)) if script.name == 'train.py' else found

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict]:
    """Trainings and tests that only say that they were asked for, with AP of 0.3 and 0.2."""
    scalars = tmp_path / 'scalars.json'
    lines = [dict(step=step, lr=0.1, loss=4.0 / step, loss_rpn_cls=1.0 / step) for step in range(1, 11)]
    scalars.write_text('\n'.join(json.dumps(line) for line in [*lines, {'coco/bbox_mAP': 0.3}]))
    found: list[dict] = []
    names = [Path(path).name for path in DETECTORS.values()]
    fake = recorder(found, dict(zip(names, (0.3, 0.2), strict=True)), scalars)
    monkeypatch.setattr(detectors, 'run_training', fake)
    monkeypatch.setattr(detectors, 'run_test', fake)
    return found


@pytest.mark.parametrize('name', DETECTORS)
def test_both_start_from_the_same_weights(name: str, calls: list[dict], tmp_path: Path) -> None:
    result = run_detector(name, 50, 3, tmp_path / 'run', tmp_path / 'data', ROOT, 'pretrained.pth', True)
    options = calls[0]['args'][1]
    cfg = with_options(DETECTORS[name], options)
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='pretrained.pth', prefix='backbone')
    assert (cfg.randomness.seed, cfg.train_cfg.max_iters) == (3, 50)
    assert str(tmp_path / 'data') in cfg.train_dataloader.dataset.data_root
    assert calls[0]['threads'] == 1
    expected = 30.0 if name == 'HTC++' else 20.0
    assert result['metrics'] == pytest.approx({'box AP': expected, 'mask AP': expected})


def test_htcpp_is_tested_with_augmentation_too(calls: list[dict], tmp_path: Path) -> None:
    result = run_detector('HTC++', 50, 0, tmp_path / 'run', tmp_path / 'data', ROOT, 'pretrained.pth', True)
    train, test = calls
    assert (train['script'], test['script']) == ('train.py', 'test.py')
    assert test['args'][0] == 'last.pth' and test['args'][-2:] == (['--tta'], True)
    assert result['tta'] == result['metrics']


def test_from_scratch(calls: list[dict], tmp_path: Path) -> None:
    run_detector('Mask R-CNN', 50, 0, tmp_path / 'run', tmp_path / 'data', ROOT, None, True)
    cfg = with_options(DETECTORS['Mask R-CNN'], calls[0]['args'][1])
    assert cfg.model.backbone.init_cfg is None


# The report


def test_only_losses_of_training_are_read(calls: list[dict], tmp_path: Path) -> None:
    found = read_losses(tmp_path / 'scalars.json')
    assert set(found) == {'loss', 'loss_rpn_cls'} and len(found['loss']) == 10 and found['loss'][1] == 2.0


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([3.0, 5.0, 1.0], Losses(3.0, 5.0, 1.0)),
        ([1.0, 3.0] + 8 * [4.0] + 8 * [1.0] + [0.0, 1.0], Losses(2.0, 4.0, 0.5)),  # two of twenty at a time
    ],
)
def test_summary_of_a_loss(values: list[float], expected: Losses) -> None:
    assert summarise(values) == expected


def test_table_of_losses() -> None:
    rows = loss_table({'loss_rpn_cls': [2.0, 1.0, 0.5]}).splitlines()[2:]
    assert rows == ['| loss_rpn_cls | 2.000 | 2.000 | 0.500 |', '', 'Each ends below its height.']
    rising = {'falling': [2.0, 1.0], 'rising': [1.0, 2.0], 'flat': [1.0, 1.0]}
    assert loss_table(rising).splitlines()[-1] == 'rising, flat did not fall.'


def test_picture_of_losses_has_a_panel_for_each(tmp_path: Path) -> None:
    few = cv2.imread(str(save_losses({f'loss{i}': [2.0, 1.0] for i in range(4)}, tmp_path / 'new' / 'few.png')))
    more = cv2.imread(str(save_losses({f'loss{i}': [2.0, 1.0] for i in range(5)}, tmp_path / 'more.png')))
    assert more.shape[1] == few.shape[1] and more.shape[0] == 2 * few.shape[0], 'a fifth starts a second row'
    # Black axes are in the first panel of the second row, and in no other
    dark = (more[few.shape[0] :].max(-1) < 64).sum(0)
    quarter = more.shape[1] // 4
    assert dark[:quarter].sum() > 100 and dark[quarter:].sum() == 0


def seed(htcpp: float, augmented: float, mask_rcnn: float) -> dict[str, dict]:
    def run(ap: float, **kwargs: Any) -> dict:
        return dict(metrics={'box AP': ap, 'mask AP': ap - 2}, seconds=100.0, iterations=20, **kwargs)

    return {'HTC++': run(htcpp, tta={'box AP': augmented, 'mask AP': augmented}), 'Mask R-CNN': run(mask_rcnn)}


def test_table_over_seeds_tells_who_is_ahead() -> None:
    lines = detector_table([seed(30.0, 31.0, 20.0), seed(20.0, 21.0, 22.0)]).splitlines()
    assert lines[2:] == [
        '| HTC++ | 20 | 100 | 25.0 ± 7.1 | 23.0 ± 7.1 |',
        '| HTC++, augmented test | 20 |  | 26.0 ± 7.1 | 26.0 ± 7.1 |',
        '| Mask R-CNN | 20 | 100 | 21.0 ± 1.4 | 19.0 ± 1.4 |',
        '',
        'HTC++ is ahead of Mask R-CNN in box AP in 1 of 2 seeds, by +4.0 ± 8.5, '
        'in mask AP in 1 of 2 seeds, by +4.0 ± 8.5.',
    ]
    assert '| 30.0 | 28.0 |' in detector_table([seed(30.0, 31.0, 20.0)]), 'one seed has no spread'


def test_the_tool_compares_and_reports(
    monkeypatch: pytest.MonkeyPatch, calls: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    demo = tool('demo_htcpp')
    monkeypatch.setattr(demo, 'make_demo_data', lambda folder: folder)
    monkeypatch.setattr(demo, 'seconds_per_iteration', lambda configs: dict.fromkeys(configs, 0.5))
    out = tmp_path / 'out'
    demo.main(['--seeds', '0', '4', '--iterations', '20', '--out', str(out), '--checkpoint', 'start{seed}.pth'])
    titles = [call['title'] for call in calls]
    assert titles == [f'[seed {s}] {what}' for s in (0, 4) for what in ('HTC++', 'HTC++, augmented test', 'Mask R-CNN')]
    assert [call['args'][0].parent for call in calls if call['script'] == 'train.py'] == 2 * [out / 'seed0'] + 2 * [
        out / 'seed4'
    ]
    assert any(o.endswith('/start4.pth') for o in calls[3]['args'][1])
    report = json.loads((out / 'report.json').read_text())
    assert report['seconds_per_iteration'] == {'HTC++': 0.5, 'Mask R-CNN': 0.5} and len(report['seeds']) == 2
    text = (out / 'report.md').read_text()
    assert text in capsys.readouterr().out and '| loss_rpn_cls | 1.000 |' in text
    assert 'in box AP in 2 of 2 seeds, by +10.0' in text
    assert cv2.imread(str(out / 'losses.png')) is not None


def test_a_run_shorter_than_its_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match='--iterations is 10, but the warm-up alone takes 15'):
        tool('demo_htcpp').main(['--iterations', '10'])
    assert Config.fromfile(ROOT / HTCPP).param_scheduler[0].end == 15


# A test as a process

SCRIPT = """
import json, os, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index('--work-dir') + 1])
for time, ap in (('20250101', 0.1), ('20260101', 0.2)):
    (folder / time).mkdir()
    (folder / time / f'{time}.json').write_text(json.dumps({'coco/bbox_mAP': ap, 'words': words}))
print('threads', os.environ['OMP_NUM_THREADS'])
sys.exit(int('--fail' in words))
"""


def test_a_test_is_a_process_of_its_own(tmp_path: Path) -> None:
    """On one thread; the newest metrics count."""
    script = tmp_path / 'test.py'
    script.write_text(SCRIPT)
    run = tmp_path / 'run'
    found = run_test('title', script, Path('config.py'), 'last.pth', run, ['a.b=1'], ['--tta'])
    assert found['coco/bbox_mAP'] == 0.2
    assert found['words'] == ['config.py', 'last.pth', '--work-dir', str(run), '--tta', '--cfg-options', 'a.b=1']
    assert 'threads 1' in (run / 'output.txt').read_text()
    script.write_text('raise SystemExit(1)')
    again = run_test('title', script, Path('config.py'), 'last.pth', run, ['a.b=1'], ['--tta'], again=False)
    assert again == found, 'it ran although it had finished'
    script.write_text(SCRIPT)
    with pytest.raises(RuntimeError, match=r'failed with status 1; all is in .*output\.txt\nthreads 1'):
        run_test('title', script, Path('config.py'), 'last.pth', tmp_path / 'other', (), ['--fail'])
