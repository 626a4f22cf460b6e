"""Labelled images as people have them: COCO files, folders of images and label maps, a folder for each class.

Each reader finds the parts for training, validation and tests, splits the images if there is no validation set, and
reads the classes from the data.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mm_ummae.datasets.damaged import DataError, name_some
from mm_ummae.datasets.image_files import list_images
from mm_ummae.datasets.sampling import evenly_spaced

SPLITS = dict(train=('train', 'training'), val=('val', 'valid', 'validation'), test=('test', 'testing'))
IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'JPEGImages')
MAP_FOLDERS = ('masks', 'mask', 'labels', 'label', 'annotations', 'maps', 'gt', 'SegmentationClass')
MAP_SUFFIXES = ('', '_mask', '_masks', '_label', '_labels', '_seg', '_gt')
NUM_MAPS = 2000  # label maps that are read for their values


@dataclass
class LabelledData:
    """Labelled images of a task.

    Args:
        classes (tuple[str, ...]): Names of the classes.
        files (dict[str, list[str]]): Images of ``train``, ``val`` and ``test``; those of validation are also those of
            the test if there are no others.
        values (dict[str, Any]): Values at the top of the config that say where the data are.
        written (dict[str, str]): Files that belong to the run, by their names: lists and annotations of a split.
    """

    classes: tuple[str, ...]
    files: dict[str, list[str]]
    values: dict[str, Any]
    written: dict[str, str] = field(default_factory=dict)


def read_class_folders(data: Path, out: Path, val_share: float) -> LabelledData:
    """Read a folder with a subfolder of images for each class, or with ``train`` and ``val`` that hold those.

    Args:
        data (Path): The folder.
        out (Path): Folder for lists of images.
        val_share (float): Share of the images of each class that is kept for validation, unless there is a ``val``.
    Returns:
        LabelledData: Of classification.
    Raises:
        DataError: If there are fewer than two classes, or parts have other classes than ``train``.
    """
    _check_folder(data)
    folders = {
        part: data / next(name for name in names if (data / name).is_dir())
        for part, names in SPLITS.items()
        if any((data / name).is_dir() for name in names)
    }
    if 'train' not in folders:
        folders = dict(train=data)
    classes = _subfolders(folders['train'])
    if len(classes) < 2:
        raise DataError(
            f'data is {data}, but {folders["train"]} has {len(classes)} subfolders: classification needs a subfolder '
            'with images for each of two or more classes'
        )
    found = {}
    for part, folder in folders.items():
        foreign = sorted(set(_subfolders(folder)) - set(classes))
        if foreign:
            raise DataError(f'{folder} has the classes {name_some(foreign)}, which {folders["train"]} lacks')
        found[part] = [
            (f'{name}/{path}', label) for label, name in enumerate(classes) for path in _images(folder, name)
        ]
        if not found[part]:
            raise DataError(f'{folder} holds no image')
    empty = [name for label, name in enumerate(classes) if all(label != each for _, each in found['train'])]
    if empty:
        raise DataError(f'{folders["train"]} has no image of the classes {name_some(empty)}: add some, or remove them')
    if 'val' not in found:
        folders['val'] = folders['train']
        by_class = [[each for each in found['train'] if each[1] == label] for label in range(len(classes))]
        halves = [_split(each, val_share, f'images of {name}') for name, each in zip(classes, by_class, strict=True)]
        found['train'], found['val'] = ([each for half in halves for each in half[side]] for side in (0, 1))
    if 'test' not in found:
        folders['test'], found['test'] = folders['val'], found['val']
    values, written = dict(data_root=f'{data}/'), {}
    for part, samples in found.items():
        values[f'{part}_images'] = os.path.relpath(folders[part], data)
        values[f'{part}_list'] = str(out / f'{part}.txt')
        written[f'{part}.txt'] = ''.join(f'{path} {label}\n' for path, label in samples)
    _log(classes, {part: len(samples) for part, samples in found.items()}, 'images')
    files = {part: [str(folders[part] / path) for path, _ in samples] for part, samples in found.items()}
    return LabelledData(tuple(classes), files, values, written)


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

    _check_folder(data)
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
    parts = {part: [path for path in pairs if path.split('/')[0] in names] for part, names in SPLITS.items()}
    if not parts['train']:
        parts = dict(
            train=[path for path in pairs if path not in {*parts['val'], *parts['test']}],
            **{part: parts[part] for part in ('val', 'test')},
        )
    if not parts['val']:
        parts['train'], parts['val'] = _split(parts['train'], val_share, 'images')
    parts['test'] = parts['test'] or parts['val']
    found = _values(maps_folder, [pairs[path] for part in ('train', 'val') for path in parts[part]])
    classes, values, ignored = _name_values(found, classes or _names_in(data), maps_folder)
    written = {f'{part}.txt': ''.join(f'{path}\n' for path in paths) for part, paths in parts.items()}
    settings = dict(data_root=f'{data}/', map_suffix=suffix, values=values, ignored=ignored)
    for part in parts:
        settings[f'{part}_images'] = os.path.relpath(images_folder, data)
        settings[f'{part}_maps'] = os.path.relpath(maps_folder, data)
        settings[f'{part}_list'] = str(out / f'{part}.txt')
    _log(classes, {part: len(paths) for part, paths in parts.items()}, 'images with a label map')
    files = {part: [str(images_folder / path) for path in paths] for part, paths in parts.items()}
    return LabelledData(classes, files, settings, written)


def read_coco(
    data: Path, out: Path, val_share: float, val: Path | None, test: Path | None, images: Path | None
) -> LabelledData:
    """Read annotation files in COCO's format.

    Args:
        data (Path): The training file, or a folder whose JSON files have ``train``, ``val`` and ``test`` in their path;
            a single one is split.
        out (Path): Folder for the files of a split.
        val_share (float): Share of the images that is kept for validation, unless there is a file.
        val (Path, optional): File of validation.
        test (Path, optional): File of tests. Default: that of validation.
        images (Path, optional): Folder where the file names of the images begin. Default: that of the file, one above
            it, ``images`` or a folder of the part beside it: the first that has them.
    Returns:
        LabelledData: Of detection, with masks if all objects have some.
    Raises:
        DataError: If a file is no COCO file, its images are missing, or parts have other categories.
    """
    files = _coco_files(data, val, test)
    contents = {part: _read_coco(path) for part, path in files.items()}
    folders = {part: _image_folder(path, contents[part], images, part) for part, path in files.items()}
    written: dict[str, str] = {}
    if 'val' not in files:
        halves = _split(contents['train']['images'], val_share, f'images of {files["train"]}')
        whole = contents['train']
        for part, kept in zip(('train', 'val'), halves, strict=True):
            ids = {image['id'] for image in kept}
            annotations = [each for each in whole['annotations'] if each.get('image_id') in ids]
            contents[part] = dict(whole, images=kept, annotations=annotations)
            written[f'{part}.json'] = json.dumps(contents[part])
            files[part], folders[part] = out / f'{part}.json', folders['train']
    if 'test' not in files:
        files['test'], folders['test'], contents['test'] = files['val'], folders['val'], contents['val']
    classes = tuple(str(each['name']) for each in contents['train']['categories'])
    for part, content in contents.items():
        names = tuple(str(each['name']) for each in content['categories'])
        if names != classes:
            raise DataError(
                f'{files[part]} has the categories {name_some(names)}, but {files["train"]} has {name_some(classes)}: '
                'write the same ones into both, in the same order'
            )
    objects = [
        each for part in ('train', 'val', 'test') for each in contents[part]['annotations'] if not each.get('iscrowd')
    ]
    without = sum(not each.get('segmentation') for each in objects)
    if without:
        print_log(
            f'{without} of {len(objects)} objects have no mask: boxes only are learned'
            + ('' if without == len(objects) else ', since Mask R-CNN needs a mask for each object'),
            'current',
            logging.WARNING if without < len(objects) else logging.INFO,
        )
    settings: dict[str, Any] = dict(data_root='', masks=not without)
    for part in ('train', 'val', 'test'):
        settings[f'{part}_file'] = str(files[part])
        settings[f'{part}_images'] = f'{folders[part]}/'
    paths = {
        part: [str(folders[part] / image['file_name']) for image in content['images']]
        for part, content in contents.items()
    }
    _log(classes, {part: len(each) for part, each in paths.items()}, 'images')
    return LabelledData(classes, paths, settings, written)


def _check_folder(data: Path) -> None:
    if not data.is_dir():
        raise FileNotFoundError(f'data is {data}, but there is no such folder')


def _subfolders(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith('.'))


def _images(folder: Path, name: str) -> list[str]:
    return list_images(folder / name) if (folder / name).is_dir() else []


def _split(items: Sequence[Any], share: float, what: str) -> tuple[list[Any], list[Any]]:
    """Items for training and for validation, drawn with a fixed seed, each in their order."""
    if not 0 < share < 1:
        raise ValueError(f'val_share is {share}, but it must be between 0 and 1')
    count = max(round(len(items) * share), 1)
    if count >= len(items):
        raise DataError(f'there are {len(items)} {what}, but training and validation need one each at least: add some')
    chosen = set(np.random.default_rng(0).permutation(len(items))[:count].tolist())
    kept = [item for index, item in enumerate(items) if index not in chosen]
    return kept, [item for index, item in enumerate(items) if index in chosen]


def _choose_folder(data: Path, given: str | None, names: Sequence[str], option: str) -> Path:
    """The folder that is given, or the first of the usual names."""
    if given is not None:
        folder = data / given
        if not folder.is_dir():
            raise DataError(f'{option} is {given}, but there is no folder {folder}')
        return folder
    folder = next((data / name for name in names if (data / name).is_dir()), None)
    if folder is None:
        raise DataError(f'{data} has no folder {", ".join(names)}: say which one it is ({option})')
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
        try:
            pixels = read_label_map((folder / path).read_bytes())
        except Exception as error:  # decoders raise all kinds
            raise DataError(
                f'the label map {folder / path} cannot be read ({type(error).__name__}: {error})'
            ) from error
        if pixels.ndim != 2 or pixels.dtype.kind not in 'iu':
            raise DataError(
                f'the label map {folder / path} has the shape {pixels.shape} and values of {pixels.dtype}, but a map '
                'has one channel, with the value of a class in each pixel: turn colours into values'
            )
        for value in np.unique(pixels).tolist():
            found.setdefault(value, path)
    if len(paths) > NUM_MAPS:
        print_log(
            f'{folder}: the classes are those of {NUM_MAPS} of {len(paths)} label maps, spread evenly; name '
            'all in classes.txt if others have more',
            'current',
            logging.WARNING,
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


def _coco_files(data: Path, val: Path | None, test: Path | None) -> dict[str, Path]:
    """Annotation files by part."""
    if data.is_file():
        files = dict(train=data)
    else:
        _check_folder(data)
        every = sorted(path for path in data.rglob('*.json') if len(path.relative_to(data).parts) <= 2)
        files = {}
        for part, names in SPLITS.items():
            mine = [path for path in every if _part_of(path.relative_to(data)) == part]
            if len(mine) > 1:
                raise DataError(
                    f'{data} has {len(mine)} files for {names[0]} ({name_some([str(path) for path in mine])}): name '
                    'the one to train on as data, and that of validation as val'
                )
            if mine:
                files[part] = mine[0]
        if 'train' not in files:
            if len(every) != 1:
                raise DataError(
                    f'{data} has {len(every)} JSON files in it and its subfolders, none or several of which may be '
                    "annotations in COCO's format: name the one to train on as data, and that of validation as val"
                )
            files = dict(train=every[0])
    for part, path in dict(val=val, test=test).items():
        if path is not None:
            files[part] = path
    for part, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f'{part} is {path}, but there is no such file')
    return files


def _part_of(path: Path) -> str | None:
    """Which part a file is for, by its name or its folder."""
    words = path.as_posix().lower()
    return next((part for part in SPLITS if part in words), None)


def _read_coco(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise DataError(f'the annotation file {path} is no JSON ({error}): copy or write it again') from error
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            raise DataError(f"{path} has no {key}, which COCO's format has: correct data, or convert the file")
    lacking = Counter(
        f'{key} without {name}'
        for key, names in dict(images=('id', 'file_name'), categories=('id', 'name')).items()
        for entry in content[key]
        for name in names
        if name not in entry
    )
    if lacking:
        raise DataError(f'{path} has {", ".join(f"{count} {what}" for what, count in lacking.items())}: add them')
    return content


def _image_folder(file: Path, content: dict[str, Any], given: Path | None, part: str) -> Path:
    """Where the file names of an annotation file begin."""
    names = [image['file_name'] for image in content['images']]
    around = (file.parent, file.parent.parent)
    usual = [folder / name for folder in around for name in (*IMAGE_FOLDERS, *SPLITS[part], f'{part}2017')]
    candidates = [given] if given else [*around, *usual, *(folder / 'images' / part for folder in around)]
    counts = {folder: _count_present(folder, names) for folder in candidates if folder.is_dir()}
    folder = max(counts, key=counts.get, default=None)
    if folder is None or not counts[folder]:
        places = given or f'{file.parent}, {file.parent.parent}, or a folder such as images or {part} there'
        raise DataError(
            f'none of the {len(names)} images of {file}, such as {names[0]}, is in {places}: name the folder where '
            'their file names begin (images)'
        )
    if counts[folder] < len(names):
        lacking = [name for name in names if not (folder / name).is_file()]
        raise DataError(
            f'{len(lacking)} of {len(names)} images of {file} are missing in {folder}: {name_some(lacking)}. Add them, '
            'or remove their entries'
        )
    return folder


def _count_present(folder: Path, names: Iterable[str]) -> int:
    """How many of the files exist, by one listing of each folder."""
    listings: dict[str, set[str]] = {}
    count = 0
    for name in names:
        where, base = os.path.split(os.path.join(folder, name))
        if where not in listings:
            listings[where] = set(os.listdir(where)) if os.path.isdir(where) else set()
        count += base in listings[where]
    return count


def _log(classes: Sequence[str], counts: dict[str, int], what: str) -> None:
    parts = ', '.join(f'{part} {count}' for part, count in counts.items())
    print_log(f'{what}: {parts}; {len(classes)} classes: {name_some(classes)}', 'current')
