"""The demos of both methods: what is trained from what, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from demo import chain, probe
from demo.__main__ import DEMO
from demo.chain import Demo, run_demo, save_prediction_sheet
from demo.lomar import DEMO as LOMAR
from demo.report import ROWS, STARTS, cost_table, results_table, spread
from demo.training import CONFIGS
from mm_ummae.visualization.sheets import WINDOW_COLOURS

from .conftest import Run

DEMOS = pytest.mark.parametrize('demo', [DEMO, LOMAR], ids=['um-mae', 'lomar'])


@DEMOS
def test_starts_differ_in_their_weights_only(
    demo: Demo, runs: list[Run], demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both seeds; and the report has every number, and names files that exist."""
    out = tmp_path / 'out'
    run_demo(demo, '', ['--seeds', '2', '--out', str(out), '--data', str(tmp_path), '--resume'])
    trainings = {run.title: run for run in runs}
    assert len(runs) == len(trainings) == len({run.work_dir for run in runs}) == 2 * (1 + 2 * len(demo.tasks))
    for seed in (0, 1):
        pretraining = trainings[f'seed {seed}, pre-training'].config
        assert Path(pretraining.train_dataloader.dataset.data_root) == demo_data / 'imagenet'
        for name, task in demo.tasks.items():
            pair = [trainings[f'seed {seed}, {name}, {start}'] for start in STARTS]
            assert all(run.work_dir.parent == out / f'seed{seed}' and run.threads >= 1 for run in pair)
            trained, scratch = (run.config for run in pair)
            for split in ('train', 'val', 'test'):
                assert Path(trained[f'{split}_dataloader'].dataset.data_root) == demo_data / task.data
            if task.data == 'coco':
                assert (
                    Path(trained.val_evaluator.ann_file).is_file() and trained.test_evaluator == trained.val_evaluator
                )
            checkpoint = tmp_path / f'{pretraining.model.type}-{seed}.pth'
            assert trained.model.backbone.init_cfg.checkpoint == str(checkpoint) and checkpoint.is_file()
            assert scratch.model.backbone.init_cfg is None and scratch.randomness.seed == seed
            trained.model.backbone.init_cfg = None
            assert trained.to_dict() == scratch.to_dict()
    assert not any(run.force for run in runs)

    text = (out / 'report.md').read_text()
    assert text in capsys.readouterr().out
    assert '| linear probe, frozen features | top-1 % | 50.0 ± 0.0 | 40.0 ± 0.0 | 2 of 2 |' in text
    assert '| classification, fine-tuned | top-1 % | 60.0 ± 0.0 | 30.0 ± 0.0 | 2 of 2 |' in text
    assert ('| Mask R-CNN | box AP | 30.0 ± 0.0 | 15.0 ± 0.0 | 2 of 2 |' in text) == ('UperNet' in demo.tasks)
    assert '| pre-training | 7 | 1.50 |' in text
    results = json.loads((out / 'report.json').read_text())
    assert [seed['seed'] for seed in results['seeds']] == [0, 1] and {'version', 'pytorch', 'date'} < results.keys()
    keys = {'linear', 'knn'}.union(*(task.metrics for task in demo.tasks.values()))
    assert all(results['seeds'][1]['accuracy'][start].keys() == keys for start in STARTS)
    files = [Path(line.split('`')[1]) for line in text.splitlines() if line.startswith('*')]
    assert all(file.exists() for file in files)
    sheet = np.asarray(Image.open(out / 'seed0' / 'reconstruction.png'))
    has_windows = [(sheet == colour).all(2).any() for colour in WINDOW_COLOURS]
    assert has_windows == 4 * [demo is LOMAR]


@DEMOS
def test_smoke_is_small(demo: Demo, runs: list[Run], monkeypatch: pytest.MonkeyPatch, demo_data: Path) -> None:
    sizes: dict[str, Any] = {}
    monkeypatch.setattr(chain, 'make_demo_data', lambda path, **kwargs: (sizes.update(kwargs, path=path), demo_data)[1])
    monkeypatch.chdir(demo_data.parent)
    run_demo(demo, '', ['--size', 'smoke'])
    pretraining, *finetunings = runs
    assert sizes['path'] == Path('data/demo-smoke').resolve()
    assert pretraining.work_dir == Path(f'{demo.out}-smoke/seed0/pretrain').resolve()
    assert sizes['num_pretrain'] >= 2 * pretraining.config.train_dataloader.batch_size
    assert pretraining.config.train_cfg.max_epochs == pretraining.config.param_scheduler[0].end == 1
    assert all(run.config.train_cfg.max_iters == run.config.train_cfg.val_interval == 4 for run in finetunings)
    assert all(run.force for run in runs)


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r'--seeds is 0, but it must be at least 1'):
        run_demo(DEMO, '', ['--seeds', '0'])
    with pytest.raises(SystemExit):
        run_demo(DEMO, '', ['--size', 'huge'])
    assert "invalid choice: 'huge'" in capsys.readouterr().err


@DEMOS
def test_finetuning_loads_the_whole_pretrained_encoder(
    demo: Demo, save_random: Callable[[Config], str], tmp_path: Path
) -> None:
    """Every weight of the backbone; by default from the last checkpoint of the pre-training config."""
    pretraining = Config.fromfile(CONFIGS / demo.pretraining)
    checkpoint = save_random(pretraining)
    weights = torch.load(checkpoint)['state_dict']
    last = f'work_dirs/{Path(demo.pretraining).stem}/epoch_{pretraining.train_cfg.max_epochs}.pth'
    assert pretraining.train_cfg.max_epochs % pretraining.default_hooks.checkpoint.interval == 0
    for task in demo.tasks.values():
        config = Config.fromfile(CONFIGS / task.config)
        assert config.model.backbone.init_cfg.checkpoint == last
        config.model.backbone.init_cfg.checkpoint = checkpoint
        with DefaultScope.overwrite_default_scope(config.default_scope):
            backbone = MODELS.build(config.model.backbone)
        backbone.init_weights()
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, weights.get(f'backbone.{name}', value)), name
        missing = {name for name in backbone.state_dict() if f'backbone.{name}' not in weights}
        assert all(name.startswith('norm') for name in missing), 'norms of other outputs are new'


