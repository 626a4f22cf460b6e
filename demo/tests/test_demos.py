"""All demos: what is trained from what, in equal conditions, the tables of the results, the notebook."""

from __future__ import annotations

import ast
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pytest import CaptureFixture, MonkeyPatch

from demo import ablations, chain, htcpp, probe, timing, training
from demo.__main__ import DEMO
from demo.ablations import ARMS
from demo.chain import Demo, run_demo
from demo.lomar import DEMO as LOMAR
from demo.report import RESULTS, SCRATCH, STARTS, TRAINED, claims_table, results_table, spread
from demo.tasks import PRETRAIN, PRETRAIN_SIMMIM, TASKS
from demo.training import ROOT
from mm_ummae.apis import get_model
from mm_ummae.version import __version__
from mm_ummae.visualization.sheets import WINDOW_COLOURS

from .conftest import Runs, read_config, save_random

pytestmark = pytest.mark.slow

DEMOS = pytest.mark.parametrize('demo', [DEMO, LOMAR], ids=['um-mae', 'lomar'])
PERCENT = dict(linear=50.0, knn=30.0, top1=60.0, box_ap=30.0, mask_ap=20.0, miou=15.0)


@DEMOS
def test_starts_differ_in_weights_and_learning_rate_alone(
    demo: Demo, runs: Runs, demo_data: Path, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    """Of both seeds of the smallest size; the report has every number, and names files that exist."""
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {}
    monkeypatch.setattr(chain, 'make_demo_data', lambda path, **kwargs: (sizes.update(kwargs, path=path), demo_data)[1])
    run_demo(demo, '', ['--size', 'smoke', '--seeds', '2'])
    out = tmp_path / f'{demo.out}-smoke'
    trainings = {run.title: run for run in runs}
    assert len(runs) == len({run.work_dir for run in runs}) == len(trainings) == 2 * (1 + 3 * len(demo.tasks))
    assert sizes['path'] == tmp_path / 'data' / 'demo-smoke'
    for seed, (name, task) in product((0, 1), demo.tasks.items()):
        pretraining = trainings[f'seed {seed}, pre-training'].config
        assert Path(pretraining.train_dataloader.dataset.data_root) == demo_data / 'imagenet'
        assert sizes['num_pretrain'] >= 2 * pretraining.train_dataloader.batch_size
        assert pretraining.train_cfg.max_epochs == pretraining.param_scheduler[0].end == 1
        three = [trainings[f'seed {seed}, {name}, {start}'] for start in STARTS]
        assert all(run.work_dir.parent == out / f'seed{seed}' and run.threads >= 1 for run in three)
        trained, scratch, stored = (run.config for run in three)
        assert stored.model.backbone.init_cfg.pop('checkpoint') == f'mm_ummae://{demo.weights}'
        assert stored.model.backbone.init_cfg == dict(type='Pretrained', prefix='backbone')
        assert trained.train_cfg.max_iters == trained.train_cfg.val_interval == 4
        for split in ('train', 'val', 'test'):
            assert Path(trained[f'{split}_dataloader'].dataset.data_root) == demo_data / task.data
        if task.data == 'coco':
            assert Path(trained.val_evaluator.ann_file).is_file() and trained.test_evaluator == trained.val_evaluator
        with DefaultScope.overwrite_default_scope(trained.default_scope):
            backbone = MODELS.build(trained.model.backbone)
        backbone.init_weights()
        weights = torch.load(tmp_path / f'{pretraining.model.type}-{seed}.pth')['state_dict']
        assert all(torch.equal(value, weights[f'backbone.{name}']) for name, value in backbone.state_dict().items())
        assert scratch.model.backbone.init_cfg is None and scratch.randomness.seed == seed
        trained.model.backbone.init_cfg = stored.model.backbone.init_cfg = None
        if task.scratch_lr is not None:
            trained.optim_wrapper.optimizer.lr = stored.optim_wrapper.optimizer.lr = task.scratch_lr
        assert trained.to_dict() == stored.to_dict() == scratch.to_dict()

    text, results = (out / 'report.md').read_text(), json.loads((out / 'report.json').read_text())
    assert text in capsys.readouterr().out and '| pre-training | 7 | 1.50 |' in text
    tie = '0 of 2, by +0.0 ± 0.0'
    assert f' | 30.0 ± 0.0 | 30.0 ± 0.0 | 30.0 ± 0.0 | {tie} | {tie} |' in text, 'a tie is no win'
    assert results_table(results['seeds']) in text and results['environment']['versions']['mm_ummae'] == __version__
    keys = {'linear', 'knn'}.union(*(task.metrics for task in demo.tasks.values()))
    trained = {key: PERCENT[key] for key in keys}
    scratch = {key: PERCENT[key] / 2 for key in keys} | dict(linear=40.0, knn=30.0)
    for seed, found in enumerate(results['seeds']):
        assert (found['seed'], found['accuracy']) == (seed, dict(zip(STARTS, (trained, scratch, trained), strict=True)))
    assert all(Path(line.split('`')[1]).exists() for line in text.splitlines() if line.startswith('*'))
    sheet = np.asarray(Image.open(out / 'seed0' / 'reconstruction.png'))
    assert [(sheet == colour).all(2).any() for colour in WINDOW_COLOURS] == 4 * [demo is LOMAR]
    sheets = [np.asarray(Image.open(path)) for path in (out / 'seed0').glob('*_pre-trained.png')]
    assert len(sheets) == len(demo.tasks) - 1
    for sheet in sheets:  # ground truth and prediction of three images
        assert 4 * 256 < sheet.shape[1] < 5 * 256 and 2 * 256 < sheet.shape[0] < 3 * 256
        assert (sheet == 200).all(2).sum() >= 6 * 256**2, 'those of an earlier run'


def test_finished_runs_are_kept_on_demand_unless_options_change(runs: Runs, tmp_path: Path) -> None:
    words = ['--out', str(tmp_path / 'out'), '--data', str(tmp_path)]
    for changed, number in (([], 4), (['--resume'], 0), (['--resume', '--size', 'smoke'], 4), (['--size', 'smoke'], 4)):
        runs.clear()
        run_demo(LOMAR, '', [*words, *changed])
        assert len(runs) == number
    assert runs[0].work_dir == tmp_path / 'out' / 'seed0' / 'pretrain'


def test_runs_that_wait_are_left_out_when_one_fails(runs: Runs, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    record = training._run

    def run(title: str, *others: Any) -> tuple[float, float]:
        if 'pre-training' in title:
            raise RuntimeError('no space left')
        time.sleep(0.2)  # the failure is noticed in the meantime
        return record(title, *others)

    monkeypatch.setattr(training, '_run', run)
    with pytest.raises(RuntimeError, match='no space left'):
        run_demo(DEMO, '', ['--out', str(tmp_path / 'out'), '--data', str(tmp_path)])
    assert len(runs) < 2 * len(DEMO.tasks)


def test_methods_have_the_same_data() -> None:
    um_mae, lomar, simmim = (read_config(name).to_dict() for name in (PRETRAIN, LOMAR.pretraining, PRETRAIN_SIMMIM))
    ours, theirs = (read_config(demo.tasks['classification'].config).to_dict() for demo in (DEMO, LOMAR))
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    assert um_mae['train_dataloader']['dataset'] == lomar['train_dataloader']['dataset']
    assert all(ours[loader]['dataset'] == theirs[loader]['dataset'] for loader in loaders)
    assert {key for key in um_mae if um_mae[key] != simmim[key]} == {'model'}
    assert all(um_mae['model']['backbone'][key] == simmim['model']['backbone'][key] for key in ('arch', 'img_size'))


@DEMOS
def test_probe(demo: Demo, demo_data: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Of the mean of the first map, with the weights of the checkpoint or random ones of the seed."""
    seen: list[torch.nn.Module] = []
    features = probe.frozen_features
    monkeypatch.setattr(probe, 'frozen_features', lambda *args: (seen.append(args[0]), features(*args))[1])
    checkpoint = save_random(read_config(demo.pretraining), tmp_path)
    paths = (checkpoint, None, None)
    trained, *random = (probe.probe(demo.probed, path, demo_data / 'imagenet', seed=3) for path in paths)
    assert random[0] == random[1] and trained.keys() == random[0].keys() == {'linear', 'knn'}
    assert all(0 <= value <= 100 and round(value / 10, 6).is_integer() for value in trained.values())
    weights = torch.load(checkpoint)['state_dict']
    states = [network.state_dict() for network in seen[::2]]
    same = [all(torch.equal(value, weights[f'backbone.{name}']) for name, value in state.items()) for state in states]
    assert same == [True, False, False]

    images, labels = probe.load_labelled(demo_data / 'imagenet' / 'val')
    assert labels.tolist() == list(range(10)), 'not in the order of the folders'
    with torch.no_grad():
        expected = seen[0](images)[0].mean((2, 3))
    np.testing.assert_allclose(features(seen[0], images, batch_size=3), expected.numpy(), atol=1e-5)
    file = sorted((demo_data / 'imagenet' / 'val').glob('*/*.jpg'))[7]
    pixels = (np.asarray(Image.open(file).convert('RGB')) - np.array(probe.MEAN)) / np.array(probe.STD)
    np.testing.assert_allclose(images[7].permute(1, 2, 0).numpy(), pixels, atol=1e-4)


def test_iterations_are_timed_on_one_thread(demo_data: Path) -> None:
    tasks = {htcpp.DETECTORS['HTC++']: TASKS['Mask R-CNN'], PRETRAIN_SIMMIM: TASKS['classification']}
    configs = {name: read_config(name, **task.data_options(demo_data)) for name, task in tasks.items()}
    for config in configs.values():
        config.train_dataloader.update(batch_size=2, num_workers=1, pin_memory=False)
    torch.set_num_threads(2)
    seconds, threads = timing.seconds_per_iteration(configs, rounds=1), torch.get_num_threads()
    torch.set_num_threads(1)  # as in all tests
    assert set(seconds) == set(tasks) and min(seconds.values()) > 0 and threads == 2
    assert all(config.train_dataloader.num_workers == 1 for config in configs.values()), 'the configs changed'


def test_htcpp(runs: Runs, monkeypatch: MonkeyPatch, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    """Both detectors of a seed train for equal time from the same weights; the schedule ends with the training."""
    monkeypatch.setattr(htcpp, 'seconds_per_iteration', lambda configs: {'HTC++': 1.0, 'Mask R-CNN': 0.5})
    out = tmp_path / 'out'
    words = ['--iterations', '20', '--out', str(out)]
    htcpp.main([*words, '--seeds', '0', '4', '--checkpoint', 'start{seed}.pth'])
    steps = ('HTC++', 'HTC++, augmented test', 'Mask R-CNN')
    assert [run.title for run in runs] == [f'seed {seed}, {name}' for seed in (0, 4) for name in steps]
    for run in runs:
        seed, iterations = run.config.randomness.seed, 40 if 'Mask' in run.title else 20
        assert run.threads == 1 and f'seed{seed}' in run.work_dir.parts
        assert 'augmented' not in run.title or {'last.pth', '--tta'} < set(run.command)
        start = dict(type='Pretrained', checkpoint=str(Path(f'start{seed}.pth').resolve()), prefix='backbone')
        assert run.config.model.backbone.init_cfg == start
        warmup, cosine = run.config.param_scheduler
        assert run.config.train_cfg.max_iters == run.config.train_cfg.val_interval == cosine.end == iterations
        assert warmup.end == cosine.begin == htcpp.WARMUP and not cosine.get('T_max')
    text, report = (out / 'report.md').read_text(), json.loads((out / 'report.json').read_text())
    assert text in capsys.readouterr().out and '| loss_rpn_cls | 1.000 |' in text
    assert '| HTC++, augmented test | 20 |  | 30.0 ± 0.0 | 20.0 ± 0.0 |' in text
    assert report['seconds_per_iteration']['HTC++'] == 1.0 and len(report['seeds']) == 2

    runs.clear()
    monkeypatch.setattr(htcpp, 'seconds_per_iteration', lambda configs: dict.fromkeys(configs, 1.0))
    htcpp.main([*words, '--resume'])
    pretraining, *others = runs
    (checkpoint,) = {run.config.model.backbone.init_cfg.checkpoint for run in others}
    assert pretraining.title == 'seed 0, pre-training' and Path(checkpoint).is_file()
    assert others[-1].config.train_cfg.max_iters == 40, 'timed again: finished runs would not fit'
    htcpp.main([*words, '--resume'])
    assert len(runs) == 4, 'finished runs were not kept'
    htcpp.main(words)
    assert len(runs) == 8 and runs[-1].config.train_cfg.max_iters == 20, 'not timed again'


def test_losses(tmp_path: Path) -> None:
    assert htcpp.summarise([3.0, 5.0, 1.0]) == (3.0, 5.0, 1.0)
    assert htcpp.summarise([1.0, 3.0] + 8 * [4.0] + 8 * [1.0] + [0.0, 1.0]) == (2.0, 4.0, 0.5)  # two at a time
    rows = htcpp.loss_table(dict(falling=[2.0, 1.0, 0.5])).splitlines()[2:]
    assert rows == ['| falling | 2.000 | 2.000 | 0.500 |', '', 'Each loss ends below its highest tenth.']
    rising = htcpp.loss_table(dict(falling=[2.0, 1.0], rising=[1.0, 2.0], flat=[1.0, 1.0]))
    assert rising.splitlines()[-1] == 'At their highest at the end: rising, flat.'
    five = htcpp.save_loss_panels({f'loss{i}': [2.0, 1.0] for i in range(5)}, tmp_path / 'new' / 'losses.png')
    _, lower = np.split(np.asarray(Image.open(five).convert('L')), 2)
    first, *others = np.split(lower, 4, axis=1)  # axes only in the first panel of the second row
    assert first.min() < 64 and np.min(others) == 255


def test_arms_are_what_their_names_say(demo_data: Path, tmp_path: Path) -> None:
    """And each of UM-MAE has a reconstruction loss of its own, the same one each time."""
    models = [get_model(read_config(arm.config, **arm.options)) for arm in ARMS.values()]
    facts = [(model.sampling, model.secondary_ratio, model.with_neck) for model in models]
    assert facts == [*(('uniform', ratio, True) for ratio in (0.25, 0.25, 0, 0.5)), *2 * [('random', 0, False)]]
    assert [model.neck.published_positions for model in models[:4]] == [False, True, False, False]
    checkpoint = save_random(read_config(PRETRAIN), tmp_path)
    arms, images = 2 * list(ARMS.values())[:4], demo_data / 'coco' / 'val2017'
    losses = [ablations.reconstruction_loss(arm, checkpoint, images) for arm in arms]
    assert losses[:4] == losses[4:] and len(set(losses)) == 4


def test_ablations(runs: Runs, demo_data: Path, monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    """Every run of an arm has its data, seed and start; a second call keeps what the first one measured."""
    seconds = {PRETRAIN: 1.0, PRETRAIN_SIMMIM: 2.4}
    monkeypatch.setattr(ablations, 'seconds_per_iteration', lambda configs: seconds)
    out = tmp_path / 'out'
    common = ['--seeds', '3', '--out', str(out), '--arms', 'um-mae_sm-0.5']
    ablations.main([*common, '--tasks', 'classification'])
    monkeypatch.setattr(ablations, 'seconds_per_iteration', None)  # would fail
    ablations.main([*common, '--tasks', 'Mask R-CNN'])
    assert all(run.config.randomness.seed == 3 and run.threads == 1 for run in runs)
    pretraining, classification, _ = (run.config for run in runs)
    assert pretraining.model.secondary_ratio == 0.5 and pretraining.train_cfg.max_epochs == 10
    warmup, cosine = pretraining.param_scheduler
    assert warmup.end == cosine.begin == 1 and cosine.end == 10 and not cosine.get('T_max')
    for loader in (pretraining.train_dataloader, classification.val_dataloader):
        assert Path(loader.dataset.data_root) == demo_data / 'imagenet'
    assert Path(classification.model.backbone.init_cfg.checkpoint).is_file()
    results = json.loads((out / 'ablations.json').read_text())
    measured = results['seeds']['3']['um-mae_sm-0.5']
    assert measured.pop('loss') > 0
    assert measured == dict(seconds=7.0, linear=50.0, top1=60.0, box_ap=30.0, mask_ap=20.0)
    assert '| UM-MAE, SM 0.5 | 10 | ' in (out / 'ablations.md').read_text() and (out / 'ablations.png').is_file()
    # Equal time is whole epochs, at least one, in the time of UM-MAE
    assert list(results['epochs'].values()) == [10, 10, 10, 10, 10, 4]
    assert ablations.pretrain_epochs(ARMS['simmim_equal-time'], 1, seconds) == 1


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'--seeds is 0, but it must be at least 1'):
        run_demo(DEMO, '', ['--seeds', '0'])
    with pytest.raises(ValueError, match='--iterations is 15, but it must be above 15, the length of the warm-up'):
        htcpp.main(['--iterations', '15'])
    with pytest.raises(ValueError, match=r'--epochs is 0, but it must be at least 1'):
        ablations.main(['--epochs', '0'])
    with pytest.raises(FileNotFoundError, match=r'has no images <class>/\*\.jpg'):
        probe.load_labelled(tmp_path)
    (tmp_path / '20260102' / 'vis_data').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='20260102/vis_data has no images of predictions in vis_image'):
        chain.save_prediction_sheet(tmp_path, tmp_path / 'sheet.png')


def test_tables_of_seeds() -> None:
    """What is missing in one seed is missing: a mean over fewer would not compare."""
    results = json.loads((RESULTS / 'ablations.json').read_text())
    seeds, epochs = list(results['seeds'].values()), results['epochs']
    del seeds[1]['um-mae']['top1'], seeds[0]['simmim_equal-time']
    rows = ablations.ablation_tables(seeds, epochs).splitlines()
    assert rows[2].split(' | ')[-2] == '–'
    assert f'| {ARMS["simmim_equal-time"].name} | {epochs["simmim_equal-time"]} | – | – | – | – |' in rows
    assert (spread([1.0, 3.0, 5.0]), spread([1.0, 2.0], 2, '+'), spread([3.0])) == ('3.0 ± 2.0', '+1.50 ± 0.71', '3.0')


def test_one_seed_is_shown_beside_the_spread_of_several() -> None:
    def seed(trained: float, scratch: float) -> dict[str, Any]:
        return dict(accuracy={TRAINED: dict(top1=trained), SCRATCH: dict(top1=scratch)})

    stored = [seed(10, 8), seed(12, 6)]  # leads of 2 and 6: a deviation of 2.8
    for trained, text in (
        (14.0, '1 of 1, by +4.0'),
        (12.0, '1 of 1, by +2.0, within the spread of 2.8 between seeds'),
    ):
        row = results_table([seed(trained, 10.0)], stored).splitlines()[-1]
        assert row == f'| classification, fine-tuned | top-1 % | {trained} | 10.0 | {text} |'
    one, two = ([seed(9.0, 10.0)] * count for count in (1, 2))
    assert results_table(one, stored[:1]).endswith('| 9.0 | 10.0 | 0 of 1, by -1.0 |'), 'one seed has no spread'
    assert results_table(two, stored).endswith('| 0 of 2, by -1.0 ± 0.0 |')


def test_claims_need_every_seed_and_twice_the_pooled_deviation() -> None:
    def seeds(trained: list[float], scratch: list[float]) -> list[dict[str, Any]]:
        pairs = zip(trained, scratch, strict=True)
        return [dict(accuracy={TRAINED: dict(top1=a), SCRATCH: dict(top1=b)}) for a, b in pairs]

    head = claims_table(seeds([1.0, 1.0], [2.0, 2.0]))
    assert head.count('\n') == 1, 'behind in every seed'
    row = '| classification, fine-tuned | top-1 % | pre-trained | 12.0 ± 1.0 | 9.0 ± 1.0 | 3 of 3, by +3.0 ± 0.0 |'
    assert claims_table(seeds([11.0, 12.0, 13.0], [8.0, 9.0, 10.0])) == f'{head}\n{row}'
    assert claims_table(seeds([11.0, 12.0, 13.0], [9.0, 10.0, 11.0])) == head, 'by no more than twice the deviation'
    assert claims_table(seeds([20.0, 20.1, 5.0], [5.0, 5.1, 5.2])) == head, 'one seed lost'


def run_cell(cell: dict, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; returns the value of its last expression."""
    *body, last = ast.parse(''.join(cell['source'])).body
    exec(compile(ast.Module(body, []), 'cell', 'exec'), names)
    return eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)


def test_every_cell_of_the_notebook_shows_something(demo_data: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """From the folder that MM_UMMAE_DEMO names, started in demo/ as Jupyter does; committed without outputs."""
    cells = json.loads((ROOT / 'demo' / 'reconstruction.ipynb').read_text())['cells']
    cells = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(cells) == 5 and not any(cell['outputs'] or cell['execution_count'] for cell in cells)
    monkeypatch.setenv('MM_UMMAE_DEMO', str(tmp_path))
    monkeypatch.chdir(ROOT / 'demo')
    run = tmp_path / 'seed0' / 'pretrain'
    with pytest.raises(FileNotFoundError, match=rf'{run} holds no finished pre-training: run .make'):
        run_cell(cells[0], {})
    run.mkdir(parents=True)
    config = read_config(PRETRAIN, **{'train_dataloader.dataset.data_root': demo_data / 'imagenet'})
    config.dump(run / PRETRAIN)
    Path(save_random(config, tmp_path)).rename(run / 'epoch_1.pth')
    (run / 'last_checkpoint').write_text('/somewhere/else/epoch_1.pth')  # the folder may have been moved
    names: dict[str, Any] = {}
    words, *images = [run_cell(cell, names) for cell in cells]
    assert words == f'UMMAE with UMSwin, 128 px, from {run}' and len(images) == 4
    assert all(isinstance(image, Image.Image) and len(np.unique(np.asarray(image))) > 100 for image in images)
    first, second, third = names['by_seed'].values()
    assert not any(torch.equal(a.hidden, b.hidden) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, third, strict=True):  # the same masks, other weights
        assert torch.equal(a.hidden, b.hidden) and not torch.equal(a.reconstruction, b.reconstruction)
    for samples in zip(*names['by_ratio'].values(), strict=True):
        assert [int(sample.hidden.sum()) for sample in samples] == [48, 52, 56]
        assert all(torch.equal(samples[0].unsampled, sample.unsampled) for sample in samples)
    assert names['nearest'].shape == (10, 5) and names['nearest'].max() < 20
