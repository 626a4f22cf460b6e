"""Labelled images in a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

from mm_ummae.datasets.damaged import DataError, name_some
from mm_ummae.datasets.image_files import SUFFIXES, list_images

from .parts import LabelledData, check_folder, log_parts, part_of_folder, split, warn


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
    check_folder(data)
    folders: dict[str, Path] = {}
    for name in _subfolders(data):
        part = part_of_folder(name)
        if part in folders:
            raise DataError(f'{data} has {folders[part].name} and {name}: leave one folder for {part}')
        if part:
            folders[part] = data / name
    if folders and 'train' not in folders:
        raise DataError(f'{data} has {name_some([each.name for each in folders.values()])}, but no folder train')
    others = sorted(set(_subfolders(data)) - {each.name for each in folders.values()}) if folders else []
    if others:
        warn(f'{data}: folders beside train are left out: {name_some(others)}')
    folders = folders or dict(train=data)
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
        loose = [each.name for each in folder.iterdir() if each.suffix.lower() in SUFFIXES]
        if loose:
            warn(f'{folder}: {len(loose)} images that lie in no class are left out: {name_some(sorted(loose))}')
    empty = [name for label, name in enumerate(classes) if all(label != each for _, each in found['train'])]
    if empty:
        raise DataError(f'{folders["train"]} has no image of the classes {name_some(empty)}: add some, or remove them')
    if 'val' not in found:
        folders['val'] = folders['train']
        by_class = [[each for each in found['train'] if each[1] == label] for label in range(len(classes))]
        halves = [
            split(each, val_share, f'images of {name}', key=lambda sample: sample[0])
            for name, each in zip(classes, by_class, strict=True)
        ]
        found['train'], found['val'] = ([each for half in halves for each in half[side]] for side in (0, 1))
    if 'test' not in found:
        folders['test'], found['test'] = folders['val'], found['val']
    values, written = dict(data_root=f'{data}/'), {}
    for part, samples in found.items():
        values[f'{part}_images'] = os.path.relpath(folders[part], data)
        values[f'{part}_list'] = str(out / f'{part}.txt')
        written[f'{part}.txt'] = ''.join(f'{path} {label}\n' for path, label in samples)
    log_parts(classes, {part: len(samples) for part, samples in found.items()}, 'images')
    files = {part: [str(folders[part] / path) for path, _ in samples] for part, samples in found.items()}
    return LabelledData(tuple(classes), files, values, written)


def _subfolders(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith('.'))


def _images(folder: Path, name: str) -> list[str]:
    return list_images(folder / name) if (folder / name).is_dir() else []
