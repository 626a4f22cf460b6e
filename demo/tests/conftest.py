"""Fixtures of the demo's tests: small data, and runs that are recorded instead of started."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from PIL import Image

from demo import ablations, chain, htcpp
from demo.training import CONFIGS, TrainingResult
from mm_ummae.apis import get_model
from tests.conftest import demo_data, no_default_scope

__all__ = ['demo_data', 'no_default_scope']  # fixtures

METRICS = {'accuracy/top1': 60.0, 'mIoU': 15.0, 'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.2}
SCALARS = [dict(step=step, lr=0.1, loss=4.0 / step, loss_rpn_cls=1.0 / step) for step in range(1, 11)]


class Run(NamedTuple):
    """A run that was asked for."""

    title: str
    config: Config
    work_dir: Path
    force: bool
    threads: int | None = None
    checkpoint: str = ''
    flags: tuple[str, ...] = ()


def read_config(name: str, options: dict[str, Any]) -> Config:
    """A config with options, as ``--cfg-options`` parses them."""
    config = Config.fromfile(CONFIGS / name)
    config.merge_from_dict({key: DictAction._parse_iterable(str(value)) for key, value in options.items()})
    return config


_read = cache(Config.fromfile)  # bases of MMDetection take seconds


@pytest.fixture(autouse=True)
def cached_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, 'fromfile', lambda path: copy.deepcopy(_read(str(path))))


@pytest.fixture
def save_random(tmp_path: Path) -> Callable[[Config], str]:
    """Saves a checkpoint of random weights of a pre-training config; returns its path."""

    def save(config: Config) -> str:
        torch.manual_seed(0)
        model = get_model(config, pretrained=False)
        model.head.pred.weight.data.normal_(std=0.05)
        path = tmp_path / f'{config.model.type}-{config.randomness.get("seed")}.pth'
        torch.save(dict(state_dict=model.state_dict()), path)
        return str(path)

    return save


@pytest.fixture
def runs(
    monkeypatch: pytest.MonkeyPatch, demo_data: Path, tmp_path: Path, save_random: Callable[[Config], str]
) -> list[Run]:
    """Runs in the order they were asked for. They leave random checkpoints; metrics from scratch are halved."""
    found: list[Run] = []
    scalars = tmp_path / 'scalars.json'
    scalars.write_text('\n'.join(json.dumps(line) for line in [*SCALARS, METRICS]))

    def train(
        title: str, config: str, work_dir: Path, options: dict, force: bool = False, threads: int | None = None
    ) -> TrainingResult:
        cfg = read_config(config, options)
        found.append(Run(title, cfg, work_dir, force, threads))
        folder = work_dir / '20260101' / 'vis_data' / 'vis_image'
        folder.mkdir(parents=True)
        for i in range(3):  # ground truth and prediction side by side
            Image.fromarray(np.full((128, 256, 3), 50 * i, np.uint8)).save(folder / f'{i}.png')
        checkpoint = save_random(cfg) if 'pre-training' in title else 'last.pth'
        factor = 0.5 if title.endswith('scratch') else 1
        metrics = {name: factor * value for name, value in METRICS.items()}
        return TrainingResult(7.0, 1.5, metrics, checkpoint, str(scalars))

    def evaluate(
        title: str, config: str, checkpoint: str, work_dir: Path, options: dict, flags: list[str], force: bool
    ) -> dict:
        found.append(Run(title, read_config(config, options), work_dir, force, 1, checkpoint, tuple(flags)))
        return METRICS

    for module in (ablations, chain, htcpp):
        monkeypatch.setattr(module, 'run_training', train)
        monkeypatch.setattr(module, 'make_demo_data', lambda path: demo_data)
    for module in (ablations, chain):
        monkeypatch.setattr(
            module, 'probe', lambda backbone, weights, *_: dict(linear=50.0 if weights else 40.0, knn=30.0)
        )
    monkeypatch.setattr(htcpp, 'run_test', evaluate)
    return found
