"""Flags of the files of a dataset that cannot be decoded or read, shared by the loader processes of a rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# Kinds of failure. The larger number wins where two ranks saw one file differently
UNREAD, UNDECODED = 1, 2
NEW = 2  # added to a kind that was found since the last merge; it wins over the same kind without it
GOOD = 5  # flagged in other ranks, but decoded here since the last merge; wins over all


class FileFlags:
    """Which files cannot be decoded or read.

    A byte per file lies in shared memory, so that the loader processes of a rank see each other's. A file that is
    decoded later loses its flag. Ranks merge their flags by the maximum of each byte, after which they agree.

    Args:
        num_files (int): Files of the dataset.
    """

    def __init__(self, num_files: int) -> None:
        self._bytes = torch.zeros(num_files, dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        """Number of files, flagged or not."""
        return len(self._bytes)

    def set(self, index: int, kind: int) -> bool:
        """Flag a file.

        Args:
            index (int): Index of the file.
            kind (int): ``UNREAD`` or ``UNDECODED``.
        Returns:
            bool: Whether the file had no flag of this kind.
        """
        if int(self._bytes[index]) in (kind, kind + NEW):
            return False
        self._bytes[index] = kind + NEW
        return True

    def clear(self, index: int) -> bool:
        """Remove the flag of a file that was decoded; returns whether it had one."""
        if int(self._bytes[index]) in (0, GOOD):
            return False
        self._bytes[index] = GOOD
        return True

    def find(self, kind: int) -> list[int]:
        """Indices of the files with a flag of this kind."""
        return np.flatnonzero(self._flagged(kind)).tolist()

    def count(self, kind: int) -> int:
        """Number of files with a flag of this kind."""
        return np.count_nonzero(self._flagged(kind))

    def changed(self) -> bool:
        """Whether a flag was set or removed since the last merge."""
        return bool((self._bytes.numpy() > UNDECODED).any())

    def merge(self, maximum: Callable[[Tensor], Tensor]) -> None:
        """Unite the flags of all ranks.

        Args:
            maximum (Callable): Takes a uint8 tensor (num_files,) and returns its elementwise maximum over all ranks.
        """
        before = self._bytes.clone()
        merged = maximum(before.clone())
        merged[merged == GOOD] = 0
        merged[merged > UNDECODED] -= NEW
        # Loader processes may have set others in the meantime
        self._bytes.copy_(torch.where(self._bytes == before, merged, self._bytes))

    def _flagged(self, kind: int) -> np.ndarray:
        values = self._bytes.numpy()  # a view; NumPy compares bytes many times as fast as PyTorch
        return (values == kind) | (values == kind + NEW)
