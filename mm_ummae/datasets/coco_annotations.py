"""Check of an annotation file in COCO's format against the classes of a data set, by the rules of MMDetection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from .damaged import DataError, name_some

CROWDS = 'crowds (regions that are ignored)'
TINY = 'smaller than 1 px'
OUTSIDE = 'outside of their image'
UNKNOWN = 'of unknown images'
MARKED = 'marked to be ignored'
NO_POLYGON = 'with polygons of fewer than three points'
OTHER = 'of categories that the config does not use'
IN_SMALL = 'in images that are too small'


@dataclass(frozen=True)
class Use:
    """How a data set uses its annotation file.

    Args:
        classes (tuple[str, ...]): Names of the classes in the config.
        training (bool): Whether a network learns from it; else it is validated or tested on it.
        masks (bool): Whether the pipeline loads masks. Default False.
        filter_empty (bool): Whether images without objects are left out. Default False.
        min_size (int): Images with a shorter side are left out, in pixels. Default 0.
    """

    classes: tuple[str, ...]
    training: bool
    masks: bool = False
    filter_empty: bool = False
    min_size: int = 0


@dataclass
class Report:
    """What is left of a file.

    Args:
        all_images (int): Images in the file.
        all_annotations (int): Annotations in the file.
        images (int): Images that are used.
        objects (int): Annotations that are objects to learn from or to find.
        left_out (Counter): Number of annotations by the reason why they are no objects.
        warnings (list[str]): What is suspicious.
    """

    all_images: int
    all_annotations: int
    images: int = 0
    objects: int = 0
    left_out: Counter = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A line for the log."""
        reasons = [f'{count} {reason}' for reason, count in self.left_out.items()]
        without = self.all_images - self.images
        reasons += [f'{without} images without objects or too small (filter_cfg)'] if without else []
        return (
            f'{self.images} of {self.all_images} images and {self.objects} of {self.all_annotations} annotations are '
            f'used; left out: {", ".join(reasons) or "none"}'
        )


def check_coco(path: str, content: Any, use: Use) -> Report:
    """Check a file before MMDetection reads it, and count what it will take from it.

    A label is the place of a category among the categories of the *file* that the config names, while names of classes
    come from the config. So both have to list the same classes in the same order: a class that the file lacks would
    shift the labels of all that follow.

    Args:
        path (str): Of the file, for messages.
        content (Any): The parsed JSON.
        use (Use): How it is used.
    Returns:
        Report: Counts and warnings.
    Raises:
        DataError: Names the file, the categories or annotation ids, the rule and the way out.
    """
    where = f'the annotation file {path}'
    needed = ('images', 'categories', 'annotations') if use.training else ('images', 'categories')
    lacking = [key for key in needed if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise DataError(
            f"{where} has no list of {' and of '.join(lacking)}, which COCO's format has: correct ann_file, or convert "
            'the file'
        )
    _check_categories(where, content['categories'], use.classes)
    images = _check_images(where, content['images'])
    annotations = content.get('annotations') or []
    _check_ids(where, annotations)
    return _count(where, annotations, images, content['categories'], use)


def _check_categories(where: str, categories: list[dict], classes: tuple[str, ...]) -> None:
    _check_ids(where, categories, 'categories')
    _check_keys(where, categories, 'categories', ('name',))
    names = [category['name'] for category in categories]
    used = [name for name in names if name in classes]
    way_out = "set the data set's metainfo=dict(classes=...) to the file's names in their order"
    if not used:
        raise DataError(
            f'{where} has none of the classes of the config. Config: {name_some(classes)}; file: {name_some(names)}. '
            f'Either {way_out}, and num_classes of the heads to their number, or rename the categories in the file'
        )
    missing = [name for name in classes if name not in names]
    if missing:
        raise DataError(
            f'{where} has no category for {len(missing)} classes of the config: {name_some(missing)}. Labels are '
            'places among the categories, so those of other classes would be shifted. The file has '
            f'{name_some(names)}. Add the categories to the file (they need no objects), or {way_out}'
        )
    repeated = [name for name, number in Counter(used).items() if number > 1]
    if repeated:
        raise DataError(f'{where} lists the categories {name_some(repeated)} more than once: merge them in the file')
    if used != list(classes):
        first = next(index for index, name in enumerate(classes) if used[index] != name)
        raise DataError(
            f'{where} lists its categories in another order than the config: label {first} is {used[first]!r} in the '
            f'file and {classes[first]!r} in the config, so predictions would bear wrong names. The file has '
            f'{name_some(used)}: {way_out}'
        )


def _check_images(where: str, images: list[dict]) -> dict[Any, dict]:
    """Images by their ids."""
    _check_ids(where, images, 'images')
    _check_keys(where, images, 'images', ('file_name', 'height', 'width'))
    return {image['id']: image for image in images}


def _check_keys(where: str, entries: list[dict], name: str, keys: Sequence[str]) -> None:
    for key in keys:
        lacking = [entry['id'] for entry in entries if key not in entry]
        if lacking:
            raise DataError(f'{where}: {len(lacking)} {name} have no {key} (ids {name_some(lacking)}): add it')


def _check_ids(where: str, entries: list[dict], name: str = 'annotations') -> None:
    without = [index for index, entry in enumerate(entries) if 'id' not in entry]
    if without:
        raise DataError(f'{where}: {len(without)} {name} have no id (number {name_some(without)} of the list): add it')
    if len({entry['id'] for entry in entries}) < len(entries):
        repeated = [key for key, number in Counter(entry['id'] for entry in entries).items() if number > 1]
        raise DataError(
            f'{where}: {len(repeated)} ids of {name} are not unique ({name_some(repeated)}): number them anew'
        )


def _count(where: str, annotations: list[dict], images: dict, categories: list[dict], use: Use) -> Report:
    """Go through the annotations in the order of MMDetection's own rules."""
    kept = _kept_images(annotations, images, categories, use)
    report = Report(len(images), len(annotations), len(kept))
    ids = {category['id']: category['name'] for category in categories if category['name'] in use.classes}
    lists: dict[str, list] = {key: [] for key in ('image', 'bbox', 'area', 'iscrowd', 'mask')}
    found: Counter = Counter()  # objects by category
    for annotation in annotations:
        image = images.get(annotation.get('image_id'))
        if image is None:
            lists['image'].append(annotation['id'])
            report.left_out[UNKNOWN] += 1
            continue
        reason = MARKED if annotation.get('ignore') else None
        if not reason:
            box = annotation.get('bbox')
            if not _is_box(box):
                lists['bbox'].append(annotation['id'])
                continue
            reason = _left_out(annotation, box, image, ids, lists)
        if 'iscrowd' not in annotation and annotation.get('category_id') in ids:
            lists['iscrowd'].append(annotation['id'])
        if not reason and annotation['image_id'] not in kept:
            reason = IN_SMALL
        if not reason and use.masks:
            mask = annotation.get('segmentation')
            if not mask:
                lists['mask'].append(annotation['id'])
            elif isinstance(mask, list) and not any(len(part) >= 6 and len(part) % 2 == 0 for part in mask):
                reason = NO_POLYGON
        reason = CROWDS if not reason and annotation.get('iscrowd') else reason
        if reason:
            report.left_out[reason] += 1
        else:
            report.objects += 1
            found[annotation['category_id']] += 1
    _raise_for(where, lists, len(annotations), use)
    if use.training and not report.objects:
        reasons = ', '.join(f'{number} are {reason}' for reason, number in report.left_out.items())
        raise DataError(
            f'{where} has no object to learn from: of {len(annotations)} annotations {reasons or "none is left"}. '
            'Correct the annotations (iscrowd=1 is for regions that are ignored, objects have 0) or ann_file'
        )
    if lists['image']:
        report.warnings.append(
            f'{where}: {len(lists["image"])} annotations have an image_id that no image of the file has, and are left '
            f'out (ids {name_some(lists["image"])})'
        )
    if lists['iscrowd']:
        report.warnings.append(
            f'{where}: {len(lists["iscrowd"])} annotations have no iscrowd, which is taken for 0 '
            f'(ids {name_some(lists["iscrowd"])})'
        )
    empty = [name for key, name in ids.items() if not found[key]]
    if empty and use.training:
        report.warnings.append(f'{where} has no object of {len(empty)} classes: {name_some(empty)}')
    other = [category['name'] for category in categories if category['name'] not in use.classes]
    if other:
        report.warnings.append(
            f'{where} has {len(other)} categories that the config does not use ({name_some(other)}); their '
            f'{report.left_out[OTHER]} annotations are left out'
        )
    return report


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(value, (int, float)) and isfinite(value) for value in box)
    )


