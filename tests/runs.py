"""Short runs of the demo's configs: options for tools/train.py and tools/test.py, and what a run logged."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / 'configs' / 'demo'
PRETRAIN = DEMO / 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
SIMMIM = DEMO / 'simmim_swin-test_1xb64-coslr-20e_demo-128px.py'
CLASSIFY = DEMO / 'um-swin-test_classification_1xb16-100it_demo-128px.py'
ITERATIONS = 4  # of an epoch of pre-training
IN_PROCESS = ('num_workers=0', 'persistent_workers=False')  # no loader processes for a few images


def pretrain_options(data: Path, epochs: int, until: int | None = None) -> list[str]:
    """An epoch of warm-up, then cosine decay until epoch ``until``; a checkpoint after each of ``epochs``."""
    return [
        f'train_dataloader.dataset.data_root={data / "imagenet"}',
        f'train_dataloader.batch_size={16 // ITERATIONS}',
        *(f'train_dataloader.{option}' for option in IN_PROCESS),
        f'train_cfg.max_epochs={epochs}',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        f'param_scheduler.1.T_max={(until or 2) - 1}',
        f'param_scheduler.1.end={until or 2}',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=1',
    ]


def classify_options(data: Path) -> list[str]:
    """Training and evaluation on the labelled images of the demo data, from random weights."""
    splits = ('train', 'val', 'test')
    return [
        *(f'{split}_dataloader.dataset.data_root={data / "imagenet"}/' for split in splits),
        *(f'{split}_dataloader.{option}' for split in splits for option in IN_PROCESS),
        'train_dataloader.batch_size=10',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'model.backbone.init_cfg=None',
    ]


def logged(run: Path) -> list[dict]:
    """The scalars of a run, from the folder named after its start."""
    return [json.loads(line) for line in (run / 'vis_data' / 'scalars.json').read_text().splitlines()]
