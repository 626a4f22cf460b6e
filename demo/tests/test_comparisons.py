"""HTC++ against Mask R-CNN, and the ablations: equal conditions, and tables of the results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from demo import ablations, htcpp
from demo.ablations import ARMS, BASELINE, ablation_tables, pretrain_epochs, reconstruction_loss, save_ablation_plot
from demo.htcpp import DETECTORS, LossSummary, detector_table, equal_time, loss_table, save_loss_panels, summarise
from demo.report import results_table
from demo.tasks import PRETRAIN, PRETRAIN_SIMMIM, TASKS
from demo.timing import seconds_per_iteration
from demo.training import CONFIGS
from mm_ummae.apis import get_model

from .conftest import Run, read_config

ROOT = Path(__file__).parents[1]


def test_iterations_are_timed_on_one_thread(demo_data: Path) -> None:
    tasks = {DETECTORS['HTC++']: TASKS['Mask R-CNN'], PRETRAIN_SIMMIM: TASKS['classification']}
    configs = {name: read_config(name, task.data_options(demo_data)) for name, task in tasks.items()}
    for config in configs.values():
        config.train_dataloader.update(batch_size=2, num_workers=1, pin_memory=False)
    threads = torch.get_num_threads()
    seconds = seconds_per_iteration(configs, rounds=1)
    assert set(seconds) == set(tasks) and min(seconds.values()) > 0 and torch.get_num_threads() == threads
    assert all(config.train_dataloader.num_workers == 1 for config in configs.values()), 'the configs changed'


# HTC++


def test_detectors_get_iterations_for_equal_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {'HTC++': 1.8, 'Mask R-CNN': 0.6}
    monkeypatch.setattr(htcpp, 'seconds_per_iteration', lambda configs: seconds)
    record = tmp_path / 'new' / 'timing.json'
    assert equal_time(200, tmp_path, record, False) == ({'HTC++': 200, 'Mask R-CNN': 600}, seconds)
    monkeypatch.setattr(htcpp, 'seconds_per_iteration', lambda configs: dict.fromkeys(configs, 1.0))
    assert equal_time(200, tmp_path, record, False)[0]['Mask R-CNN'] == 600, 'finished runs would not fit'
    assert equal_time(200, tmp_path, record, True)[0]['Mask R-CNN'] == 200


def test_htcpp(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both detectors of a seed start from the same weights; the schedule ends with the training."""
    monkeypatch.setattr(htcpp, 'seconds_per_iteration', lambda configs: {'HTC++': 1.0, 'Mask R-CNN': 0.5})
    out = tmp_path / 'out'
    htcpp.main(['--seeds', '0', '4', '--iterations', '20', '--out', str(out), '--checkpoint', 'start{seed}.pth'])
    steps = ('HTC++', 'HTC++, augmented test', 'Mask R-CNN')
    assert [run.title for run in runs] == [f'seed {seed}, {name}' for seed in (0, 4) for name in steps]
    assert all(
        run.force and run.threads == 1 and f'seed{run.config.randomness.seed}' in run.work_dir.parts for run in runs
    )
    for seed, (htc, augmented, mask_rcnn) in zip((0, 4), (runs[:3], runs[3:]), strict=True):
        assert (augmented.checkpoint, augmented.flags) == ('last.pth', ('--tta',))
        for run, iterations in ((htc, 20), (mask_rcnn, 40)):
            start = dict(type='Pretrained', checkpoint=str(Path(f'start{seed}.pth').resolve()), prefix='backbone')
            assert run.config.model.backbone.init_cfg == start
            warmup, cosine = run.config.param_scheduler
            assert run.config.train_cfg.max_iters == run.config.train_cfg.val_interval == cosine.end == iterations
            assert warmup.end == cosine.begin == htcpp.WARMUP and not cosine.get('T_max')
    text = (out / 'report.md').read_text()
    assert text in capsys.readouterr().out
    assert '| HTC++, augmented test | 20 |  | 30.0 ± 0.0 | 20.0 ± 0.0 |' in text and '| loss_rpn_cls | 1.000 |' in text
    report = json.loads((out / 'report.json').read_text())
    assert report['seconds_per_iteration']['HTC++'] == 1.0 and len(report['seeds']) == 2
    with pytest.raises(ValueError, match='--iterations is 15, but it must be above 15, the length of the warm-up'):
        htcpp.main(['--iterations', '15'])


