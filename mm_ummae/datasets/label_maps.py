"""Check of label maps: one class index per pixel, the size of the image, and values that are classes."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from PIL import Image

from .damaged import DataError, find_damage, name_some
from .sampling import evenly_spaced

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF: the tag, and values that swap height and width
IGNORED_16 = 65535  # of 16 bits, which becomes 255 when they are cut to 8


@dataclass(frozen=True)
class Values:
    """Values that a loaded map may have.

    Args:
        num_classes (int): Classes are 0 to ``num_classes - 1``.
        ignored (int): Value of pixels that are ignored. Default 255.
    """

    num_classes: int
    ignored: int = 255

    def foreign(self, loaded: np.ndarray) -> list[int]:
        """Values of a map that are neither a class nor ignored; comparisons cost a tenth of counting all values."""
        return np.unique(loaded[(loaded >= self.num_classes) & (loaded != self.ignored)]).tolist()


class LabelMapCheck(BaseTransform):
    """Transform behind ``LoadAnnotations`` that raises for a map that does not fit.

    Args:
        values (Values): Values that a map may have.

    Raises:
        DataError: Names the map, what is wrong and the way out.
    """

    def __init__(self, values: Values) -> None:
        self.values = values

    def transform(self, results: dict) -> dict:
        """Look at a loaded map; returns the record as it is."""
        loaded = results.get('gt_seg_map')
        if loaded is not None:
            problem = find_problem(loaded, results.get('ori_shape'), self.values)
            if problem:
                raise DataError(f'the label map {results["seg_map_path"]} {problem}')
        return results


def find_problem(loaded: np.ndarray, shape: tuple[int, ...] | None, values: Values) -> str | None:
    """What is wrong with a map.

    Args:
        loaded (numpy.ndarray): (H, W) integers, as ``LoadAnnotations`` returns them.
        shape (tuple[int, ...], optional): (H, W) of its image.
        values (Values): Values that it may have.
    Returns:
        str | None: The problem, the rule and the way out; None if it fits.
    """
    if loaded.ndim != 2:
        return (
            f'has {loaded.shape[-1]} channels, but a map has one, with the index of a class in each pixel: turn the '
            'colours into indices'
        )
    if shape is not None and loaded.shape != tuple(shape[:2]):
        return (
            f'has {loaded.shape[1]} x {loaded.shape[0]} px, but its image has {shape[1]} x {shape[0]} px: labels would '
            'lie beside their objects. Draw it anew, or resize it without interpolation'
        )
    foreign = values.foreign(loaded)
    if foreign:
        return (
            f'has the values {name_some(foreign)}, which are no classes: those are 0 to {values.num_classes - 1}, and '
            f'{values.ignored} is ignored (after reduce_zero_label, which makes 0 ignored and '
            'lowers the others by 1, if it is set). Correct the maps, or num_classes, classes and reduce_zero_label'
        )
    return None


def map_loaders(pipeline: Any) -> Iterator[tuple[list, int]]:
    """Where a pipeline loads label maps: lists of transforms and the place in them, also inside other transforms."""
    for steps in _lists(pipeline):
        for place, step in enumerate(steps):
            # Hosts inherit or repeat MMCV's method; classes that load other things have their own
            own = getattr(type(step), 'transform', None)
            if getattr(step, 'with_seg', False) and getattr(own, '__qualname__', '') == 'LoadAnnotations.transform':
                yield steps, place
            yield from map_loaders(step)


def watch(pipeline: Any, values: Values) -> None:
    """Put a :class:`LabelMapCheck` behind each loader of label maps in a pipeline."""
    for steps, place in reversed(list(map_loaders(pipeline))):
        if not (place + 1 < len(steps) and isinstance(steps[place + 1], LabelMapCheck)):
            steps.insert(place + 1, LabelMapCheck(values))


def check_maps(dataset: Any, loader: Any, values: Values, num_maps: int) -> tuple[str, list[str]]:
    """Look up all maps of a data set, and load some that are spread evenly over it.

    Args:
        dataset (Any): Data set of a host whose records have ``img_path`` and ``seg_map_path``.
        loader (Any): The ``LoadAnnotations`` of its pipeline.
        values (Values): Values that a map may have.
        num_maps (int): Maps to load.
    Returns:
        tuple[str, list[str]]: A line for the log, and warnings.
    Raises:
        DataError: If maps are missing, cannot be read or do not fit, or all pixels of all of them are ignored.
    """
    paths = [dataset.get_data_info(index).get('seg_map_path') for index in range(len(dataset))]
    named = [index for index, path in enumerate(paths) if path]
    if not named:
        return 'the records name no label maps', []
    _check_exist([paths[index] for index in named])
    sample = evenly_spaced(named, num_maps)
    problems, empty, counts = [], [], np.zeros(0, int)
    for index in sample:
        record = dataset.get_data_info(index)
        path = record['seg_map_path']
        loaded = _load(loader, record)
        problem = find_problem(loaded, _image_shape(record, dataset), values)
        if not problem and loaded.dtype == np.uint8 and not hasattr(loader, 'values'):  # LoadLabelMap reads 16 bits
            problem = _wide_values(path, loader)
        if problem:
            problems.append((path, problem))
            continue
        count = _count(loaded)
        counts = _add(counts, count)
        if not count[: values.num_classes].any():
            empty.append(path)
    if problems:
        path, problem = problems[0]
        others = name_some([os.path.basename(each) for each, _ in problems[1:]])
        raise DataError(
            f'{len(problems)} of {len(sample)} label maps that were looked at do not fit. {path} {problem}'
            + (f'. Others are {others}' if others else '')
        )
    labelled = counts[: values.num_classes]
    if len(empty) == len(sample):
        raise DataError(
            f'all pixels of all {len(sample)} label maps that were looked at are ignored, such as those of {empty[0]}, '
            f'which has {_raw_values(empty[0], loader)}: nothing would be learnt. With reduce_zero_label=True 0 and '
            '255 are ignored and 1 is the first class, without it 255 alone is ignored: write the index of a class '
            'into each pixel (of masks, in place of 255), or correct reduce_zero_label of data set and LoadAnnotations'
        )
    seen = np.flatnonzero(labelled)
    if values.num_classes > 1 and list(seen) == [0] and counts[255:].any():
        raise DataError(
            f'all {len(sample)} label maps that were looked at, such as {paths[sample[0]]}, have class 0 and ignored '
            'pixels (255) only, as masks of 0 and 255 have: nothing but class 0 would be learnt. Write 1 for 255'
        )
    warnings = []
    if empty:
        warnings.append(f'all pixels of {len(empty)} label maps are ignored: {name_some(empty)}')
    if len(seen) == 1 and values.num_classes > 1:
        warnings.append(f'the label maps that were looked at have class {seen[0]} only, of {values.num_classes}')
    share = 1 - labelled.sum() / counts.sum()
    line = (
        f'{len(named)} label maps exist, {len(sample)} of them were looked at: they have the sizes of their images, '
        f'{len(seen)} of {values.num_classes} classes and {share:.1%} ignored pixels. Each is checked when it is loaded'
    )
    return line, warnings


def _lists(pipeline: Any) -> Iterator[list]:
    """Lists of transforms of a ``Compose`` or of a transform that holds others."""
    transforms = getattr(pipeline, 'transforms', None)
    if isinstance(pipeline, list):
        yield pipeline
    elif isinstance(transforms, list):
        yield transforms
    for subroutine in getattr(pipeline, 'subroutines', ()):
        yield from _lists(subroutine)


def _check_exist(paths: list[str]) -> None:
    """Look all paths up with one listing for each folder; single look-ups take minutes on network storage."""
    folders = {os.path.dirname(path) for path in paths}
    if any('://' in folder or folder.startswith(('s3:', 'petrel:')) for folder in folders):
        return
    names = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else set() for folder in folders}
    missing = [path for path in paths if os.path.basename(path) not in names[os.path.dirname(path)]]
    if missing:
        raise DataError(
            f'{len(missing)} of {len(paths)} label maps are missing: {name_some(missing)}. Correct data_prefix, '
            'seg_map_suffix or ann_file, or add the maps (an image without labels gets one of the ignored value)'
        )


def _load(loader: Any, record: dict) -> np.ndarray:
    """A map as the pipeline loads it, without boxes and masks."""
    alone = copy.copy(loader)
    for name in ('with_bbox', 'with_label', 'with_mask', 'with_keypoints'):
        setattr(alone, name, False)
    try:
        return alone.transform(dict(record, seg_fields=[]))['gt_seg_map']
    except Exception as error:  # decoders raise all kinds
        path = record['seg_map_path']
        damage = find_damage(_read(path, loader)) if os.path.isfile(path) else None
        reason = damage or f'cannot be loaded ({type(error).__name__}: {error})'
        raise DataError(f'the label map {path} {reason}: copy or make it again') from error


def _read(path: str, reader: Any) -> bytes:
    return fileio.get(path, backend_args=getattr(reader, 'backend_args', None))


def _image_shape(record: dict, dataset: Any) -> tuple[int, int] | None:
    """(H, W) from the header of an image; None if it cannot be read, which is noticed when it is loaded."""
    path = record.get('img_path')
    if not path:
        return None
    try:
        # Of a local file no more than the header is read
        source = path if os.path.isfile(path) else io.BytesIO(_read(path, dataset))
        with Image.open(source) as image:
            width, height = image.size
            sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    except Exception:
        return None
    return (width, height) if sideways else (height, width)


def _raw(path: str, loader: Any) -> np.ndarray:
    with Image.open(io.BytesIO(_read(path, loader))) as image:
        return np.asarray(image)


def _wide_values(path: str, loader: Any) -> str | None:
    """Values above 255 of a file with more than 8 bits, which MMSegmentation cuts off."""
    with Image.open(io.BytesIO(_read(path, loader))) as image:
        if image.mode in ('1', 'L', 'P'):
            return None
        raw = np.asarray(image)
    highest = raw[raw != IGNORED_16].max(initial=0)
    if highest <= 255:
        return None
    return (
        f'has values up to {highest}, which do not fit into 8 bits: write classes below 255, and 255 for ignored pixels'
    )


def _raw_values(path: str, loader: Any) -> str:
    return f'the values {name_some(np.unique(_raw(path, loader)).tolist())} in the file'


def _count(loaded: np.ndarray) -> np.ndarray:
    """Number of pixels of each value, at least 256 values."""
    return np.bincount(loaded.ravel().astype(np.intp), minlength=256)


def _add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(one), len(other)), int)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
