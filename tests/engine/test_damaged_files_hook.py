"""DamagedFilesHook: bad files are counted over two processes, once, and stop both; nothing is exchanged in one.

Two processes run :func:`main` once and leave what they found in files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import ConcatDataset, DefaultSampler, InfiniteSampler, RepeatDataset, default_collate
from mmengine.hooks import LoggerHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from pytest import MonkeyPatch
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from mm_ummae.datasets import PretrainImages
from mm_ummae.datasets.damaged import DataError
from mm_ummae.datasets.file_flags import UNDECODED, UNREAD
from mm_ummae.engine import DamagedFilesHook
from mm_ummae.engine.hooks import damaged_files_hook
from tests.runs import ROOT

FILES, PROCESSES = 24, 2
PIPELINE = [dict(type='mm_ummae.LoadCompleteImage'), dict(type='PackInputs')]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / 'images', FILES)


def fill(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(number):
        mend(folder, i)
    return folder


def build(folder: Path, **kwargs: Any) -> PretrainImages:
    return PretrainImages(data_root=str(folder), pipeline=PIPELINE, **kwargs)


def damage(folder: Path, *indices: int) -> None:
    for index in indices:
        (folder / f'{index:02d}.png').write_bytes(b'')


def mend(folder: Path, index: int) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f'{index:02d}.png')


class Mean(BaseModel):
    """Loss of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = 'loss') -> dict:
        return dict(loss=self.weight * inputs.float().mean())


def run(folder: Path, work: Path, train_cfg: dict, hooks: list, workers: int = 0, **kwargs: Any) -> Runner:
    """A runner of MMEngine for batches of two files on each process; the files of a process are in order."""
    dataset, by_epoch = build(folder, **kwargs), train_cfg['by_epoch']
    dataset._rand_another = lambda: FILES - 1  # an intact one, so that each process finds its own share
    loader = DataLoader(
        dataset,
        2,
        sampler=(DefaultSampler if by_epoch else InfiniteSampler)(dataset, shuffle=False),
        num_workers=workers,
        collate_fn=default_collate,
    )
    distributed = dist.is_initialized()
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    return Runner(
        Mean(),
        str(work),
        loader,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=hooks,
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2), checkpoint=None),
        launcher='pytorch' if distributed else 'none',
        cfg=dict(model_wrapper_cfg=wrapper) if distributed else None,
        experiment_name=f'{work.name}_{id(dataset)}',
        default_scope='mmpretrain',
    )


# Two processes


def main(rank: int, root: Path) -> None:
    """Run every scenario in this process; the results are written to ``<rank>.pth``."""
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group('gloo', f'file://{root}/store', rank=rank, world_size=PROCESSES)
    found = {}
    for scenario in (train_epochs, train_epochs_in_workers, train_iterations, merge_over_epochs, different_folders):
        found[scenario.__name__] = scenario(root / scenario.__name__)
        dist.barrier()
    torch.save(found, root / f'{rank}.pth')
    dist.barrier()


def train(folder: Path, train_cfg: dict, hooks: list | None = None, **kwargs: Any) -> list[Any]:
    """Train on this rank: the error and the iteration where it came, and the flags."""
    runner = run(folder, folder.parent / 'run', train_cfg, hooks or [dict(type='mm_ummae.DamagedFilesHook')], **kwargs)
    try:
        runner.train()
        error = ''
    except (DataError, ValueError) as raised:
        error = f'{type(raised).__name__}: {raised}'
    flags = runner.train_dataloader.dataset.flags
    return [error, runner.iter, flags.find(UNDECODED), flags.find(UNREAD)]


def train_epochs(folder: Path) -> list[Any]:
    return train(folder, dict(by_epoch=True, max_epochs=3), max_bad_share=0.1)


def train_epochs_in_workers(folder: Path) -> list[Any]:
    return train(folder, dict(by_epoch=True, max_epochs=1), max_bad_share=0.1, workers=1)


def train_iterations(folder: Path) -> list[Any]:
    return train(folder, dict(by_epoch=False, max_iters=9), max_bad_share=0.1)


def runner_with(dataset: Any) -> SimpleNamespace:
    return SimpleNamespace(train_dataloader=SimpleNamespace(dataset=dataset), hooks=[LoggerHook(interval=7)])


def merge_over_epochs(folder: Path) -> list[Any]:
    """Processes swap files from epoch to epoch; one file is mended after the third epoch. The flags of each epoch."""
    dataset, hook, found = build(folder, max_bad_share=0.125), DamagedFilesHook(3), []
    sampler = DefaultSampler(dataset, shuffle=True, seed=0)
    hook.before_train(runner_with(dataset))
    for epoch in range(6):
        dist.barrier()
        if dist.get_rank() == 0 and epoch == 3:
            mend(folder, 5)
        dist.barrier()
        sampler.set_epoch(epoch)
        for iteration, index in enumerate(sampler):
            dataset[index]
            hook.after_train_iter(SimpleNamespace(iter=iteration), iteration)
        hook.after_train_epoch(None)
        found.append([dataset.flags.find(UNDECODED), dataset.flags.find(UNREAD)])
    return found


