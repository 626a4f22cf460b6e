"""Measurements with stock networks: arms, what the classes of the hosts load, sets of photographs, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from demo import networks, stock_swin
from demo.images import PHOTOGRAPH_CLASSES
from demo.tasks import TASKS
from demo.training import TrainingResult

from .conftest import read_config


def parsed(text: str, folder: Path) -> Config:
    """From a file of its own, since configs are cached by path."""
    path = folder / f'config{len(list(folder.iterdir()))}.py'
    path.write_text(text)
    return Config.fromfile(path)


def built(text: str, folder: Path) -> nn.Module:
    config = parsed(text, folder)
    if 'data_preprocessor' in config:  # the runner puts it into the model
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


@pytest.mark.parametrize('key', networks.ARMS)
def test_an_arm_is_what_its_name_says(key: str, tmp_path: Path) -> None:
    arm = networks.ARMS[key]
    model = built(networks.pretraining_config(arm), tmp_path)
    backbone = model.backbone
    assert type(model).__name__ == ('UMSimMIM' if 'SimMIM' in arm.name else 'UMMAE')
    assert backbone.true_positions == ('true' in arm.name) and backbone.img_size == (arm.size, arm.size)
    assert type(backbone.network).__name__ == arm.network['type'].partition('.')[2]
    loss = model.loss(torch.randn(1, 3, 128, 128))['loss']
    assert loss.isfinite()


@pytest.mark.parametrize('name', TASKS)
def test_the_class_of_the_host_starts_from_the_file(name: str, tmp_path: Path) -> None:
    """Every tensor, with the host's own ``init_cfg``; from scratch the same model without it."""
    source = built(networks.pretraining_config(networks.ARMS['swin_compact']), tmp_path)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'epoch_10.pth')
    text = stock_swin.fine_tuning_config(name, TASKS[name], str(tmp_path / 'epoch_10.pth'))
    model = built(text, tmp_path)
    host = {'classification': 'mmpretrain', 'Mask R-CNN': 'mmdet', 'UperNet': 'mmseg'}[name]
    assert type(model.backbone).__module__.startswith(f'{host}.') and not isinstance(model.backbone, type(source))
    model.backbone.init_weights()
    expected, state = source.backbone.state_dict(), model.backbone.state_dict()
    assert len(state) > 90 and all(torch.equal(value, expected[key]) for key, value in state.items())
    text = stock_swin.fine_tuning_config(name, TASKS[name], None)
    scratch = built(text, tmp_path)
    assert scratch.backbone.init_cfg is None and scratch.state_dict().keys() == model.state_dict().keys()
    assert parsed(text, tmp_path).optim_wrapper == read_config(TASKS[name].config).optim_wrapper


def test_sets_share_no_photograph(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'data'
    root.mkdir()
    (root / 'imagenet').symlink_to(demo_data / 'imagenet')
    monkeypatch.setattr(stock_swin, 'NUM_CROPS', 5)
    drawn: list[tuple[int, str]] = []
    crop = stock_swin.crop_photograph

    def record(rng: np.random.Generator, index: int, split: str, *rest: Any) -> tuple:
        drawn.append((index, split))
        return crop(rng, index, split, *rest)

    monkeypatch.setattr(stock_swin, 'crop_photograph', record)
    folder = stock_swin.write_sets(root)
    assert drawn == [(index, 'train') for index in range(10)]
    assert [len(list((folder / name).glob('*.jpg'))) for name in stock_swin.SETS] == [5, 5]
    classes = sorted(path.name for path in (folder / 'val').iterdir())
    assert classes == list(PHOTOGRAPH_CLASSES[5:]) and all((folder / 'train' / name).exists() for name in classes)
    assert stock_swin.write_sets(root) == folder  # again


def test_a_seed(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each run is given, and where the numbers of the tables come from."""
    ran: dict[str, dict[str, Any]] = {}

    def run(title: str, config: str, folder: Path, options: dict[str, Any], threads: int) -> TrainingResult:
        ran[title] = {**options, 'config': Path(config).read_text()}
        metrics = {'accuracy/top1': 50.0, 'coco/bbox_mAP': 0.2, 'coco/segm_mAP': 0.1, 'mIoU': 20.0, 'loss': 0.7}
        return TrainingResult(1.0, 1.0, metrics, f'{folder}/last.pth')

    probed: list[tuple[str | None, str]] = []

    def accuracy(arm: networks.Arm, checkpoint: str | None, data: Path, seed: int) -> dict[str, float]:
        probed.append((checkpoint, data.name))
        return dict(linear=60.0 + len(probed), knn=50.0, linear_32=40.0, knn_32=30.0)

    for module in (networks, stock_swin):
        monkeypatch.setattr(module, 'run_training', run)
    monkeypatch.setattr(stock_swin, 'frozen_accuracy', accuracy)
    seconds = {stock_swin.UM_MAE: 1.0, stock_swin.SIMMIM: 2.5}
    monkeypatch.setattr(stock_swin, 'seconds_per_iteration', lambda configs: {key: seconds[key] for key in configs})
    monkeypatch.setattr(stock_swin, 'write_sets', lambda data: data / 'sets')
    result = stock_swin.run_seed(3, 10, tmp_path / 'out', tmp_path / 'networks', demo_data)

    assert all(options['randomness.seed'] == 3 for options in ran.values())
    assert ran['seed 3, SimMIM']['train_cfg.max_epochs'] == result['simmim_epochs'] == 4
    start = f"checkpoint': '{tmp_path}/networks/seed3/{stock_swin.UM_MAE}/pretrain/last.pth'"
    tuned = {title: run['config'] for title, run in ran.items() if any(name in title for name in TASKS)}
    assert len(tuned) == 7 and all((start in text) == ('um-mae' in title) for title, text in tuned.items())
    first, fresh, continued = (ran[f'seed 3, {name}'] for name in stock_swin.CONTINUED.values())
    prefixes = [run['train_dataloader.dataset.data_prefix'] for run in (first, fresh, continued)]
    assert prefixes == ['first', 'second', 'second']
    assert continued['model.backbone.init_cfg.checkpoint'] == f'{tmp_path}/out/seed3/first/pretrain/last.pth'
    assert 'model.backbone.init_cfg.checkpoint' not in fresh
    assert [name for _, name in probed] == 3 * ['imagenet'] + 3 * ['sets']
    metrics = dict(top1=50.0, box_ap=20.0, mask_ap=10.0, miou=20.0)
    assert result['um-mae'] == dict(linear=62.0, knn=50.0, linear_32=40.0, knn_32=30.0) | metrics
    text = stock_swin.starts_table([result])
    assert '| UM-MAE | 62.0 | 50.0 | 50.0 | 20.0 | 10.0 | 20.0 |' in text
    assert '| SimMIM in equal time | 63.0 | 50.0 | 50.0 | – | – | – |' in text
    assert '| on the first set, continued on the second | 66.0 | 50.0 |' in stock_swin.continued_table([result])


def test_table_of_networks() -> None:
    random = dict(linear=60.0, knn=50.0, linear_32=40.0, knn_32=30.0)
    seeds = [dict(loss=0.7, random=random, trained={k: v + 5 for k, v in random.items()})]
    row = '| PVT v2 | 1 | 0.700 | 60.0 -> 65.0 | 50.0 -> 55.0 | 40.0 -> 45.0 | 30.0 -> 35.0 |'
    assert row in networks.table({'pvt-v2': seeds})
