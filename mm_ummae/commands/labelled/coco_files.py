"""Annotation files in COCO's format."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mm_ummae.datasets.coco_annotations import Use, check_coco
from mm_ummae.datasets.damaged import DataError, name_some

from .parts import IMAGE_FOLDERS, SPLITS, LabelledData, check_folder, log_parts, split, warn


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
    for part, path in files.items():
        print_log(f'{part}: {path}, images in {folders[part]}', 'current')
    classes, masks = _check_coco(files, contents)
    written: dict[str, str] = {}
    if 'val' not in files:
        halves = split(
            contents['train']['images'], val_share, f'images of {files["train"]}', key=lambda image: image['file_name']
        )
        whole = contents['train']
        for part, kept in zip(('train', 'val'), halves, strict=True):
            ids = {image['id'] for image in kept}
            annotations = [each for each in whole['annotations'] if each.get('image_id') in ids]
            contents[part] = dict(whole, images=kept, annotations=annotations)
            written[f'{part}.json'] = json.dumps(contents[part])
            files[part], folders[part] = out / f'{part}.json', folders['train']
    if 'test' not in files:
        files['test'], folders['test'], contents['test'] = files['val'], folders['val'], contents['val']
    settings: dict[str, Any] = dict(data_root='', masks=masks)
    for part in ('train', 'val', 'test'):
        settings[f'{part}_file'] = str(files[part])
        settings[f'{part}_images'] = f'{folders[part]}/'
    paths = {
        part: [str(folders[part] / image['file_name']) for image in content['images']]
        for part, content in contents.items()
    }
    with_objects = {each['image_id'] for each in contents['train']['annotations']}
    kept = [image for image in contents['train']['images'] if image['id'] in with_objects]
    if len(kept) < len(paths['train']):
        print_log(f'{len(paths["train"]) - len(kept)} images without objects are not trained on', 'current')
        paths['train'] = [str(folders['train'] / image['file_name']) for image in kept]
    log_parts(classes, {part: len(each) for part, each in paths.items()}, 'images')
    return LabelledData(classes, paths, settings, written)


def _coco_files(data: Path, val: Path | None, test: Path | None) -> dict[str, Path]:
    """Annotation files by part."""
    if data.is_file():
        files = dict(train=data)
    else:
        check_folder(data)
        every = sorted(path for path in data.rglob('*.json') if len(path.relative_to(data).parts) <= 2)
        files = {}
        for part, names in SPLITS.items():
            mine = [path for path in every if _part_of(path.relative_to(data).as_posix()) == part]
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
                    f"{data} has {len(every)} JSON files in it and its subfolders, but one in COCO's format is "
                    'needed, or one with train in its name: name the one to train on as data, that of validation as val'
                )
            files = dict(train=every[0])
    for part, path in dict(val=val, test=test).items():
        if path is not None:
            files[part] = path
    for part, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f'{part} is {path}, but there is no such file')
    return files


def _part_of(file: str) -> str | None:
    """Which part a file is for, by the words of its path, such as ``instances_train2017.json``."""
    words = set(re.split('[^a-z]+', file.lower()))
    return next((part for part, names in SPLITS.items() if words & set(names)), None)


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
    numbers = [each['name'] for each in content['categories'] if not isinstance(each['name'], str)]
    if numbers:
        raise DataError(f'{path} has categories whose names are no text ({name_some(numbers)}): put them in quotes')
    backslashes = [image['file_name'] for image in content['images'] if '\\' in image['file_name']]
    if backslashes:
        raise DataError(
            f'{path} has file names of Windows, such as {backslashes[0]}: write / in place of the backslashes'
        )
    return content


def _check_coco(files: dict[str, Path], contents: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], bool]:
    """Check annotation files as the runner will check those of a split; returns classes, and if all have masks."""
    classes = tuple(each['name'] for each in contents['train']['categories'])
    for part, content in contents.items():
        names = tuple(each['name'] for each in content['categories'])
        if names != classes:
            raise DataError(
                f'{files[part]} has the categories {name_some(names)}, but {files["train"]} has {name_some(classes)}: '
                'write the same ones into both, in the same order'
            )
    every = [each for content in contents.values() for each in content['annotations']]
    without = [each.get('id') for each in every if not _has_mask(each.get('segmentation'))]
    if without:
        some = '' if len(without) == len(every) else f' (ids {name_some(without)}), and Mask R-CNN needs all'
        warn(f'{len(without)} of {len(every)} objects have no mask{some}: boxes only are learned')
    for part, content in contents.items():
        # A file that is split is for both
        for training in (True, False) if len(contents) == 1 else (part == 'train',):
            use = Use(classes, training, masks=not without, filter_empty=training)
            report = check_coco(str(files[part]), content, use)
            for warning in report.warnings if training else ():
                warn(warning)
    return classes, not without


def _has_mask(segmentation: Any) -> bool:
    """Run lengths, or a polygon of three points."""
    if isinstance(segmentation, list):
        return any(isinstance(part, list) and len(part) >= 6 for part in segmentation)
    return bool(segmentation)


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
