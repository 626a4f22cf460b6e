"""Ablations: every arm is what its name says, equal time is equal time, and the tables hold the numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from mmpretrain import get_model

from demo import ablations
from demo.ablations import ARMS, METRICS, ablation_table, pretrain_epochs, reconstruction_loss, run_arm, save_ablation_plot, seconds_per_step
from demo.tasks import PRETRAIN, PRETRAIN_SIMMIM
from demo.training import TrainingResult
from demo.make_data import make_demo_data
from mm_ummae.models import UMMAE, UMSimMIM

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'demo'


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = dict(num_pretrain=2, num_labelled_train=10, num_labelled_val=10, num_coco_train=2, num_coco_val=3)
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', **sizes, num_ade_train=2, num_ade_val=2)


def build(cfg: Config) -> UMMAE | UMSimMIM:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return get_model(cfg, pretrained=False, device='cpu')


def save_random(cfg: Config, path: Path) -> str:
    torch.manual_seed(0)
    model = build(cfg)
    model.head.pred.weight.data.normal_(std=0.05)
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def seed_results(shift: float) -> dict[str, dict[str, float]]:
    return {
        slug: {key: shift + 10 * row + column for column, key in enumerate(METRICS)} for row, slug in enumerate(ARMS)
    }


def test_arms_are_what_their_names_say() -> None:
    def value(slug: str, key: str) -> object:
        cfg = Config.fromfile(CONFIGS / ARMS[slug].config)
        options = DictAction('--o', 'o')
        cfg.merge_from_dict({key: options._parse_iterable(text) for key, text in map(split, ARMS[slug].options)})
        return getattr(build(cfg), key) if '.' not in key else build(cfg).neck.published_positions

    def split(option: str) -> list[str]:
        return option.split('=')

    assert value('um-mae', 'secondary_ratio') == 0.25 and value('um-mae', 'neck.published_positions') is False
    assert value('um-mae_published-positions', 'neck.published_positions') is True
    assert value('um-mae_sm-0', 'secondary_ratio') == 0
    assert value('um-mae_sm-0.5', 'secondary_ratio') == 0.5
    for slug in ('simmim_equal-epochs', 'simmim_equal-time'):
        assert value(slug, 'sampling') == 'random'
        assert isinstance(build(Config.fromfile(CONFIGS / ARMS[slug].config)), UMSimMIM)


def test_simmim_differs_from_um_mae_only_in_the_model() -> None:
    simmim, um_mae = (Config.fromfile(CONFIGS / name).to_dict() for name in (PRETRAIN_SIMMIM, PRETRAIN))
    assert {key for key in um_mae if um_mae[key] != simmim[key]} == {'model'}
    assert simmim['model']['data_preprocessor'] == um_mae['model']['data_preprocessor']
    for key in ('arch', 'img_size', 'window_size'):
        assert simmim['model']['backbone'][key] == um_mae['model']['backbone'][key]


def test_equal_time_is_whole_epochs_in_um_maes_time() -> None:
    seconds = {PRETRAIN: 1.0, PRETRAIN_SIMMIM: 2.4}
    epochs = {slug: pretrain_epochs(arm, 10, seconds) for slug, arm in ARMS.items()}
    assert epochs.pop('simmim_equal-time') == 4
    assert set(epochs.values()) == {10}
    assert pretrain_epochs(ARMS['simmim_equal-time'], 2, {PRETRAIN: 1.0, PRETRAIN_SIMMIM: 9.0}) == 1


def test_both_algorithms_are_timed() -> None:
    threads = torch.get_num_threads()
    seconds = seconds_per_step(CONFIGS, batch_size=2, repeats=1)
    assert set(seconds) == {PRETRAIN, PRETRAIN_SIMMIM} and min(seconds.values()) > 0
    assert torch.get_num_threads() == threads


def test_reconstruction_loss_is_repeatable_and_knows_the_arm(data: Path, tmp_path: Path) -> None:
    checkpoint = save_random(Config.fromfile(CONFIGS / PRETRAIN), tmp_path / 'model.pth')
    pictures = data / 'coco' / 'val2017'
    losses = {
        slug: [reconstruction_loss(CONFIGS / PRETRAIN, checkpoint, ARMS[slug].options, pictures) for _ in range(2)]
        for slug in list(ARMS)[:4]
    }
    assert all(first == second for first, second in losses.values())
    assert len({first for first, _ in losses.values()}) == 4, 'options had no effect'


def test_run_arm_points_every_run_at_its_data_and_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All settings of a run, with the trainings themselves replaced."""
    runs = []
    metrics = {'accuracy/top1': 60.0, 'coco/bbox_mAP': 0.123, 'coco/segm_mAP': 0.1}

    def train(title: str, script: Path, config: Path, work_dir: Path, options: list, *_: object) -> TrainingResult:
        assert script.is_file() and config.is_file()
        cfg = Config.fromfile(config)
        parse = DictAction('--o', 'o')._parse_iterable
        cfg.merge_from_dict({key: parse(text) for key, text in (option.split('=', 1) for option in options)})
        runs.append((work_dir.name, cfg))
        checkpoint = save_random(cfg, tmp_path / 'model.pth') if work_dir.name == 'pretrain' else ''
        return TrainingResult(7.0, 1.0, metrics, checkpoint)

    monkeypatch.setattr(ablations, 'run_training', train)
    monkeypatch.setattr(ablations, 'probe', lambda *_: dict(linear=50.0, knn=40.0))
    result = run_arm('um-mae_sm-0.5', 3, 10, tmp_path / 'arm', data, ROOT)
    assert result.pop('loss') > 0
    assert result == dict(seconds=7.0, linear=50.0, top1=60.0, box_ap=pytest.approx(12.3), mask_ap=pytest.approx(10.0))

    (name, pretrain), (_, classify), (_, detect) = runs
    assert name == 'pretrain' and pretrain.model.secondary_ratio == 0.5
    assert pretrain.train_cfg.max_epochs == 10 == pretrain.param_scheduler[1].end
    assert pretrain.param_scheduler[0].end == pretrain.param_scheduler[1].begin == 1
    assert pretrain.param_scheduler[1].T_max == 9
    for cfg, folder in ((pretrain, 'imagenet'), (classify, 'imagenet'), (detect, 'coco')):
        assert cfg.randomness.seed == 3
        assert Path(cfg.train_dataloader.dataset.data_root) == data / folder
    for cfg in (classify, detect):
        assert cfg.model.backbone.init_cfg.checkpoint == str(tmp_path / 'model.pth')
        assert Path(cfg.val_dataloader.dataset.data_root).is_dir()
    assert Path(detect.val_evaluator.ann_file).is_file()


