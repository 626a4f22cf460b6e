"""Several processes and gradient accumulation train as one process does with everything in one batch.

PyTorch's launcher starts two processes once, which run this file as a script: :func:`main`. They leave their results in
files, which the tests compare with each other and with one process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed
from PIL import Image
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from mm_ummae.masking import WindowMask
from tests.builders import disturbed, seeded
from tests.runs import DEMO, IN_PROCESS, PRETRAIN, ROOT, SIMMIM

pytestmark = pytest.mark.integration

CONFIGS = {'ummae': PRETRAIN, 'simmim': SIMMIM, 'lomar': next(DEMO.glob('lomar_vit-test_*.py'))}
PROCESSES, IMAGES = 2, 2  # images of a process and iteration
COUNTS = (1, 4)  # iterations of a step
SIDE = 128
RUNS = ('plain', 'zero', 'plain_resumed', 'zero_resumed')
every_model = pytest.mark.parametrize('name', CONFIGS)

Batch = dict[str, Any]


# A step, in one process or in several


def built(name: str) -> nn.Module:
    """A model for normalised images and a mask; all processes build the same."""
    cfg = Config.fromfile(CONFIGS[name]).model
    cfg.data_preprocessor = dict(type='BaseDataPreprocessor')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return disturbed(MODELS.build(cfg), 0.1)


def batches(name: str, counts: int) -> list[Batch]:
    """Images and masks of every process and iteration of a step; those of process 0 come first."""
    model, generator = built(name), torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=seeded(IMAGES, 3, SIDE, SIDE, seed=i),
            mask=model.draw_mask(IMAGES, (SIDE, SIDE), generator=generator),
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


def step(name: str, network: nn.Module, parts: list[Batch]) -> dict[str, Any]:
    """One step of the config's optimizer, with an iteration for each part.

    Returns:
        dict[str, Any]: ``losses`` of the iterations, the iteration that each of the ``reductions`` among processes
        belongs to, ``gradients`` that the optimizer got and ``weights`` after the step.
    """
    cfg = Config.fromfile(CONFIGS[name]).optim_wrapper
    cfg.accumulative_counts = len(parts)
    # Adam divides a gradient by its own size: where it is 0 but for rounding, eps keeps the rounding small
    cfg.optimizer.update(lr=1e-2, eps=1e-4)
    wrapper = build_optim_wrapper(network, cfg)
    wrapper.initialize_count_status(network, 0, len(parts))
    reductions: list[int] = []

    def reduce(state, bucket):  # without annotations, which PyTorch compares and here are strings
        reductions.append(wrapper.inner_count)
        return allreduce_hook(None, bucket)

    if isinstance(network, MMDistributedDataParallel) and len(parts) > 1:
        network.register_comm_hook(None, reduce)
    gradients: dict[str, Tensor] = {}
    model = getattr(network, 'module', network)
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    wrapper.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({key: parameter.grad.clone() for key, parameter in trained.items()})
    )
    losses = torch.stack([network.train_step(part, wrapper)['loss'] for part in parts])
    return dict(losses=losses, reductions=reductions, gradients=gradients, weights=model.state_dict())


# The script of the two processes


def main(folder: Path) -> None:
    """Everything that takes two processes; the results are written to ``<rank>.pth``."""
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    found: dict[Any, Any] = {}
    for name, path in CONFIGS.items():
        for counts in COUNTS:
            parts = batches(name, counts)[rank * counts : (rank + 1) * counts]
            found[name, counts] = step(name, MMDistributedDataParallel(built(name)), parts)
        for own_seeds in (True, False):
            set_random_seed(**Config.fromfile(path).randomness | dict(diff_rank_seed=own_seeds))
            with torch.random.fork_rng():  # building sets a seed
                model = built(name)
            found[name, 'masks', own_seeds] = tuple(model.draw_mask(IMAGES, (SIDE, SIDE)))
    for run in RUNS:
        found[run] = train(folder, run)
    torch.save(found, folder / f'{rank}.pth')
    dist.destroy_process_group()


def train(folder: Path, run: str) -> dict[str, Any]:
    """An epoch of two steps by ``tools/train.py``; ``resumed`` continues after that of ``zero``."""
    resumed = run.endswith('_resumed')
    arguments = [str(PRETRAIN), '--launcher', 'pytorch', '--work-dir', str(folder / run)]
    arguments += ['--zero'] * run.startswith('zero')
    arguments += ['--resume', str(folder / 'zero' / 'epoch_1.pth')] * resumed
    arguments += [
        '--cfg-options',
        f'experiment_name={run}',
        f'train_dataloader.dataset.data_root={folder}',
        'model_wrapper_cfg.device_ids=None',  # as DistributedDataParallel requires on a CPU
        f'train_dataloader.batch_size={IMAGES}',
        *(f'train_dataloader.{option}' for option in IN_PROCESS),
        'optim_wrapper.accumulative_counts=2',
        f'train_cfg.max_epochs={1 + resumed}',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        'default_hooks.checkpoint.interval=1',
    ]
    tool = importlib.import_module('tools.train')
    runner = tool.build_runner(tool.parse_args(arguments))
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    states = getattr(optimizer, 'optim', optimizer).state.values()  # ZeRO keeps the share of this process in `optim`
    moments = sum(state[key].numel() for state in states for key in ('exp_avg', 'exp_avg_sq'))
    return dict(runner=type(runner).__name__, weights=runner.model.module.state_dict(), moments=moments)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes."""
    path = tmp_path_factory.mktemp('distributed')
    (path / 'unlabelled').mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4 * PROCESSES * IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(path / 'unlabelled' / f'{i}.png')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={PROCESSES}']
    command += ['-m', 'tests.tools.test_distributed', str(path)]
    environment = dict(os.environ, OMP_NUM_THREADS='1')
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
    """The same loss, gradients and weights after AdamW, in two processes with one iteration a step and with four."""
    model = built(name)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    one = step(name, model, [joined(batches(name, counts))])
    several = [each[name, counts] for each in found]
    torch.testing.assert_close(torch.cat([each['losses'] for each in several]).mean(), one['losses'][0])
    moved = [key for key, value in start.items() if (value - one['weights'][key]).abs().max() > 1e-3]
    assert len(moved) > 0.9 * len(one['gradients'])  # softmax makes the gradients of a few biases 0
    for each in several:
        assert each['gradients'].keys() == one['gradients'].keys()
        for key, gradient in one['gradients'].items():
            torch.testing.assert_close(each['gradients'][key], gradient, rtol=1e-4, atol=1e-6)
        for key, weight in one['weights'].items():
            torch.testing.assert_close(each['weights'][key], weight, rtol=1e-5, atol=1e-5)
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


def checkpoint(folder: Path, run: str) -> dict[str, Any]:
    return torch.load(folder / run / f'epoch_{1 + run.endswith("_resumed")}.pth', weights_only=False)


@pytest.mark.parametrize('when', ['', '_resumed'], ids=['started', 'resumed'])
def test_zero_changes_no_weight_and_no_moment(when: str, folder: Path, found: list[dict]) -> None:
    """To the last bit; the second time both resume from the checkpoint of ``--zero``, which is complete."""
    plain, zero = checkpoint(folder, f'plain{when}'), checkpoint(folder, f'zero{when}')
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
    main(Path(sys.argv[1]))
