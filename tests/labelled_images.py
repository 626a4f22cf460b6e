"""Labelled images as people have them: kinds and sizes mixed, class ids with gaps, endings of all sorts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_tools

from demo.scenes import crop_photograph, draw_mosaic, draw_scene
from tests.mixed_images import KINDS

IDS = {'bolt': 7, 'nut': 20, 'washer': 3}  # category ids, and values of label maps
PLAIN = ('rgb.jpg', 'grey.JPG', 'small.webp')  # kinds of images that hosts read, too


def make_coco(folder: Path, count: int, side: int = 112, kinds: Sequence[str] = PLAIN, masks: bool = True) -> Path:
    """Write ``count`` images below ``folder/images`` and ``folder/objects.json``; returns the file."""
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng(index)
        scene = draw_scene(rng, 'train', side + index % 3 * 16)
        height, width = scene.image.shape[0] - index % 2 * 8, scene.image.shape[1]
        name = _write(folder / 'images', index, scene.image[:height], kinds)
        images.append(dict(id=index, file_name=name, height=height, width=width))
        for thing in scene.objects:
            mask = np.asfortranarray(thing.mask[:height].astype(np.uint8))
            encoded = mask_tools.encode(mask)
            if not mask.any():
                continue
            entry = dict(
                id=len(annotations) + 1,
                image_id=index,
                category_id=list(IDS.values())[thing.label % 3],
                bbox=mask_tools.toBbox(encoded).tolist(),
                area=int(mask.sum()),
                iscrowd=0,
            )
            if masks:
                entry['segmentation'] = dict(size=encoded['size'], counts=encoded['counts'].decode())
            annotations.append(entry)
    categories = [dict(id=number, name=name) for name, number in IDS.items()]
    path = folder / 'objects.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def make_pairs(folder: Path, count: int, side: int = 112, kinds: Sequence[str] = PLAIN) -> Path:
    """Write images and label maps, with the values of ``IDS`` and 255, and ``classes.txt``; returns the folder."""
    for index in range(count):
        rng = np.random.default_rng(index)
        image, photographs = draw_mosaic(rng, 'train', side + index % 3 * 16)
        name = _write(folder / 'images', index, image, kinds)
        values = np.array(sorted(IDS.values()), np.uint8)[photographs % 3]
        values[:2] = 255
        target = (folder / 'masks' / name).with_suffix('.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(target)
    (folder / 'classes.txt').write_text('\n'.join(sorted(IDS, key=IDS.get)))
    return folder


def make_classes(folder: Path, count: int, side: int = 112, kinds: Sequence[str] = PLAIN) -> Path:
    """Write images in a folder for each class of ``IDS``; returns the folder."""
    for index in range(count):
        rng = np.random.default_rng(index)
        name = list(IDS)[index % 3]
        image = crop_photograph(rng, index % 3, 'train', side + index % 2 * 16)[0]
        _write(folder / name, index // 3, image, kinds)
    return folder


def _write(folder: Path, index: int, pixels: np.ndarray, kinds: Sequence[str]) -> str:
    name = f'{"été" if index % 2 else "a b"}/{index:03d} {kinds[index % len(kinds)]}'
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kinds[index % len(kinds)]](pixels, path)
    return name
