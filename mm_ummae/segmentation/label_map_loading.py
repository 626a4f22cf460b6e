"""Label maps whose values are any numbers, read into class indices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mm_ummae.datasets.damaged import DataError, name_some
from mm_ummae.registry import TRANSFORMS

IGNORED = 255  # class index of pixels without a label, as in MMSegmentation


def read_label_map(path: str | Path, backend_args: dict | None = None) -> np.ndarray:
    """Read a label map.

    Args:
        path (str | Path): Image file; of one with a palette, its indices count.
        backend_args (dict, optional): Of MMEngine's file backend.
    Returns:
        numpy.ndarray: (H, W) integers, of the file's type.
    Raises:
        DataError: If it cannot be read, or has several channels or values that are no integers.
    """
    try:
        with Image.open(io.BytesIO(fileio.get(str(path), backend_args=backend_args))) as image:
            pixels = np.asarray(image)
    except Exception as error:  # decoders raise all kinds
        raise DataError(f'the label map {path} cannot be read ({type(error).__name__}: {error})') from error
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in 'iu':
        raise DataError(
            f'the label map {path} has the shape {pixels.shape} and values of {pixels.dtype}, but a map has one '
            'channel, with the value of a class in each pixel: turn colours into values'
        )
    return pixels


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """Load a label map, and turn its values into class indices.

    Records without a map stay as they are: inferencers leave out the hosts' ``LoadAnnotations`` by its name, not this.

    Args:
        values (Sequence[int]): Value of each class in the files, of 8 or 16 bits.
        ignored (int, optional): Value of pixels without a label. Default 255. None: every pixel has one.
        kwargs: Of MMSegmentation's ``LoadAnnotations``.

    Raises:
        ValueError: If values repeat, or ``ignored`` is one of them.
        DataError: When a map is loaded that has other values, or several channels.
    """

    def __init__(self, values: Sequence[int], ignored: int | None = 255, **kwargs) -> None:
        super().__init__(**kwargs)
        values = [int(value) for value in values]
        if len({*values, ignored}) <= len(values) or len(values) >= IGNORED:
            raise ValueError(
                f'values is {values} and ignored {ignored}, but each class needs a value of its own, other than '
                f'ignored, and there may be {IGNORED - 1} of them'
            )
        self.values, self.ignored = values, ignored

    def _load_seg_map(self, results: dict) -> None:
        """(H, W) of the file's values -> (H, W) uint8 of class indices."""
        path = results.get('seg_map_path')
        if path is None:
            return
        pixels = read_label_map(path, self.backend_args)
        indices = np.full(pixels.shape, IGNORED, np.uint8)
        known = np.zeros(pixels.shape, bool) if self.ignored is None else pixels == self.ignored
        for index, value in enumerate(self.values):
            here = pixels == value
            indices[here] = index
            known |= here
        if not known.all():
            raise DataError(
                f'the label map {path} has the values {name_some(np.unique(pixels[~known]).tolist())}, but those of '
                f'the classes are {name_some(self.values)}'
                + ('' if self.ignored is None else f', and {self.ignored} is ignored')
                + ': add them to values and classes, or correct the map'
            )
        results['gt_seg_map'] = indices
        results['seg_fields'].append('gt_seg_map')

    def __repr__(self) -> str:
        return f'{type(self).__name__}(values={self.values}, ignored={self.ignored})'
