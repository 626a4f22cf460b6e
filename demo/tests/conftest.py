"""Fixtures of the demo's tests: small data, and runs that are recorded instead of started."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from PIL import Image

from demo import ablations, chain, htcpp, training
from mm_ummae.apis import get_model
from tests.conftest import demo_data, no_default_scope

__all__ = ['demo_data', 'no_default_scope']  # fixtures

Runs = list[SimpleNamespace]
METRICS = {'accuracy/top1': 60.0, 'mIoU': 15.0, 'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.2}
SCALARS = [dict(step=step, lr=0.1, loss=4.0 / step, loss_rpn_cls=1.0 / step) for step in range(1, 11)]
_read = cache(Config.fromfile)  # bases of MMDetection take seconds


def read_config(name: str, **options: Any) -> Config:
    """A config with options, as ``--cfg-options`` parses them."""
    config = Config.fromfile(training.CONFIGS / name)
    config.merge_from_dict({key: DictAction._parse_iterable(str(value)) for key, value in options.items()})
    return config


def save_random(config: Config, folder: Path) -> str:
    """Save a checkpoint of random weights of a pre-training config; returns its path."""
    torch.manual_seed(0)
    model = get_model(config, pretrained=False)
    model.head.pred.weight.data.normal_(std=0.05)
    path = folder / f'{config.model.type}-{config.randomness.get("seed")}.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture(autouse=True)
def cached_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, 'fromfile', lambda path: copy.deepcopy(_read(str(path))))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, demo_data: Path, tmp_path: Path) -> Runs:
    """Processes in the order they would be started. They leave random checkpoints; metrics from scratch are halved."""
    found: Runs = []

    def run(title: str, command: list[str], log: Path, threads: int) -> tuple[float, float]:
        config = read_config(command[2], **dict(word.split('=', 1) for word in command if '=' in word))
        found.append(SimpleNamespace(title=title, command=command, config=config, work_dir=log.parent, threads=threads))
        factor = 0.5 if title.endswith('scratch') else 1
        metrics = {name: factor * value for name, value in METRICS.items()}
        for time, value, records in (('20250101', 0, []), ('20260101', 200, [*SCALARS, metrics])):
            folder = log.parent / time / 'vis_data'
            (folder / 'vis_image').mkdir(parents=True, exist_ok=True)
            for i in range(3):  # ground truth and prediction side by side
                Image.fromarray(np.full((128, 256, 3), value, np.uint8)).save(folder / 'vis_image' / f'{i}.png')
            (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))
            (folder.parent / 'test.json').write_text(json.dumps(metrics if records else {}))
        checkpoint = save_random(config, tmp_path) if 'pre-training' in title else 'last.pth'
        (log.parent / 'last_checkpoint').write_text(f'{checkpoint}\n')
        return 7.0, 1.5

    monkeypatch.setattr(training, '_run', run)
    # One after the other: CPython 3.11 cannot parse (here: configs) in two threads at the same time
    monkeypatch.setattr(chain, 'ThreadPoolExecutor', lambda _: ThreadPoolExecutor(1))
    for module in (ablations, chain, htcpp):
        monkeypatch.setattr(module, 'make_demo_data', lambda path, **sizes: demo_data)
    for module in (ablations, chain):
        monkeypatch.setattr(module, 'probe', lambda _, path, *__: dict(linear=50.0 if path else 40.0, knn=30.0))
    return found
