"""Several processes and gradient accumulation train as one process does with everything in one batch.

Two processes run :func:`main` once and leave their results in files.
"""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing import start_processes

from mm_ummae.masking import WindowMask
from tests.builders import disturbed, seeded
from tests.runs import PRETRAIN, ROOT, SIMMIM, leaf, pretrain_options

pytestmark = pytest.mark.integration

CONFIGS = {'ummae': PRETRAIN, 'simmim': SIMMIM, 'lomar': leaf('lomar_vit-test_*')}
PROCESSES, IMAGES = 2, 2  # images of a process and iteration
COUNTS = (1, 4)  # iterations of a step
SIDE = 128
RUNS = ('plain', 'zero', 'plain_resumed', 'zero_resumed')
every_model = pytest.mark.parametrize('name', CONFIGS)

Batch = dict[str, Any]


# A step, in one process or in several


@cache
def config(name: str) -> Config:
    return Config.fromfile(CONFIGS[name])


@cache
def built(name: str) -> nn.Module:
    """A model for normalised images and a mask, to be copied; all processes have the same."""
    model = dict(config(name).model, data_preprocessor=dict(type='BaseDataPreprocessor'))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return disturbed(MODELS.build(model), 0.1)


def batches(name: str, counts: int) -> list[Batch]:
    """Images and masks of every process and iteration of a step; those of process 0 come first."""
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=seeded(IMAGES, 3, SIDE, SIDE, seed=i),
            mask=built(name).draw_mask(IMAGES, (SIDE, SIDE), generator=generator),
        )
        for i in range(PROCESSES * counts)
    ]


def joined(parts: list[Batch]) -> Batch:
    """The same images and masks in one batch."""
    masks = [part['mask'] for part in parts]
    fields = zip(*masks, strict=True)
    mask = type(masks[0])(*(torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in fields))
    if isinstance(mask, WindowMask):  # windows know the index of their image
        images = [part.image + i * IMAGES for i, part in enumerate(masks)]
        mask = mask._replace(image=torch.cat(images), batch_size=len(masks) * IMAGES)
    return dict(inputs=torch.cat([part['inputs'] for part in parts]), mask=mask)


def step(network: nn.Module, parts: list[Batch]) -> dict[str, Any]:
    """A step that subtracts the gradients from the weights: losses of its iterations, one for each part, the weights
    after it, and the iteration of each reduction among processes."""
    cfg = dict(optimizer=dict(type='SGD', lr=1.0), accumulative_counts=len(parts))
    wrapper = build_optim_wrapper(network, cfg)
    wrapper.initialize_count_status(network, 0, len(parts))
    reductions: list[int] = []

    def reduce(state, bucket):  # without annotations, which PyTorch compares and here are strings
        reductions.append(wrapper.inner_count)
        return allreduce_hook(None, bucket)

    if isinstance(network, MMDistributedDataParallel) and len(parts) > 1:
        network.register_comm_hook(None, reduce)
    losses = torch.stack([network.train_step(part, wrapper)['loss'] for part in parts])
    return dict(losses=losses, reductions=reductions, weights=getattr(network, 'module', network).state_dict())


# The two processes


def main(rank: int, folder: Path, data: Path) -> None:
    """Everything that takes two processes; the results are written to ``<rank>.pth``."""
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=PROCESSES)
    found: dict[Any, Any] = {}
    for name in CONFIGS:
        for counts in COUNTS:
            parts = batches(name, counts)[rank * counts : (rank + 1) * counts]
            found[name, counts] = step(MMDistributedDataParallel(copy.deepcopy(built(name))), parts)
        for own_seeds in (True, False):
            set_random_seed(**config(name).randomness | dict(diff_rank_seed=own_seeds))
            found[name, 'masks', own_seeds] = tuple(built(name).draw_mask(IMAGES, (SIDE, SIDE)))
    for run in RUNS:
        found[run] = train(folder, data, run)
    torch.save(found, folder / f'{rank}.pth')
    dist.destroy_process_group()


