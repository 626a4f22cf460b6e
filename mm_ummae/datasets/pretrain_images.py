"""Pre-training dataset: an image folder without labels that tolerates damaged files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset

from mm_ummae.registry import DATASETS


@DATASETS.register_module()
class PretrainImages(CustomDataset):
    """All images below a folder, without labels.

    Among a million files some cannot be decoded. Such a file is logged by name once and replaced by another image. If
    more than ``max_bad_share`` of all files are bad, something is wrong with the data and the run stops. The worker
    processes of a rank share the flags of bad files.

    With ``repeats`` each file is read and decoded once, and the rest of the pipeline runs several times on it (repeated
    augmentation: Hoffer et al., Augment Your Batch, CVPR 2020). ``batch_size`` of the loader and the length of an epoch
    still count files: a batch has ``batch_size * repeats`` samples, and those of one file are adjacent.

    Args:
        data_root (str): Root folder of the dataset. Default ''.
        data_prefix (str): Image folder relative to ``data_root``; subfolders are searched. Default ''.
        max_bad_share (float): Tolerated share of files that cannot be decoded, in [0, 1). Default 0.01.
        repeats (int): Samples drawn from each file. Default 1.
        kwargs: Other arguments of MMPretrain's ``CustomDataset``. The first transform of ``pipeline`` must load the
            image; with ``repeats`` the others must not modify its pixels in place.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the folder holds no image, or ``max_bad_share`` or ``repeats`` is out of range.
        RuntimeError: While loading, if too many files are bad.
    """

    def __init__(
        self, data_root: str = '', data_prefix: str = '', max_bad_share: float = 0.01, repeats: int = 1, **kwargs
    ) -> None:
        if not 0 <= max_bad_share < 1:
            raise ValueError(f'max_bad_share is {max_bad_share}, but it must be in [0, 1)')
        if repeats < 1:
            raise ValueError(f'repeats is {repeats}, but it must be at least 1')
        self.max_bad_share = max_bad_share
        self.repeats = repeats
        kwargs.setdefault('with_label', False)
        super().__init__(data_root=data_root, data_prefix=data_prefix, **kwargs)

    def full_init(self) -> None:
        """Scan the folder."""
        super().full_init()
        # One byte per file in shared memory, so that worker processes see the bad files that others found
        self._bad = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def load_data_list(self) -> list[dict]:
        """List the files as ``dict(img_path=...)``."""
        folder = self.img_prefix
        if not folder.startswith(('http', 's3', 'petrel')) and not os.path.isdir(folder):
            raise FileNotFoundError(
                f'the data folder {folder} does not exist: set data_root (now {self.data_root!r}) and data_prefix, '
                'a folder below it'
            )
        try:
            return super().load_data_list()
        except RuntimeError as error:
            raise ValueError(f'the data folder {folder} holds no image: {error}') from error

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Samples of several files in one list; PyTorch's loader calls this and collates the result."""
        samples = [self[index] for index in indices]
        return samples if self.repeats == 1 else list(chain.from_iterable(samples))

    def prepare_data(self, idx: int) -> dict | list[dict] | None:
        """Run the pipeline on one file.

        Args:
            idx (int): Index of the file.
        Returns:
            dict | list[dict] | None: A sample, or a list of ``repeats`` samples if ``repeats`` is above 1. None for a
            bad file: MMEngine then draws another index.
        Raises:
            RuntimeError: If more than ``max_bad_share`` of the files are bad.
        """
        info = self.get_data_info(idx)
        load, *rest = self.pipeline.transforms
        try:
            results = load(info)
            if results is None or results.get('img') is None or results['img'].size == 0:
                raise ValueError('no pixels')
        # Decoders raise OSError, SyntaxError, cv2.error and more. Only loading is guarded: an error in a later
        # transform is a mistake in the config and must not be mistaken for a bad file.
        except Exception as error:
            self._report_bad(idx, info['img_path'], error)
            return None
        samples = [_run(rest, dict(results)) for _ in range(self.repeats)]
        if None in samples:
            return None
        return samples if self.repeats > 1 else samples[0]

    def _report_bad(self, idx: int, path: str, error: Exception) -> None:
        if not self._bad[idx]:
            self._bad[idx] = 1
            print_log(
                f'{path} cannot be decoded and is skipped ({type(error).__name__}: {error})',
                logger='current',
                level=logging.WARNING,
            )
        bad = int(self._bad.sum())
        if bad > self.max_bad_share * len(self):
            raise RuntimeError(
                f'{bad} of {len(self)} files below {self.img_prefix} cannot be decoded, more than max_bad_share '
                f'{self.max_bad_share} allows (the last one is {path}): repair the data or raise max_bad_share'
            ) from error


def _run(transforms: list[Callable], results: dict) -> dict | None:
    for transform in transforms:
        results = transform(results)
        if results is None:
            return None
    return results
