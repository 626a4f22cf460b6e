"""Hook that counts the bad files of pre-training over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from mm_ummae.datasets import PretrainImages
from mm_ummae.datasets.file_flags import UNDECODED, UNREAD
from mm_ummae.registry import HOOKS

from .lookup import logging_interval


@HOOKS.register_module()
class DamagedFilesHook(Hook):
    """Merge the flags of :class:`~mm_ummae.datasets.PretrainImages` over all ranks, and stop all if too many are set.

    A rank loads its own share of the files, so its count alone would reach the limit several epochs late. The ranks
    tell each other at each line of the log, and at the end of an epoch, whether a flag has changed, and only then
    exchange the flags, a byte per file. Each file counts once, whoever found it, and loses its flag on all ranks if
    one can decode it.

    With a single rank nothing is exchanged: the dataset counts by itself. With other datasets the hook does nothing.

    Args:
        interval (int, optional): Iterations between two exchanges. Default: the interval of the logger.

    Raises:
        ValueError: If ``interval`` is not positive. Before training: if the ranks list different numbers of files.
        DataError: While training, on all ranks, if more files are bad than ``max_bad_share`` of the dataset allows.
    """

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval is {interval}, but it must be at least 1')
        self.interval = interval
        self._datasets: list[PretrainImages] = []
        self._reported: list[tuple[int, int]] = []  # last counts in the log

    def before_train(self, runner: Runner) -> None:
        """Find the datasets and compare the number of their files."""
        self._datasets = _find(runner.train_dataloader.dataset)
        self._reported = [(0, 0)] * len(self._datasets)
        if self.interval is None:
            self.interval = logging_interval(runner)
        if get_world_size() > 1 and self._datasets:
            numbers = all_gather_object([len(dataset) for dataset in self._datasets])
            if any(number != numbers[0] for number in numbers):
                raise ValueError(
                    f'the ranks list different numbers of files ({", ".join(str(sum(each)) for each in numbers)}): '
                    'each machine must see the same data folder'
                )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Merge the flags every ``interval`` iterations."""
        if self._datasets and self.every_n_train_iters(runner, self.interval):
            self._merge()

    def after_train_epoch(self, runner: Runner) -> None:
        """Merge the flags and log how many are set."""
        self._merge()
        for index, dataset in enumerate(self._datasets):
            counts = dataset.flags.count(UNDECODED), dataset.flags.count(UNREAD)
            if counts != self._reported[index]:
                self._reported[index] = counts
                print_log(
                    f'of {len(dataset)} files below {dataset.img_prefix}, {counts[0]} cannot be decoded and '
                    f'{counts[1]} cannot be read; they are tried again in the next epoch',
                    logger='current',
                )

    def _merge(self) -> None:
        if get_world_size() == 1:
            return
        for dataset in self._datasets:
            changed = torch.tensor(int(dataset.flags.changed()))
            all_reduce(changed, 'sum')
            if changed:
                dataset.flags.merge(_maximum)
                dataset.check_share()


def _maximum(flags: Tensor) -> Tensor:
    all_reduce(flags, 'max')
    return flags


def _find(dataset: Any) -> list[PretrainImages]:
    """In MMEngine's and our wrappers, which call what they wrap ``dataset`` or ``datasets``."""
    if isinstance(dataset, PretrainImages):
        return [dataset]
    inner = [dataset.dataset] if hasattr(dataset, 'dataset') else getattr(dataset, 'datasets', [])
    return [found for each in inner for found in _find(each)]
