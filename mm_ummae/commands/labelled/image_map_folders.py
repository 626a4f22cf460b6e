"""Images and label maps in two folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from mm_ummae.datasets.damaged import DataError, name_some
from mm_ummae.datasets.image_files import list_images
from mm_ummae.datasets.sampling import evenly_spaced

from .parts import IMAGE_FOLDERS, SPLITS, LabelledData, check_folder, log_parts, part_of_folder, split, warn

MAP_FOLDERS = ('masks', 'mask', 'labels', 'label', 'annotations', 'maps', 'gt', 'SegmentationClass')
MAP_SUFFIXES = ('', '_mask', '_masks', '_label', '_labels', '_seg', '_gt')
NUM_MAPS = 2000  # label maps that are read for their values
LOSSY = ('.jpg', '.jpeg')
MAX_VALUES = 254  # of label maps, beside the ignored one


def read_pairs(
    data: Path,
    out: Path,
    val_share: float,
    images: str | None,
    masks: str | None,
    classes: Sequence[str] | None,
) -> LabelledData:
    """Read a folder of images and one of label maps with the same names, in ``train`` and ``val`` or in one.

    Args:
        data (Path): Folder that holds both.
        out (Path): Folder for lists of images.
        val_share (float): Share of the images that is kept for validation, unless there is a ``val``.
        images (str, optional): Folder of images, below ``data``. Default: ``images`` and similar names.
        masks (str, optional): Folder of maps. Default: ``masks``, ``labels``, ``annotations`` and similar names.
        classes (Sequence[str], optional): Names of the classes. Default: a name per line in ``classes.txt``, or the
            values of the maps.
    Returns:
        LabelledData: Of segmentation.
    Raises:
        DataError: If a folder is missing, no image has a map, or the values of the maps do not fit the names.
    """
    from mm_ummae.segmentation import find_pairs  # needs MMSegmentation

    check_folder(data)
    images_folder = _choose_folder(data, images, IMAGE_FOLDERS, 'images')
    maps_folder = _choose_folder(data, masks, MAP_FOLDERS, 'masks')
    names = list_images(maps_folder)
    stems = {os.path.splitext(name)[0] for name in list_images(images_folder)}
    counts = {
        suffix: sum(os.path.splitext(name)[0].removesuffix(suffix) in stems for name in names)
        for suffix in MAP_SUFFIXES
    }
    suffix = max(counts, key=counts.get)
    pairs = find_pairs(images_folder, maps_folder, suffix)
    if not pairs:
        raise DataError(
            f'none of the {len(stems)} images of {images_folder} has a label map in {maps_folder}: a map has the path '
            'and name of its image, with another ending'
        )
    by_part: dict[str | None, list[str]] = {}
    for path in pairs:
        by_part.setdefault(part_of_folder(path.split('/')[0]) if '/' in path else None, []).append(path)
    parts = {part: by_part.get(part, []) for part in SPLITS}
    if parts['train'] and by_part.get(None):
        warn(f'{images_folder}: {len(by_part[None])} images beside train are left out: {name_some(by_part[None])}')
    if not parts['train']:
        parts = dict(
            train=[path for path in pairs if path not in {*parts['val'], *parts['test']}],
            **{part: parts[part] for part in ('val', 'test')},
        )
    if not parts['val']:
        parts['train'], parts['val'] = split(parts['train'], val_share, 'images')
    parts['test'] = parts['test'] or parts['val']
    used = {path for paths in parts.values() for path in paths}
    found = _values(maps_folder, [path for image, path in pairs.items() if image in used])
    classes, values, ignored = _name_values(found, classes or _names_in(data), maps_folder)
    written = {f'{part}.txt': ''.join(f'{path}\n' for path in paths) for part, paths in parts.items()}
    settings = dict(data_root=f'{data}/', map_suffix=suffix, values=values, ignored=ignored)
    for part in parts:
        settings[f'{part}_images'] = os.path.relpath(images_folder, data)
        settings[f'{part}_maps'] = os.path.relpath(maps_folder, data)
        settings[f'{part}_list'] = str(out / f'{part}.txt')
    log_parts(classes, {part: len(paths) for part, paths in parts.items()}, 'images with a label map')
    files = {part: [str(images_folder / path) for path in paths] for part, paths in parts.items()}
    return LabelledData(classes, files, settings, written)


def _choose_folder(data: Path, given: str | None, names: Sequence[str], option: str) -> Path:
    """The folder that is given, or the first of the usual names."""
    if given is not None:
        folder = data / given
        if not folder.is_dir():
            raise DataError(f'{option} is {given}, but there is no folder {folder}')
        return folder
    folder = next((data / name for name in names if (data / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f'{data} has no folder {", ".join(names)}: say which one it is ({option}). Parts are folders below '
            f'it, such as {names[0]}/train and {names[0]}/val'
        )
    return folder


def _names_in(data: Path) -> list[str] | None:
    path = data / 'classes.txt'
    if not path.exists():
        return None
    return [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]


def _values(folder: Path, paths: Sequence[str]) -> dict[int, str]:
    """Values of label maps, each with a map that has it."""
    from mm_ummae.segmentation import read_label_map

    found: dict[int, str] = {}
    for path in evenly_spaced(paths, NUM_MAPS):
        if path.lower().endswith(LOSSY):
            raise DataError(
                f'the label map {folder / path} is a JPEG, which changes values: save maps as PNG, from the source'
            )
        pixels = read_label_map(folder / path)
        for value in np.unique(pixels).tolist():
            found.setdefault(value, path)
    if len(found) > MAX_VALUES + 1:
        raise DataError(
            f'the label maps of {folder} have {len(found)} values, such as those of instances or of a lossy format: '
            f'write the value of a class into each pixel, at most {MAX_VALUES} of them'
        )
    if len(paths) > NUM_MAPS:
        warn(
            f'{folder}: the classes are those of {NUM_MAPS} of {len(paths)} label maps, spread evenly; name all in '
            'classes.txt if others have more'
        )
    return found


def _name_values(
    found: dict[int, str], names: Sequence[str] | None, folder: Path
) -> tuple[tuple[str, ...], tuple[int, ...], int | None]:
    """Classes, their values, and the value that is ignored.

    255 is ignored, as everywhere in the field, unless it is what makes a second class: in masks of 0 and 255.
    """
    values = sorted(found)
    ignored: int | None = 255
    if values == [0, 255]:
        ignored = None
        print_log(f'{folder}: the maps have the values 0 and 255, which are taken for two classes', 'current')
    else:
        values = [value for value in values if value != 255]
    if names is None:
        names = [str(value) for value in values]
    elif len(names) != len(values):
        if ignored is None or max(values) >= len(names):
            raise DataError(
                f'{len(names)} classes are named ({name_some(names)}), but the maps of {folder} have the values '
                f'{name_some(values)} (such as {found[values[-1]]}): name as many, or one for each value from 0 on'
            )
        values = list(range(len(names)))
    if len(values) < 2:
        raise DataError(
            f'the label maps of {folder} have the value {name_some(values)} only: segmentation needs two or more'
        )
    return tuple(names), tuple(values), ignored