def test_htcpp_starts_from_a_pretraining(runs: list[Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(htcpp, 'seconds_per_iteration', lambda configs: dict.fromkeys(configs, 1.0))
    htcpp.main(['--resume', '--out', str(tmp_path / 'out')])
    checkpoints = [run.config.model.backbone.init_cfg.checkpoint for run in runs[1:]]
    assert runs[0].title == 'seed 0, pre-training' and all(Path(path).is_file() for path in checkpoints)
    assert len(set(checkpoints)) == 1 and not any(run.force for run in runs)


def test_losses(tmp_path: Path) -> None:
    assert summarise([3.0, 5.0, 1.0]) == LossSummary(3.0, 5.0, 1.0)
    assert summarise([1.0, 3.0] + 8 * [4.0] + 8 * [1.0] + [0.0, 1.0]) == LossSummary(2.0, 4.0, 0.5)  # two at a time
    rows = loss_table(dict(falling=[2.0, 1.0, 0.5])).splitlines()[2:]
    assert rows == ['| falling | 2.000 | 2.000 | 0.500 |', '', 'Each loss ends below its highest tenth.']
    rising = loss_table(dict(falling=[2.0, 1.0], rising=[1.0, 2.0], flat=[1.0, 1.0]))
    assert rising.splitlines()[-1] == 'At their highest at the end: rising, flat.'
    four, five = (
        np.asarray(
            Image.open(save_loss_panels({f'loss{i}': [2.0, 1.0] for i in range(n)}, tmp_path / 'new' / f'{n}.png'))
        )
        for n in (4, 5)
    )
    assert five.shape[1] == four.shape[1] and five.shape[0] == 2 * four.shape[0]
    dark = (five[four.shape[0] :, :, :3].max(-1) < 64).sum(0)  # axes only in the first panel of the second row
    assert dark[: len(dark) // 4].sum() > 100 and dark[len(dark) // 4 :].sum() == 0


# Ablations


def test_arms_are_what_their_names_say() -> None:
    def model(key: str) -> Any:
        return get_model(read_config(ARMS[key].config, dict(ARMS[key].options)))

    assert model(BASELINE).secondary_ratio == 0.25 and not model(BASELINE).neck.published_positions
    assert model('um-mae_published-positions').neck.published_positions
    assert model('um-mae_sm-0').secondary_ratio == 0 and model('um-mae_sm-0.5').secondary_ratio == 0.5
    assert type(model('simmim_equal-time')).__name__ == 'UMSimMIM' and model('simmim_equal-epochs').sampling == 'random'
    simmim, um_mae = (Config.fromfile(CONFIGS / name).to_dict() for name in (PRETRAIN_SIMMIM, PRETRAIN))
    assert {key for key in um_mae if um_mae[key] != simmim[key]} == {'model'}
    assert all(simmim['model']['backbone'][key] == um_mae['model']['backbone'][key] for key in ('arch', 'img_size'))


def test_equal_time_is_whole_epochs_in_the_time_of_um_mae() -> None:
    seconds = {PRETRAIN: 1.0, PRETRAIN_SIMMIM: 2.4}
    epochs = {key: pretrain_epochs(arm, 10, seconds) for key, arm in ARMS.items()}
    assert epochs.pop('simmim_equal-time') == 4 and set(epochs.values()) == {10}
    assert pretrain_epochs(ARMS['simmim_equal-time'], 1, seconds) == 1


def test_reconstruction_loss_is_repeatable_and_depends_on_the_arm(
    demo_data: Path, save_random: Callable[[Config], str]
) -> None:
    checkpoint = save_random(Config.fromfile(CONFIGS / PRETRAIN))
    arms = [arm for arm in ARMS.values() if arm.config == PRETRAIN]
    images = demo_data / 'coco' / 'val2017'
    first, second = ([reconstruction_loss(arm, checkpoint, images) for arm in arms] for _ in range(2))
    assert first == second and len(set(first)) == len(arms) == 4


def test_ablations(runs: list[Run], demo_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every run of an arm has its data, seed and start; a second call keeps what the first one measured."""
    monkeypatch.setattr(ablations, 'seconds_per_iteration', lambda configs: dict.fromkeys(configs, 1.0))
    common = ['--seeds', '3', '--out', str(tmp_path / 'out'), '--arms', 'um-mae_sm-0.5']
    ablations.main([*common, '--tasks', 'classification'])
    monkeypatch.setattr(ablations, 'seconds_per_iteration', None)  # would fail
    pretraining, classification = (run.config for run in runs)
    assert pretraining.model.secondary_ratio == 0.5 and pretraining.train_cfg.max_epochs == 10
    warmup, cosine = pretraining.param_scheduler
    assert warmup.end == cosine.begin == 1 and cosine.end == 10 and not cosine.get('T_max')
    assert Path(pretraining.train_dataloader.dataset.data_root) == demo_data / 'imagenet'
    assert Path(classification.val_dataloader.dataset.data_root) == demo_data / 'imagenet'
    assert Path(classification.model.backbone.init_cfg.checkpoint).is_file()
    assert all(run.config.randomness.seed == 3 and not run.force and run.threads == 1 for run in runs)

    (tmp_path / 'out' / 'seed3' / 'um-mae_sm-0.5' / 'pretrain').rename(tmp_path / 'kept')
    ablations.main([*common, '--tasks', 'Mask R-CNN'])
    results = json.loads((tmp_path / 'out' / 'ablations.json').read_text())
    measured = results['seeds']['3']['um-mae_sm-0.5']
    assert measured.pop('loss') > 0 and results['epochs']['um-mae_sm-0.5'] == 10
    assert measured == dict(seconds=7.0, linear=50.0, top1=60.0, box_ap=30.0, mask_ap=20.0)
    assert '| UM-MAE, SM 0.5 | 10 | ' in (tmp_path / 'out' / 'ablations.md').read_text()
    assert (tmp_path / 'out' / 'ablations.png').is_file()
    with pytest.raises(ValueError, match=r'--epochs is 0, but it must be at least 1'):
        ablations.main([*common, '--epochs', '0'])


def test_ablation_tables_have_spreads_and_differences_by_seed(tmp_path: Path) -> None:
    """What is missing in one seed is missing: a mean over fewer seeds would not compare."""
    seeds = [
        {key: {metric: shift + 10 * i + j for j, metric in enumerate(ablations.METRICS)} for i, key in enumerate(ARMS)}
        for shift in (0.0, 1.0, 5.0)
    ]
    seeds[2]['um-mae_sm-0']['top1'] += 3
    del seeds[1]['um-mae_sm-0.5']['box_ap'], seeds[0]['simmim_equal-time']
    first, second = ablation_tables(seeds, dict.fromkeys(ARMS, 10)).split('Difference from')
    assert '| UM-MAE, SM 0.25, aligned | 10 | 2.000 ± 2.646 | 3.0 ± 2.6 | 4.0 ± 2.6 | 5.0 ± 2.6 |' in first
    assert '| UM-MAE, SM 0.5 | 10 | 32.000 ± 2.646 | 33.0 ± 2.6 | 34.0 ± 2.6 | – |' in first
    assert '| SimMIM (random), equal time | 10 | – | – | – | – |' in first
    assert '| UM-MAE, SM 0 | +20.000 ± 0.000 | +20.0 ± 0.0 | +21.0 ± 1.7 | +20.0 ± 0.0 |' in second
    assert '| SimMIM (random), equal epochs | – | +40.0 ± 0.0 | +40.0 ± 0.0 | +40.0 ± 0.0 |' in second
    assert save_ablation_plot(seeds, tmp_path / 'new' / 'plot.png').stat().st_size > 10_000


def test_the_page_has_the_tables_of_the_result_files() -> None:
    page = (ROOT / 'README.md').read_text()
    um_mae, lomar, detectors, arms = (
        json.loads((ROOT / 'results' / f'{name}.json').read_text()) for name in ('ummae', 'lomar', 'htcpp', 'ablations')
    )
    assert results_table(um_mae['seeds']) in page and results_table(lomar['seeds']) in page
    assert all(
        line in page
        for seeds in (detectors['short'], detectors['long'])
        for line in detector_table(seeds['seeds']).splitlines()[2:-2]
    )
    assert ablation_tables(list(arms['seeds'].values()), arms['epochs']) in page
