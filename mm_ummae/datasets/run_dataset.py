"""Dataset of a run: any dataset of a host, with a random stream for each sample and errors that name the file."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS

from .damaged import describe_failure
from .image_files import loop_in
from .random_streams import seed_streams


class RunDataset:
    """Wraps a dataset as MMEngine's wrappers do; everything but loading is that of the wrapped one.

    Args:
        dataset (dict | Dataset): The dataset, or its config.

    Raises:
        ValueError: If a link below a folder leads back to a folder that it lies in.
    """

    def __init__(self, dataset: Any) -> None:
        with _naming_loops():
            self.dataset = MMENGINE_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped dataset, such as ``metainfo`` and ``get_data_info``."""
        if name == 'dataset' or name.startswith('__'):  # not there yet, or asked by pickle and copy
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def full_init(self) -> None:
        """Scan the folder or read the annotations, where that was put off."""
        if hasattr(self.dataset, 'full_init'):
            with _naming_loops():
                self.dataset.full_init()

    @property
    def pipeline(self) -> Any:
        """Transforms of the wrapped dataset; hooks that switch them set them here."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        self.dataset.pipeline = pipeline

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Load a sample; a :class:`SeededIndex` starts its random streams."""
        return self._load(self.dataset.__getitem__, index, int(index))

    def __getitems__(self, indices: Sequence[int]) -> list:
        """Load the samples of a batch; PyTorch's loader calls this."""
        load = getattr(self.dataset, '__getitems__', None)
        if load is None:
            return [self[index] for index in indices]
        # One by one, since each has its own stream; a file may give several samples
        return [sample for index in indices for sample in self._load(load, index, [int(index)])]

    def _load(self, load: Callable, index: int, argument: Any) -> Any:
        key = getattr(index, 'key', ())
        if key:
            seed_streams(*key)
        try:
            return load(argument)
        except Exception as error:  # decoders and transforms raise all kinds
            raise describe_failure(self.dataset, int(index), error) from error


@contextmanager
def _naming_loops() -> Iterator[None]:
    """Name the link of a scan without end, which the system stops after 40 links."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ELOOP or not isinstance(error.filename, str):
            raise
        link, target = loop_in(error.filename)
        raise ValueError(
            f'the link {link} leads back to {target}, in which it lies, so that its folder has no end: remove the link'
        ) from error
