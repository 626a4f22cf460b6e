"""Short runs of the demo's configs: options for tools/train.py and tools/test.py, and what a run logged."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / 'configs' / 'demo'
PRETRAIN = DEMO / 'ummae_swin-test_1xb16-coslr-20e_demo-128px.py'
SIMMIM = DEMO / 'simmim_swin-test_1xb16-coslr-20e_demo-128px.py'
CLASSIFY = DEMO / 'um-swin-test_classification_1xb8-200it_demo-128px.py'
ITERATIONS = 4  # of an epoch of pre-training
IN_PROCESS = ('num_workers=0', 'persistent_workers=False')  # no loader processes for a few images


def leaf(pattern: str) -> Path:
    """The first config that matches."""
    return sorted((ROOT / 'configs').rglob(f'{pattern}.py'))[0]


def pretrain_options(data: Path, epochs: int) -> list[str]:
    """An epoch of warm-up, then cosine decay; a checkpoint after each epoch."""
    return [
        f'train_dataloader.dataset.data_root={data / "imagenet"}',
        f'train_dataloader.batch_size={16 // ITERATIONS}',
        *(f'train_dataloader.{option}' for option in IN_PROCESS),
        f'train_cfg.max_epochs={epochs}',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        f'param_scheduler.1.end={max(epochs, 2)}',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=1',
    ]


def logged(run: Path) -> list[dict]:
    """The scalars of a run, from the folder named after its start, without those of LearningHook."""
    lines = (run / 'vis_data' / 'scalars.json').read_text().splitlines()
    return [json.loads(line) for line in lines if '"learning/rank"' not in line]