def test_table_has_spreads_and_paired_differences() -> None:
    seeds = [seed_results(0.0), seed_results(1.0), seed_results(5.0)]
    seeds[2]['um-mae_sm-0']['top1'] += 3  # breaks the pairing in one seed
    table = ablation_table(seeds, dict.fromkeys(ARMS, 10))
    first, second = table.split('Difference from')
    assert '| UM-MAE, SM 0.25, aligned | 10 | 2.000 ± 2.646 | 3.0 ± 2.6 | 4.0 ± 2.6 | 5.0 ± 2.6 |' in first
    assert '| UM-MAE, positions as published | +10.000 ± 0.000 | +10.0 ± 0.0 | +10.0 ± 0.0 | +10.0 ± 0.0 |' in second
    assert '| UM-MAE, SM 0 | +20.000 ± 0.000 | +20.0 ± 0.0 | +21.0 ± 1.7 | +20.0 ± 0.0 |' in second
    simmim = next(line for line in second.splitlines() if line.startswith('| SimMIM (random), equal time'))
    assert simmim.split('|')[2].strip() == '–', 'losses of another kind must not be subtracted'


def test_plot_is_written(tmp_path: Path) -> None:
    path = save_ablation_plot([seed_results(0.0), seed_results(1.0)], tmp_path / 'folder' / 'plot.png')
    assert path.stat().st_size > 10_000


def test_what_was_not_measured_is_not_shown(tmp_path: Path) -> None:
    """In one seed missing is missing: a mean over fewer seeds would not compare with its neighbours."""
    seeds = [seed_results(0.0), seed_results(1.0)]
    del seeds[1]['um-mae_sm-0']['box_ap'], seeds[0]['simmim_equal-time']
    first, second = ablation_table(seeds, dict.fromkeys(ARMS, 10)).split('Difference from')
    for part, columns in ((first, 6), (second, 5)):
        rows = {row.split('|')[1].strip(): row.split('|')[2:-1] for row in part.splitlines() if row.startswith('| ')}
        assert rows['UM-MAE, SM 0'][-1].strip() == '–' and '±' in rows['UM-MAE, SM 0'][-2]
        assert [cell.strip() for cell in rows['SimMIM (random), equal time'][-4:]] == ['–'] * 4
        assert all(len(row) == columns - 1 for row in rows.values())
    assert save_ablation_plot(seeds, tmp_path / 'plot.png').is_file()


def test_tool_keeps_what_earlier_calls_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location('ablations_tool', ROOT / 'tools' / 'ablations.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(slug: str, seed: int, epochs: int, folder: Path, data: Path, root: Path, tasks: tuple) -> dict:
        assert folder == tmp_path / f'seed{seed}' / slug
        return dict(loss=1.0, linear=2.0) | ({'top1': 3.0} if 'classification' in tasks else {})

    monkeypatch.setattr(tool, 'run_arm', run)
    monkeypatch.setattr(tool, 'make_demo_data', lambda path: path)
    monkeypatch.setattr(tool, 'seconds_per_step', lambda _: {PRETRAIN: 1.0, PRETRAIN_SIMMIM: 2.0})
    common = ['--seeds', '0', '1', '--out', str(tmp_path), '--data', str(data)]
    tool.main([*common, '--tasks'])
    tool.main([*common, '--arms', 'um-mae', '--tasks', 'classification'])
    seeds = json.loads((tmp_path / 'ablations.json').read_text())['seeds']
    assert set(seeds) == {'0', '1'} and set(seeds['0']) == set(ARMS)
    assert seeds['1']['um-mae'] == dict(loss=1.0, linear=2.0, top1=3.0)
    assert 'top1' not in seeds['1']['um-mae_sm-0']
    assert (
        '| UM-MAE, SM 0.25, aligned | 10 | 1.000 ± 0.000 | 2.0 ± 0.0 | 3.0 ± 0.0 | – |'
        in (tmp_path / 'ablations.md').read_text()
    )
    with pytest.raises(ValueError, match=r'--epochs is 0, but at least one is needed'):
        tool.main([*common, '--epochs', '0'])