def different_folders(folder: Path) -> list[Any]:
    dataset = build(folder / str(dist.get_rank()))
    try:
        DamagedFilesHook().before_train(runner_with(dataset))
    except ValueError as error:
        return [str(error)]
    return []


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list]]:
    """What the scenarios returned in each of two processes."""
    root = tmp_path_factory.mktemp('processes')
    for name in ('train_epochs', 'train_epochs_in_workers', 'train_iterations', 'merge_over_epochs'):
        fill(root / name, FILES)
        # Each process finds two of the first ones by iteration 4, where the second line is logged
        damage(root / name, *((5, 11, 23) if name == 'merge_over_epochs' else (0, 1, 6, 7)))
    for rank, number in enumerate((2, 3)):
        fill(root / 'different_folders' / str(rank), number)
    command = [sys.executable, '-m', 'tests.engine.test_damaged_files_hook', str(root)]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(root / f'{rank}.pth', weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.integration
@pytest.mark.parametrize('name', ['train_epochs', 'train_epochs_in_workers', 'train_iterations'])
def test_two_processes_stop_at_the_share_of_both(name: str, found: list[dict[str, list]]) -> None:
    """At most 2 files of 24 may be bad."""
    for error, iteration, undecoded, unread in (each[name] for each in found):
        assert re.match('DataError: [34] of 24 files below', error)
        assert 'cannot be decoded, more than max_bad_share 0.1 allows' in error and '00.png' in error
        assert error.endswith('repair the data or raise max_bad_share')
        assert len(undecoded) > 2 and set(undecoded) <= {0, 1, 6, 7} and unread == []
        assert iteration in (1, 3), 'after a line of the log'


@pytest.mark.integration
def test_a_file_counts_once_whoever_finds_it(found: list[dict[str, list]]) -> None:
    """Three files of 24 may be bad, and three are; a mended one loses its flag on both."""
    for each in found:
        assert each['merge_over_epochs'] == 3 * [[[5, 11, 23], []]] + 3 * [[[11, 23], []]]


@pytest.mark.integration
def test_processes_that_list_different_files(found: list[dict[str, list]]) -> None:
    for each in found:
        assert each['different_folders'] == [
            'the ranks list different numbers of files (2, 3): each machine must see the same data folder'
        ]


# One process


def test_one_process_exchanges_nothing(folder: Path, monkeypatch: MonkeyPatch) -> None:
    """And stops when a loader process finds one file too many."""
    damage(folder, 0, 1, 2)
    for name in ('all_reduce', 'all_gather_object'):
        monkeypatch.delattr(damaged_files_hook, name)
    error, iteration, undecoded, _ = train(folder, dict(by_epoch=True, max_epochs=1), max_bad_share=0.1)
    assert error.startswith('DataError: 3 of 24 files below') and iteration == 1 and undecoded == [0, 1, 2]


def test_the_log_of_an_epoch_has_the_counts_when_they_change(folder: Path, monkeypatch: MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(damaged_files_hook, 'print_log', lambda text, logger: log.append(text))
    dataset, hook = build(folder, max_bad_share=0.5), DamagedFilesHook()
    (folder / '04.png').unlink()
    hook.before_train(runner_with(dataset))
    hook.after_train_epoch(None)
    assert log == []
    damage(folder, 3)
    for _ in range(2):
        dataset[3], dataset[4]
        hook.after_train_epoch(None)
    assert log == [
        f'of 24 files below {folder}/, 1 cannot be decoded and 1 cannot be read; they are tried again in the next epoch'
    ]


def test_the_dataset_is_found_in_wrappers(folder: Path) -> None:
    first, second = build(folder), build(folder)
    for dataset, expected in (
        (first, [first]),
        (RepeatDataset(first, 2), [first]),
        (ConcatDataset([first, second]), [first, second]),
        (SimpleNamespace(datasets=[first, SimpleNamespace(dataset=second)]), [first, second]),
        ([1, 2], []),
    ):
        hook = DamagedFilesHook()
        hook.before_train(runner_with(dataset))
        assert list(map(id, hook._datasets)) == list(map(id, expected))
        hook.after_train_iter(SimpleNamespace(iter=6), 6)
        hook.after_train_epoch(None)


def test_the_interval() -> None:
    with pytest.raises(ValueError, match='interval is 0, but it must be at least 1'):
        DamagedFilesHook(0)
    for given, expected in ((None, 7), (3, 3)):
        hook = DamagedFilesHook(given)
        hook.before_train(runner_with([]))
        assert hook.interval == expected


if __name__ == '__main__':
    start_processes(main, (Path(sys.argv[1]),), PROCESSES, start_method='fork')
