"""Training loops that start at any iteration, with the images and random draws that the run would have had there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import Sampler

from mm_ummae.datasets.batch_sampler import ResumableBatchSampler
from mm_ummae.datasets.random_streams import seed_streams


class ResumableLoop:
    """What both loops share: random streams of an iteration, and the place in the data.

    Args:
        args: Of MMEngine's loop.
        kwargs: Of MMEngine's loop.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start = (0, 0)  # iteration, and images seen before it

    def run_iter(self, *args: Any) -> None:
        """One iteration, whose draws (masks, drop path, mixing) depend on its number and the process only."""
        seed_streams(self.runner.base_seed, get_rank(), self._iter, cuda=True)
        super().run_iter(*args)

    @property
    def images_per_iteration(self) -> int:
        """Images that all processes together take from the dataset in an iteration; 0 if that is not known."""
        return get_world_size() * int(getattr(self.dataloader.batch_sampler, 'batch_size', 0) or 0)

    def images_seen(self, iteration: int) -> int:
        """Images that all processes together took from the dataset up to an iteration."""
        start, images = self._start
        return images + (iteration - start) * self.images_per_iteration

    def start_at(self, epoch: int, iteration: int, images: int) -> None:
        """Set the place in the run.

        Args:
            epoch (int): Finished epochs.
            iteration (int): Finished iterations.
            images (int): Images that all processes together have taken from the dataset.
        """
        self._epoch, self._iter, self._start = epoch, iteration, (iteration, images)

    def _validate(self, done: int) -> None:
        """Validate if it is due after ``done`` epochs or iterations.

        A checkpoint is written before the validation of its place, so a resumed run starts with that.
        """
        last = self._max_epochs if isinstance(self, EpochBasedTrainLoop) else self._max_iters
        due = done % self.val_interval == 0 or done == last
        if done and due and done >= self.val_begin and self.runner.val_loop is not None:
            self.runner.val_loop.run()

    def _sampler(self) -> Sampler | None:
        return getattr(self.dataloader.batch_sampler, 'sampler', None)

    def _begin_data(self, skip: int) -> None:
        """Let the loader start after ``skip`` batches of the epoch."""
        batches = self.dataloader.batch_sampler
        if isinstance(batches, ResumableBatchSampler):
            batches.begin(self.runner.base_seed, self._iter, skip)
        if skip and not isinstance(self._sampler(), (DefaultSampler, InfiniteSampler)):
            print_log(
                f'the order of images after resuming may differ from that of the run: {type(self._sampler()).__name__} '
                'is not a sampler of MMEngine',
                logger='current',
            )


class ResumableEpochLoop(ResumableLoop, EpochBasedTrainLoop):
    """MMEngine's loop over epochs, which can also start in the middle of one."""

    def run(self) -> nn.Module:
        """Run the rest of the training, with validation; returns the model."""
        self.runner.call_hook('before_train')
        if self._iter == self._epoch * len(self.dataloader):
            self._validate(self._epoch)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate(self._epoch)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Run the rest of an epoch: all of it unless the run was resumed inside."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self._begin_data(done)
        for index, batch in enumerate(self.dataloader, done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class ResumableIterLoop(ResumableLoop, IterBasedTrainLoop):
    """MMEngine's loop over iterations, which starts at the right image without loading those before it."""

    def run(self) -> nn.Module:
        """Run the rest of the training, with validation; returns the model."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')  # the whole training is one epoch
        self._validate(self._iter)
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            self._validate(self._iter)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _batches(self) -> Iterator[Any]:
        """Batches without end, from the place of the run on."""
        total = self.images_per_iteration
        # After a change of the batch the rest of a batch is left out: its images were seen
        seen = -(-self.images_seen(self._iter) // total) if total else self._iter
        endless = isinstance(self._sampler(), InfiniteSampler)
        epoch, skip = (0, seen) if endless else divmod(seen, len(self.dataloader))
        while True:
            if hasattr(self._sampler(), 'set_epoch'):
                self._sampler().set_epoch(epoch)
            self._begin_data(skip)
            yield from self.dataloader
            epoch, skip = epoch + 1, 0
