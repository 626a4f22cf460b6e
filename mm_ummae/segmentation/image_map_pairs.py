"""Folders of images and of label maps, paired by their names."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset

from mm_ummae.datasets.damaged import DataError, name_some
from mm_ummae.datasets.image_files import list_images
from mm_ummae.registry import DATASETS


def find_pairs(images: str | Path, maps: str | Path, map_suffix: str = '') -> dict[str, str]:
    """Pair the images below a folder with the label maps below another: the same path without its ending.

    Args:
        images (str | Path): Folder of images, of any endings.
        maps (str | Path): Folder of maps, of any endings of images.
        map_suffix (str): What the names of maps have more before their ending, such as ``_mask``. Default: nothing.
    Returns:
        dict[str, str]: Map of each image, as paths below their folders, in the order of the images. Images without a
        map are left out, and logged with the maps without an image.
    Raises:
        DataError: If a name belongs to several images or maps.
    """
    found, targets = _by_stem(images, ''), _by_stem(maps, map_suffix)
    pairs = {path: targets[stem] for stem, path in found.items() if stem in targets}
    for folder, lone, other in (
        (images, [path for stem, path in found.items() if stem not in targets], 'label map'),
        (maps, [path for stem, path in targets.items() if stem not in found], 'image'),
    ):
        if lone:
            print_log(
                f'{folder}: {len(lone)} files without a {other} are left out: {name_some(lone)}',
                'current',
                logging.WARNING,
            )
    return pairs


def _by_stem(folder: str | Path, suffix: str) -> dict[str, str]:
    """Paths of the images below a folder by their path without ending and suffix."""
    found: dict[str, str] = {}
    for path in list_images(folder):
        stem = os.path.splitext(path)[0]
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in found:
            raise DataError(
                f'{folder} holds {found[stem]} and {path}: images and label maps are paired by their names without '
                'endings, so rename or remove one of them'
            )
        found[stem] = path
    return found


@DATASETS.register_module()
class ImageMapPairs(BaseSegDataset):
    """Images and label maps of two folders, whatever their endings.

    Args:
        map_suffix (str): See :func:`find_pairs`. Default: nothing.
        kwargs: Of MMSegmentation's ``BaseSegDataset``. ``data_prefix`` names the folders of images (``img_path``) and
            maps (``seg_map_path``), and ``ann_file`` a file with the paths of the images to take, one per line, below
            their folder; without it all are taken.

    Raises:
        DataError: If there is no pair, or a file that ``ann_file`` names has none.
    """

    def __init__(self, map_suffix: str = '', **kwargs) -> None:
        self.map_suffix = map_suffix
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Records with the paths of an image and its map."""
        images, maps = self.data_prefix['img_path'], self.data_prefix['seg_map_path']
        pairs = find_pairs(images, maps, self.map_suffix)
        if self.ann_file:
            names = [line for line in Path(self.ann_file).read_text(encoding='utf-8').splitlines() if line]
            lacking = [name for name in names if name not in pairs]
            if lacking:
                raise DataError(
                    f'{self.ann_file} names {len(lacking)} images of {len(names)} that {images} lacks, or whose label '
                    f'map {maps} lacks: {name_some(lacking)}'
                )
            pairs = {name: pairs[name] for name in names}
        if not pairs:
            raise DataError(
                f'no image of {images} has a label map in {maps}: a map has the name of its image, with another ending '
                f'and {self.map_suffix!r} before it (map_suffix)'
            )
        return [
            dict(
                img_path=os.path.join(images, image),
                seg_map_path=os.path.join(maps, path),
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[],
            )
            for image, path in pairs.items()
        ]
