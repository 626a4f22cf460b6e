"""Batch sampler that can start in the middle of an epoch, and that names the random stream of every sample."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler


class SeededIndex(int):
    """Index of a sample that carries the key of its random streams to the loader process.

    Args:
        value (int): Index in the dataset.
        key (tuple[int, ...]): For :func:`seed_streams`. Default: none.
    """

    def __new__(cls, value: int, key: tuple[int, ...] = ()) -> SeededIndex:
        """Create an int, and keep the key beside it."""
        index = super().__new__(cls, value)
        index.key = key
        return index


class ResumableBatchSampler(Sampler):
    """Batches of another batch sampler, from any of them on.

    Args:
        sampler (Sampler): Draws indices.
        batch_size (int): Samples of a batch.
        batch_sampler (dict, optional): Config of the batch sampler to use. Default: PyTorch's.
        drop_last (bool): Of PyTorch's batch sampler: leave a last, smaller batch out. Default False.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, batch_sampler: dict | None = None, drop_last: bool = False
    ) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size))
        self.seed, self.iteration, self.skip = 0, None, 0

    def begin(self, seed: int, iteration: int, skip: int = 0) -> None:
        """Set the place in the run before the batches of an epoch are drawn.

        Args:
            seed (int): Seed of the run, the same on all processes.
            iteration (int): Iteration of the run that gets the first batch.
            skip (int): Batches of the epoch that were seen before. They are drawn, but not loaded. Default 0.
        """
        self.seed, self.iteration, self.skip = seed, iteration, skip

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        """Yield the batches, each a list of indices; none before :meth:`begin`.

        MMEngine 0.10.7 starts the loader when it builds a loop over iterations, where the place is not known yet.
        """
        if self.iteration is None:
            return
        rank = get_rank()
        for iteration, batch in enumerate(islice(iter(self.batches), self.skip, None), self.iteration):
            yield [SeededIndex(index, (self.seed, rank, iteration, place)) for place, index in enumerate(batch)]

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.batches)