def _left_out(annotation: dict, box: Sequence[float], image: dict, ids: dict, lists: dict[str, list]) -> str | None:
    """Why an annotation is no object, or None."""
    x, y, width, height = box
    inside = min(x + width, image['width']) > max(x, 0) and min(y + height, image['height']) > max(y, 0)
    if not inside:
        return OUTSIDE
    if 'area' not in annotation:
        lists['area'].append(annotation['id'])
    elif annotation['area'] <= 0:
        return TINY
    if width < 1 or height < 1:
        return TINY
    return None if annotation.get('category_id') in ids else OTHER


def _raise_for(where: str, lists: dict[str, list], number: int, use: Use) -> None:
    """Raise for annotations that lack what is needed."""
    rules = [
        ('bbox', 'no box of four numbers', 'It is x, y, width, height in pixels: add it, or remove the annotations'),
        ('area', 'no area', 'MMDetection and the metrics need it: add the area of the mask or of the box in pixels'),
    ]
    if use.masks:
        rules.append(
            (
                'mask',
                'no segmentation',
                'The pipeline loads masks (LoadAnnotations with_mask=True): add polygons or RLE, remove the '
                'annotations, or train a detector without masks, such as a config of configs/gfl',
            )
        )
    if not use.training:
        rules.append(('iscrowd', 'no iscrowd', "COCO's metrics need it: add iscrowd=0 for objects, 1 for crowds"))
    for key, what, way_out in rules:
        if lists[key]:
            ids = name_some(lists[key])
            raise DataError(f'{where}: {len(lists[key])} of {number} annotations have {what} (ids {ids}). {way_out}')


def _kept_images(annotations: list[dict], images: dict, categories: list[dict], use: Use) -> set:
    """Ids of the images that are left after MMDetection's filters; in a test all are used."""
    if not use.training:
        return set(images)
    used = {category['id'] for category in categories if category['name'] in use.classes}
    with_objects = {each.get('image_id') for each in annotations if each.get('category_id') in used}
    return {
        key
        for key, image in images.items()
        if min(image['width'], image['height']) >= use.min_size and (not use.filter_empty or key in with_objects)
    }
