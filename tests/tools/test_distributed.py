"""Several processes and gradient accumulation train as one process does with everything in one batch, and a run of
several processes that a signal stops is resumed by several and by one.

Two processes run :func:`main` once and leave their results in files.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing import start_processes

from mm_ummae.checkpoints import read_checkpoint
from mm_ummae.datasets.damaged import DataError
from mm_ummae.datasets.labels import check_labels
from mm_ummae.engine import InterruptionHook
from mm_ummae.masking import WindowMask
from tests.builders import disturbed, seeded
from tests.runs import ITERATIONS, PRETRAIN, ROOT, SIMMIM, leaf, logged, pretrain_options

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONFIGS = {'ummae': PRETRAIN, 'simmim': SIMMIM, 'lomar': leaf('lomar_vit-test_*')}
PROCESSES, IMAGES = 2, 2  # images of a process and iteration
COUNTS = (1, 4)  # iterations of a step
SIDE = 128
EPOCHS = 2
STOP = 6  # iteration, inside the second epoch, that the processes agree on after one of them got a signal
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
    found['labels'] = refused(data, 10 if rank else 3)
    stopped = folder / 'zero' / f'interrupted_iter_{STOP}.pth'
    found['plain'] = train(folder, data, 'plain')
    found['zero'] = train(folder, data, 'zero', ['--zero'], act=terminate if rank else None)
    found['plain_resumed'] = train(folder, data, 'plain_resumed', ['--resume', str(stopped)])
    found['zero_resumed'] = train(folder, data, 'zero', ['--zero', '--resume'])
    found['broken'] = train(folder, data, 'broken', act=break_weights if rank else None)
    torch.save(found, folder / f'{rank}.pth')
    dist.destroy_process_group()


def refused(data: Path, num_classes: int) -> str:
    """Why the demo's ten classes are refused by a head."""
    kind, folder = 'mmpretrain.CustomDataset', str(data / 'imagenet' / 'train')
    dataset, network = DATASETS.build(dict(type=kind, data_prefix=folder, pipeline=[])), nn.Module()
    network.head = nn.Module()
    network.head.num_classes = num_classes
    try:
        check_labels(dataset, network)
    except DataError as error:
        return str(error)
    return ''


def terminate(runner: Runner) -> None:
    """A signal that reaches this process only, an iteration before the processes agree."""
    if runner.iter + 1 == STOP - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def break_weights(runner: Runner) -> None:
    """The loss of the third iteration of this process is NaN; iterations are accumulated, so others have none yet."""
    if runner.iter + 1 == 2:
        next(runner.model.parameters()).data.fill_(math.nan)


class Act(Hook):
    """Calls a function after each iteration."""

    priority = 'HIGHEST'

    def __init__(self, act: Callable[[Runner], None]) -> None:
        self.act = act

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        self.act(runner)


def train(
    folder: Path, data: Path, run: str, options: list[str] | None = None, act: Callable[[Runner], None] | None = None
) -> dict[str, Any]:
    """Train by ``tools/train.py`` in this process and the others."""
    launch = ['--launcher', 'pytorch'] if dist.is_initialized() else []
    arguments = [str(PRETRAIN), *launch, '--work-dir', str(folder / run), *(options or [])]
    arguments += [
        '--cfg-options',
        *pretrain_options(data, EPOCHS),
        f'experiment_name={run}_{time.time()}',
        *(['model_wrapper_cfg.device_ids=None'] if launch else []),  # as DistributedDataParallel requires on a CPU
        f'train_dataloader.batch_size={IMAGES}',
        'optim_wrapper.accumulative_counts=2',
    ]
    tool = importlib.import_module('tools.train')
    runner = tool.build_runner(tool.parse_args(arguments))
    next(hook for hook in runner.hooks if isinstance(hook, InterruptionHook)).interval = 2
    if act:
        runner.register_hook(Act(act))
    status = error = None
    try:
        runner.train()
    except SystemExit as stop:
        status = stop.code
    except RuntimeError as stop:
        error = str(stop)
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    optimizer = runner.optim_wrapper.optimizer
    states = getattr(optimizer, 'optim', optimizer).state.values()  # ZeRO keeps the share of this process in `optim`
    return dict(
        runner=type(runner).__name__,
        weights=getattr(runner.model, 'module', runner.model).state_dict(),
        moments=sum(state[key].numel() for state in states for key in ('exp_avg', 'exp_avg_sq')),
        status=status,
        error=error,
        ignores_signals=handler is signal.SIG_IGN,
    )


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


# Labels


def test_labels_stop_all_processes(found: list[dict]) -> None:
    """The main process alone has a head that does not fit; the other would wait for it in the first reduction."""
    first, second = (each['labels'] for each in found)
    assert 'has 10 classes (brick, cat,' in first and 'model.head.num_classes=3: some labels have no output' in first
    assert second == first


# Optimizer state sharded over processes, and signals