def test_lomar_has_the_data_of_um_mae_and_the_same_classification() -> None:
    ours, theirs = (Config.fromfile(CONFIGS / demo.pretraining).train_dataloader for demo in (LOMAR, DEMO))
    assert ours.dataset == theirs.dataset
    tasks = (demo.tasks['classification'].config for demo in (LOMAR, DEMO))
    ours, theirs = (Config.fromfile(CONFIGS / name).to_dict() for name in tasks)
    assert {key for key in ours.keys() | theirs.keys() if ours[key] != theirs[key]} == {'model', 'pretrained'}


def test_predictions_of_the_newest_run_are_shown(tmp_path: Path) -> None:
    for time, colour in (('20250101', 0), ('20260101', 200)):
        folder = tmp_path / time / 'vis_data' / 'vis_image'
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((128, 256, 3), colour, np.uint8)).save(folder / f'{i}.png')
    sheet = np.asarray(Image.open(save_prediction_sheet(tmp_path, tmp_path / 'sheet.png')))
    assert 4 * 256 < sheet.shape[1] < 5 * 256 and 2 * 256 < sheet.shape[0] < 3 * 256
    assert (sheet == 200).all(2).sum() >= 6 * 256**2 > 3 * (sheet == 0).all(2).sum()
    (tmp_path / '20260102' / 'vis_data').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='20260102/vis_data has no images of predictions in vis_image'):
        save_prediction_sheet(tmp_path, tmp_path / 'sheet.png')


# Tables


def seed_results(seed: int, gain: float) -> dict:
    scratch = {key: 10.0 * i + seed for i, key in enumerate(ROWS)}
    accuracy = dict(zip(STARTS, ({key: value + gain for key, value in scratch.items()}, scratch), strict=True))
    return dict(accuracy=accuracy, cost={'pre-training': dict(seconds=100.4 + seed, peak_memory_gb=1.234)})


def test_tables() -> None:
    """Mean and sample deviation of 1, 3, 5 less 1; a tie is no win."""
    one = results_table([seed_results(0, 2.5)])
    assert one.splitlines()[5:7] == [
        '| Mask R-CNN | box AP | 32.5 | 30.0 | 1 of 1 |',
        '| Mask R-CNN | mask AP | 42.5 | 40.0 | 1 of 1 |',
    ]
    three = [seed_results(1, 0.0), seed_results(3, -2.0), seed_results(5, 4.0)]
    row = '| linear probe, frozen features | top-1 % | 3.7 ± 4.6 | 3.0 ± 2.0 | 1 of 3 |'
    assert results_table(three).splitlines()[2] == row and len(results_table(three).splitlines()) == 2 + len(ROWS)
    assert cost_table(three).splitlines()[2:] == ['| pre-training | 103 | 1.23 |']
    assert spread([]) == '–' and spread([1.0, 2.0], 2, '+') == '+1.50 ± 0.71'


# Probe


def test_labels_are_the_sorted_folders(demo_data: Path, tmp_path: Path) -> None:
    images, labels = probe.load_labelled(demo_data / 'imagenet' / 'train')
    assert images.shape == (20, 3, 128, 128) and labels.tolist() == sorted(2 * list(range(10)))
    files = sorted((demo_data / 'imagenet' / 'train').glob('*/*.jpg'))
    pixels = (np.asarray(Image.open(files[7]).convert('RGB')) - np.array(probe.MEAN)) / np.array(probe.STD)
    assert np.allclose(images[7].permute(1, 2, 0).numpy(), pixels, atol=1e-4)
    with pytest.raises(FileNotFoundError, match=r'has no images <class>/\*\.jpg'):
        probe.load_labelled(tmp_path)


@DEMOS
def test_probe(
    demo: Demo, save_random: Callable[[Config], str], demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the mean of the first map, with the weights of the checkpoint or random ones of the seed."""
    seen: list[dict[str, torch.Tensor]] = []

    def record(backbone: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
        features = frozen_features(backbone, images, batch_size=3)
        with torch.no_grad():
            assert np.allclose(features, backbone(images)[0].mean((2, 3)).numpy(), atol=1e-5)
        seen.append({name: value.clone() for name, value in backbone.state_dict().items()})
        return features

    frozen_features = probe.frozen_features
    monkeypatch.setattr(probe, 'frozen_features', record)
    checkpoint = save_random(Config.fromfile(CONFIGS / demo.pretraining))
    first, again, random = (
        probe.probe(demo.probed, path, demo_data / 'imagenet', seed=3) for path in (checkpoint, checkpoint, None)
    )
    assert first == again and first.keys() == random.keys() == {'linear', 'knn'}
    assert all(0 <= value <= 100 and round(value / 10, 6).is_integer() for value in first.values())
    weights = torch.load(checkpoint)['state_dict']
    assert all(torch.equal(value, weights[f'backbone.{name}']) for name, value in seen[0].items())
    assert not all(torch.equal(value, weights[f'backbone.{name}']) for name, value in seen[-1].items())
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth'):
        probe.probe(demo.probed, str(tmp_path / 'nowhere.pth'), demo_data / 'imagenet', seed=0)