def train(folder: Path, data: Path, run: str) -> dict[str, Any]:
    """An epoch of two steps by ``tools/train.py``; ``resumed`` continues after that of ``zero``."""
    resumed = run.endswith('_resumed')
    arguments = [str(PRETRAIN), '--launcher', 'pytorch', '--work-dir', str(folder / run)]
    arguments += ['--zero'] * run.startswith('zero')
    arguments += ['--resume', str(folder / 'zero' / 'epoch_1.pth')] * resumed
    arguments += [
        '--cfg-options',
        *pretrain_options(data, 1 + resumed),
        f'experiment_name={run}',
        'model_wrapper_cfg.device_ids=None',  # as DistributedDataParallel requires on a CPU
        f'train_dataloader.batch_size={IMAGES}',
        'optim_wrapper.accumulative_counts=2',
    ]
    tool = importlib.import_module('tools.train')
    runner = tool.build_runner(tool.parse_args(arguments))
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    states = getattr(optimizer, 'optim', optimizer).state.values()  # ZeRO keeps the share of this process in `optim`
    moments = sum(state[key].numel() for state in states for key in ('exp_avg', 'exp_avg_sq'))
    return dict(runner=type(runner).__name__, weights=runner.model.module.state_dict(), moments=moments)


@pytest.fixture(scope='module')
def folder(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes, which part from a new one."""
    path = tmp_path_factory.mktemp('distributed')
    command = [sys.executable, '-m', 'tests.tools.test_distributed', str(path), str(demo_data)]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


@pytest.fixture(scope='module')
def found(folder: Path) -> list[dict]:
    """The results of each process."""
    return [torch.load(folder / f'{rank}.pth', weights_only=False) for rank in range(PROCESSES)]


# Data parallel


@every_model
@pytest.mark.parametrize('counts', COUNTS)
def test_processes_and_accumulation_equal_the_joined_batch(name: str, counts: int, found: list[dict]) -> None:
    """The same loss and gradients, in two processes with one iteration a step and with four."""
    start = built(name).state_dict()
    one = step(copy.deepcopy(built(name)), [joined(batches(name, counts))])
    several = [each[name, counts] for each in found]
    torch.testing.assert_close(torch.cat([each['losses'] for each in several]).mean(), one['losses'][0])
    moved = [key for key, weight in one['weights'].items() if (start[key] - weight).abs().max() > 1e-4]
    assert len(moved) > 0.9 * len(list(built(name).parameters()))
    for each in several:
        torch.testing.assert_close(each['weights'], one['weights'], rtol=1e-6, atol=1e-6)
        if counts > 1:  # reductions in the other iterations would cost as much again
            assert set(each['reductions']) == {counts - 1}


@every_model
def test_processes_draw_different_masks(name: str, found: list[dict]) -> None:
    """By the seeds that the configs set; with one seed for all, the masks would be the same."""
    first, second = (each[name, 'masks', True] for each in found)
    assert any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    first, second = (each[name, 'masks', False] for each in found)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, Tensor))


# Optimizer state sharded over processes


@pytest.mark.parametrize('when', ['', '_resumed'], ids=['started', 'resumed'])
def test_zero_changes_no_weight_and_no_moment(when: str, folder: Path, found: list[dict]) -> None:
    """To the last bit; the second time both resume from the checkpoint of ``--zero``, which is complete."""
    file = f'epoch_{2 if when else 1}.pth'
    plain, zero = (torch.load(folder / f'{run}{when}' / file, weights_only=False) for run in ('plain', 'zero'))
    for key, weight in plain['state_dict'].items():
        assert torch.equal(zero['state_dict'][key], weight), key
        for each in found:
            assert torch.equal(each[f'zero{when}']['weights'][key], weight), key
    assert plain['optimizer']['state'].keys() == zero['optimizer']['state'].keys()
    for index, state in plain['optimizer']['state'].items():
        for key, value in state.items():
            assert torch.equal(zero['optimizer']['state'][index][key], value), (index, key)
            assert key != 'step' or value == (4 if when else 2)


def test_zero_splits_the_moments(found: list[dict]) -> None:
    """Each process holds about a half of what each holds without it."""
    for run in ('zero', 'zero_resumed'):
        whole = [each['plain']['moments'] for each in found]
        shares = [each[run]['moments'] for each in found]
        assert whole == PROCESSES * [sum(shares)]
        assert max(shares) < 0.55 * whole[0]
        assert [each[run]['runner'] for each in found] == PROCESSES * ['ShardedRunner']


if __name__ == '__main__':
    for each in CONFIGS:
        built(each)  # before the processes part: the hosts are imported once
    start_processes(main, (Path(sys.argv[1]), Path(sys.argv[2])), PROCESSES, start_method='fork')
