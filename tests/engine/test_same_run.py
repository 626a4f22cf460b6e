"""Every method, stopped and resumed, equals the uninterrupted run bit for bit: losses, weights and moments."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.engine.toy_runs import At, assert_same
from tests.runs import CLASSIFY, DEMO, IN_PROCESS, PRETRAIN, SIMMIM, pretrain_options

pytestmark = pytest.mark.slow

Tool = Callable[[str], ModuleType]
LOMAR = DEMO / 'lomar_vit-test_1xb32-coslr-10e_demo-128px.py'


def finetune_options(data: Path) -> list[str]:
    loaders = [f'{loader}.{option}' for loader in ('train_dataloader', 'val_dataloader') for option in IN_PROCESS]
    return [
        *loaders,
        f'train_dataloader.dataset.data_root={data / "imagenet"}',
        f'val_dataloader.dataset.data_root={data / "imagenet"}',
        'train_dataloader.batch_size=8',  # 3 iterations an epoch
        'train_cfg.max_iters=8',
        'train_cfg.val_interval=8',
        'param_scheduler.0.end=3',
        'param_scheduler.1.begin=3',
        'param_scheduler.1.end=8',
        'model.backbone.init_cfg=None',
        'model.backbone.drop_path_rate=0.3',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]


def train(tool: Tool, config: Path, work_dir: Path, options: list[str], *flags: str, hook: Hook | None = None) -> None:
    train_tool = tool('train')
    arguments = [str(config), '--work-dir', str(work_dir), *flags, '--cfg-options', *options]
    runner: Runner = train_tool.build_runner(train_tool.parse_args(arguments))
    if hook:
        runner.register_hook(hook)
    runner.train()


@pytest.mark.parametrize('name', ['UM-MAE', 'SimMIM', 'LoMaR', 'classification'])
def test_stopped_run_is_the_same_run(name: str, tool: Tool, demo_data: Path, tmp_path: Path) -> None:
    config = {'UM-MAE': PRETRAIN, 'SimMIM': SIMMIM, 'LoMaR': LOMAR}.get(name, CLASSIFY)
    options = finetune_options(demo_data) if config is CLASSIFY else pretrain_options(demo_data, epochs=2)
    if name == 'UM-MAE':
        options += ['model.backbone.drop_path_rate=0.3', 'optim_wrapper.accumulative_counts=3']
    last = 'iter_8.pth' if config is CLASSIFY else 'epoch_2.pth'
    train(tool, config, tmp_path / 'whole', options)
    with pytest.raises(SystemExit) as stop:
        hook = At(5, lambda runner: os.kill(os.getpid(), signal.SIGTERM))
        train(tool, config, tmp_path / 'parts', options, hook=hook)
    assert stop.value.code == 75
    train(tool, config, tmp_path / 'parts', options, '--resume')
    assert_same(tmp_path / 'whole' / last, tmp_path / 'parts' / last)
