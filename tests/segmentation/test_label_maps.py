"""Images and label maps paired by their names, and maps of any values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_ummae.datasets.damaged import DataError
from mm_ummae.segmentation import ImageMapPairs, LoadLabelMap, find_pairs, read_label_map


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def load(path: Path, **arguments: object) -> np.ndarray:
    return LoadLabelMap(**arguments)(dict(seg_map_path=str(path), seg_fields=[]))['gt_seg_map']


def test_values_become_indices(tmp_path: Path) -> None:
    """Of 8 and 16 bits; 255 and any other value that is named is ignored."""
    values = np.array([[20, 3, 7, 255]], np.uint8)
    assert load(save(tmp_path / 'a.png', values), values=[3, 7, 20]).tolist() == [[2, 0, 1, 255]]
    wide = np.array([[1000, 40000, 65535, 1000]], np.uint16)
    assert load(save(tmp_path / 'b.png', wide), values=[1000, 40000], ignored=65535).tolist() == [[0, 1, 255, 0]]
    masks = np.array([[0, 255]], np.uint8)
    assert load(save(tmp_path / 'c.png', masks), values=[0, 255], ignored=None).tolist() == [[0, 1]]
    assert load(save(tmp_path / 'd.png', masks > 0), values=[0, 1]).tolist() == [[0, 1]], 'of one bit'


def test_an_image_without_a_map_stays_as_it_is() -> None:
    """In inference."""
    assert LoadLabelMap(values=[0, 1])(dict(img_path='a.jpg')) == dict(img_path='a.jpg')


def test_maps_that_do_not_fit(tmp_path: Path) -> None:
    path = save(tmp_path / 'a.png', np.array([[0, 4, 9]], np.uint8))
    with pytest.raises(
        DataError, match=r'a.png has the values 4, 9, but those of the classes are 0, 1, and 255 is ign'
    ):
        load(path, values=[0, 1])
    path = save(tmp_path / 'b.png', np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(
        DataError, match=r'b.png has the shape \(4, 4, 3\) and values of uint8, but a map has one channel'
    ):
        load(path, values=[0, 1])
    (tmp_path / 'c.png').write_bytes(b'no image')
    with pytest.raises(DataError, match=r'c\.png cannot be read'):
        read_label_map(tmp_path / 'c.png')


@pytest.mark.parametrize(
    'arguments', [dict(values=[1, 1]), dict(values=[0, 255]), dict(values=range(255), ignored=None)]
)
def test_values_that_are_no_classes(arguments: dict) -> None:
    with pytest.raises(ValueError, match='but each class needs a value of its own, other than ignored'):
        LoadLabelMap(**arguments)


def test_pairs_have_the_same_names(tmp_path: Path) -> None:
    for name in ('été/a.jpg', 'b.webp', 'lone.png'):
        save(tmp_path / 'images' / name, np.zeros((4, 4), np.uint8))
    for name in ('été/a_mask.png', 'b_mask.tif', 'other_mask.png', 'c.png'):
        save(tmp_path / 'masks' / name, np.zeros((4, 4), np.uint8))
    pairs = find_pairs(tmp_path / 'images', tmp_path / 'masks', '_mask')
    assert pairs == {'b.webp': 'b_mask.tif', 'été/a.jpg': 'été/a_mask.png'}
    settings = dict(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('a', 'b')),
        pipeline=[],
    )
    (tmp_path / 'list.txt').write_text('été/a.jpg\n')
    dataset = ImageMapPairs(map_suffix='_mask', ann_file='list.txt', **settings)
    assert [dataset[0][key] for key in ('img_path', 'seg_map_path')] == [
        str(tmp_path / 'images/été/a.jpg'),
        str(tmp_path / 'masks/été/a_mask.png'),
    ]
    (tmp_path / 'list.txt').write_text('lone.png\n')
    with pytest.raises(DataError, match=r'list.txt names 1 images of 1 that .*images lacks, or whose label map'):
        ImageMapPairs(map_suffix='_mask', ann_file='list.txt', **settings)
    with pytest.raises(DataError, match=r"no image of .* has a label map in .*'_x' before it \(map_suffix\)"):
        ImageMapPairs(map_suffix='_x', **settings)
    save(tmp_path / 'images' / 'b.png', np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r'holds b.png and b.webp: images and label maps are paired by their names'):
        find_pairs(tmp_path / 'images', tmp_path / 'masks', '_mask')