def test_signal_to_one_process_saves_the_run_of_all(folder: Path, found: list[dict]) -> None:
    for each in found:
        assert each['zero']['status'] == 75
        assert each['zero']['ignores_signals']  # of a launcher that ends all processes when the first one exits
    assert read_checkpoint(folder / 'plain_resumed' / 'epoch_2.pth')['meta']['iter'] == EPOCHS * ITERATIONS
    stopped, resumed = sorted(path for path in (folder / 'zero').iterdir() if path.is_dir())
    assert [line['step'] for line in logged(stopped)] == list(range(1, STOP + 1))
    assert [line['step'] for line in logged(resumed)] == list(range(STOP + 1, EPOCHS * ITERATIONS + 1))
    assert next(stopped.glob('*.log')).read_text().count(f'saved {folder}/zero/interrupted_iter_{STOP}.pth') == 1


@pytest.mark.parametrize('run', ['zero_resumed', 'plain_resumed'])
def test_zero_and_a_stop_change_no_weight_and_no_moment(run: str, folder: Path, found: list[dict]) -> None:
    """To the last bit, although the first part of both runs was sharded: the checkpoint of ``--zero`` is complete."""
    work_dir = folder / run.replace('zero_resumed', 'zero')
    whole, parts = (read_checkpoint(path / f'epoch_{EPOCHS}.pth') for path in (folder / 'plain', work_dir))
    for key, weight in whole['state_dict'].items():
        assert torch.equal(parts['state_dict'][key], weight), key
        for each in found:
            assert torch.equal(each[run]['weights'][key], weight), key
    assert whole['optimizer']['state'].keys() == parts['optimizer']['state'].keys()
    for index, state in whole['optimizer']['state'].items():
        for key, value in state.items():
            assert torch.equal(parts['optimizer']['state'][index][key], value), (index, key)
            assert key != 'step' or value == EPOCHS * ITERATIONS / 2
    for name in ('train/loss', 'train/lr'):
        first, second = (content['run']['history'][name][0] for content in (whole, parts))
        assert torch.equal(first, second), name


def test_zero_splits_the_moments(found: list[dict]) -> None:
    """Each process holds about a half of what each holds without it."""
    for run in ('zero', 'zero_resumed'):
        whole = [each['plain']['moments'] for each in found]
        shares = [each[run]['moments'] for each in found]
        assert whole == PROCESSES * [sum(shares)]
        assert max(shares) < 0.55 * whole[0]
        assert [each[run]['runner'] for each in found] == PROCESSES * ['ShardedRunner']


def test_one_process_continues_the_run_of_two(folder: Path, demo_data: Path, found: list[dict]) -> None:
    """At the same image, and with the schedule that one process has there."""
    train(folder, demo_data, 'one', ['--resume', str(folder / 'zero' / f'epoch_{EPOCHS - 1}.pth')])
    log = next((folder / 'one').rglob('*.log')).read_text()
    assert '1 processes x 2 images x 2 accumulated iterations, before 2 processes x 2 images x 2' in log
    assert 'an epoch has 8 iterations and had 4: iteration 4 of the checkpoint is iteration 8 now' in log
    lines = logged(next(path for path in (folder / 'one').iterdir() if path.is_dir()))
    length = PROCESSES * ITERATIONS
    assert [line['step'] for line in lines] == list(range(length + 1, EPOCHS * length + 1))
    for line in lines:
        decay = 0.5 * (1 + math.cos(math.pi * (line['step'] - 1 - length) / length))
        assert line['lr'] == pytest.approx(4e-4 * decay, rel=1e-3)


def test_loss_that_is_not_finite_in_one_process_stops_all(folder: Path, found: list[dict]) -> None:
    assert found[0]['broken']['error'].startswith('the loss of another process is not finite in iteration 3. ')
    assert found[1]['broken']['error'].startswith('the loss is nan in iteration 3. Nothing was saved since then')
    assert not list((folder / 'broken').glob('*.pth'))


def test_torchrun_passes_sigterm_on(demo_data: Path, tmp_path: Path) -> None:
    """The processes save; torchrun itself ends with 1, whatever their status."""
    script = tmp_path / 'train.py'
    script.write_text(
        'import torch.distributed\n'
        "torch.distributed.init_process_group('gloo')\n"  # MMEngine asks for a GPU when it does this
        'from tools.train import main\n'
        'main()\n'
    )
    options = [*pretrain_options(demo_data, 100), 'model_wrapper_cfg.device_ids=None']
    # One process for all epochs: in its first milliseconds a signal is lost (docs/user_guides/resuming.md)
    options += ['train_dataloader.num_workers=1', 'train_dataloader.persistent_workers=True']
    command = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={PROCESSES}', '--master_port=29533']
    command += [script, PRETRAIN, '--launcher', 'pytorch', '--work-dir', tmp_path, '--cfg-options', *options]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT))
    with (tmp_path / 'output.txt').open('w') as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            while not list(tmp_path.glob('epoch_*.pth')):
                assert process.poll() is None, (tmp_path / 'output.txt').read_text()
                time.sleep(0.05)
            process.terminate()
            status = process.wait(60)
        finally:
            process.kill()
    assert status == 1
    (stopped,) = tmp_path.glob('interrupted_iter_*.pth')
    steps = [line['step'] for line in logged(next(path for path in tmp_path.iterdir() if path.is_dir()))]
    assert read_checkpoint(stopped)['meta']['iter'] == steps[-1]


if __name__ == '__main__':
    for each in CONFIGS:
        built(each)  # before the processes part: the hosts are imported once
    start_processes(main, (Path(sys.argv[1]), Path(sys.argv[2])), PROCESSES, start_method='fork')
