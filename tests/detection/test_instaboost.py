"""InstaBoost and MoveStuff: pasted pixels, new masks and boxes, the semantic map, and hard annotations."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from instaboostfast.pycococreater import binary_mask_to_rle
from matplotlib import pyplot
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmengine.runner import set_random_seed
from pycocotools import mask as mask_tools
from scipy.ndimage import binary_dilation, binary_erosion
from torch.utils.data import DataLoader

from demo.images import DIGIT_CLASSES
from demo.make_data import write_coco
from mm_ummae.detection import InstaBoost, MoveStuff

SIDE = 64
GREY = 100
IGNORED = 255
IMAGES = 12
LOAD = dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    set_random_seed(0)


@pytest.fixture(scope='module')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images, the eleventh with a crowd; the values in the maps are labels of objects below 10."""
    root = tmp_path_factory.mktemp('data') / 'coco'
    write_coco(root, seed=0, image_size=SIDE, num_coco_train=IMAGES, num_coco_val=1)
    return root


def dataset(coco: Path, *steps: dict) -> BaseDataset:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(
            dict(
                type='mm_ummae.CocoStuffDataset',
                data_root=f'{coco}/',
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/', seg='stuffthingmaps/train2017/'),
                metainfo=dict(classes=DIGIT_CLASSES),
                pipeline=[dict(type='LoadImageFromFile'), *steps],
            )
        )


def moving(coco: Path, **options: Any) -> BaseDataset:
    """Images, annotations and maps after InstaBoost and MoveStuff."""
    return dataset(coco, dict(type='mm_ummae.InstaBoost', **options), LOAD, dict(type='mm_ummae.MoveStuff'))


def square(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """The polygon that pycocotools fills with exactly these pixels."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def filled(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    return mask_tools.encode(np.asfortranarray(mask, np.uint8))


def as_text(mask: np.ndarray) -> dict:
    code = compressed(mask)
    return dict(code, counts=code['counts'].decode('ascii'))


def uncompressed(mask: np.ndarray) -> dict:
    return binary_mask_to_rle(mask.astype(np.uint8))


def instance(mask: object, label: int = 3, box: tuple[float, ...] = (10, 10, 30, 30), crowd: int = 0) -> dict:
    return dict(bbox=list(box), bbox_label=label, mask=mask, ignore_flag=crowd)


def painted(*shades: tuple[np.ndarray, int]) -> np.ndarray:
    """A grey image with each mask in its own shade."""
    image = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    for mask, shade in shades:
        image[mask] = shade
    return image


def boost(image: np.ndarray, *instances: dict, **options: Any) -> dict:
    """Always applied, and without changes of colour."""
    transform = InstaBoost(**{'aug_ratio': 1.0, 'color_prob': 0.0, **options})
    return transform(dict(img=image.copy(), instances=copy.deepcopy(list(instances)), ori_shape=image.shape[:2]))


def loaded(results: dict) -> dict:
    """As MMDetection reads the annotations."""
    return LoadAnnotations(with_bbox=True, with_mask=True)(copy.deepcopy(results))


def masks(results: dict) -> np.ndarray:
    """(N, H, W) bool."""
    return loaded(results)['gt_masks'].masks.astype(bool)


def tight_box(mask: np.ndarray) -> list[int]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, x + width, y + height]


DISTANCE = np.hypot(*(np.indices((SIDE, SIDE)) - 32))
DISC, RING = DISTANCE < 14, (DISTANCE < 14) & (DISTANCE > 7)
BOX = filled(20, 24, 20, 16)
FORMS = {
    'polygon': square(20, 24, 20, 16),
    'counts in a list': uncompressed(BOX),
    'counts in bytes': compressed(BOX),
    'counts in a string': as_text(BOX),
}


# Instances that are pasted


@pytest.mark.parametrize('mask', FORMS.values(), ids=FORMS)
def test_pasted_pixels_lie_under_the_new_mask(mask: object) -> None:
    """Whatever the form of the annotation, and where its box is a pixel off; other keys of the instance are kept."""
    thing = {**instance(mask, box=(20.6, 23.2, 39.1, 40.4)), 'track': 'seven'}
    moved = 0
    for _ in range(10):
        results = boost(painted((BOX, 250)), thing)
        assert results['instances'][0]['track'] == 'seven'
        annotations = loaded(results)
        (new,) = annotations['gt_masks'].masks.astype(bool)
        assert annotations['gt_bboxes'].tensor.tolist() == [tight_box(new)]
        assert annotations['gt_ignore_flags'].tolist() == [False]
        # Cubic interpolation overshoots at the edge
        inside, outside = binary_erosion(new), ~binary_dilation(new, iterations=3)
        assert (results['img'][inside] > 210).all()
        assert (np.abs(results['img'][outside].astype(int) - GREY) < 10).all()
        moved += not np.array_equal(new, BOX)
    assert moved >= 8


def test_a_hole_stays_a_hole() -> None:
    results = boost(painted((RING, 250)), instance(as_text(RING)), theta=(0, 0))
    (new,) = masks(results)
    left, top, right, bottom = tight_box(new)
    row, column = (top + bottom) // 2, (left + right) // 2
    centre = (slice(row - 2, row + 2), slice(column - 2, column + 2))
    assert not new[centre].any() and (results['img'][centre] < 150).all()


def test_a_polygon_that_leaves_the_image_is_pasted() -> None:
    thing = instance(square(-6, 24, 26, 16), box=(-6, 24, 20, 40))
    results = boost(painted((filled(0, 24, 20, 16), 250)), thing)
    (new,) = masks(results)
    assert results['instances'][0]['bbox'] == tight_box(new)
    assert len(results['moved']) == 1 and new[:, 0].any()


def test_an_instance_that_vanishes_is_dropped_and_reported() -> None:
    """Three pixels, scaled to a hundredth."""
    speck, other = instance(square(12, 12, 3, 3)), instance(square(30, 30, 20, 20), label=5)
    results = boost(painted(), speck, other, scale=(0.01, 0.01), theta=(0, 0))
    assert [item['bbox_label'] for item in results['instances']] == [5]
    assert results['moved'] == [(speck['mask'], None), (other['mask'], results['instances'][0]['mask'])]


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_a_wide_image_and_its_map(dtype: type) -> None:
    """Height and width are not confused, and the dtype of the image is kept."""
    image, labels = np.full((40, 90, 3), GREY, dtype), np.full((40, 90), 90, np.uint8)
    image[12:24, 60:76], labels[12:24, 60:76] = 250, 7
    results = boost(image, instance(square(60, 12, 16, 12)))
    (new,) = masks(results)
    assert results['img'].dtype == dtype
    assert new.shape == (40, 90) and (results['img'][binary_erosion(new)] > 210).all()
    moved_map = MoveStuff()({**results, 'gt_seg_map': labels, 'ignore_index': IGNORED})['gt_seg_map']
    assert np.array_equal(moved_map == 7, new)


# Instances and images that stay as they are

STUCK = {
    'one pixel': square(50, 50, 1, 1),
    'one row': square(45, 50, 9, 1),
    'box that rounds to nothing': [[50.2, 50.2, 50.4, 50.2, 50.4, 50.4]],
    'no polygon': [],
    'empty polygon': [[]],
    'two corners': [[50, 50, 55, 55]],
    'odd number of coordinates': [[50, 50, 55, 50, 55, 55, 50]],
    'outside the image': square(SIDE + 5, 10, 20, 20),
    'empty run-lengths': as_text(np.zeros((SIDE, SIDE))),
}


@pytest.mark.parametrize('mask', STUCK.values(), ids=STUCK)
def test_degenerate_masks_are_not_moved(mask: object) -> None:
    stuck, thing = instance(mask, label=1, box=(50, 50, 50, 50)), instance(FORMS['polygon'], label=2)
    image = painted((BOX, 250))
    results = boost(image, stuck, thing, color_prob=1.0)
    assert results['instances'][0] == stuck and results['instances'][1]['mask'] != thing['mask']
    assert [before for before, _ in results['moved']] == [thing['mask']]
    alone = boost(image, stuck)
    assert alone['instances'] == [stuck] and alone['moved'] == [] and np.array_equal(alone['img'], image)


def test_a_crowd_is_not_moved() -> None:
    crowd, thing = instance(uncompressed(RING), crowd=1), instance(square(2, 2, 10, 10))
    results = boost(painted((RING, 200), (filled(2, 2, 10, 10), 250)), crowd, thing)
    assert results['instances'][0] == crowd and len(results['moved']) == 1
    assert (results['img'][binary_erosion(RING)] == 200).all()


@pytest.mark.parametrize('results', [dict(instances=[]), {}], ids=['empty list', 'no list'])
def test_an_image_without_instances_passes(results: dict) -> None:
    image = painted((DISC, 250))
    after = InstaBoost(aug_ratio=1.0)(dict(img=image, **results))
    assert after['moved'] == [] and after['img'] is image and after.get('instances', []) == []


def test_aug_ratio_is_a_probability() -> None:
    image, thing = painted((filled(4, 4, 8, 8), 250))[:16, :16], instance(square(4, 4, 8, 8))
    transform = InstaBoost(aug_ratio=0.3)
    applied = [bool(transform(dict(img=image, instances=[thing]))['moved']) for _ in range(600)]
    assert 0.24 < np.mean(applied) < 0.36  # three standard deviations


def test_nothing_changes_where_it_is_not_applied(coco: Path) -> None:
    unchanged, expected = moving(coco, aug_ratio=0.0), dataset(coco, LOAD)
    for index in range(IMAGES):
        results, original = unchanged[index], expected[index]
        assert results.pop('moved') == [] and results.keys() == original.keys()
        assert results['instances'] == original['instances']
        for name in ('img', 'gt_seg_map', 'gt_bboxes_labels', 'gt_ignore_flags'):
            assert np.array_equal(results[name], original[name])
        assert np.array_equal(results['gt_masks'].masks, original['gt_masks'].masks)


# The transform as an object


def test_matplotlib_keeps_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package changes it on import."""
    for name in [name for name in sys.modules if name.partition('.')[0] == 'instaboostfast']:
        monkeypatch.delitem(sys.modules, name)
    before = pyplot.get_backend()
    pyplot.switch_backend('svg')
    try:
        boost(painted((DISC, 250)), instance(compressed(DISC)))
        assert pyplot.get_backend() == 'svg'
    finally:
        pyplot.switch_backend(before)


def test_missing_package_is_named_when_the_transform_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'instaboostfast', None)
    with pytest.raises(ImportError, match=r'pip install --no-build-isolation instaboostfast==0\.1\.2(\n|$)'):
        TRANSFORMS.build(dict(type='mm_ummae.InstaBoost'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(aug_ratio=-0.1), r'aug_ratio is -0\.1, but it must be in \[0, 1\]'),
        (dict(aug_ratio=50), r'aug_ratio is 50, but'),
        *(
            (
                dict(action_candidate=('normal', action), action_prob=(0.5, 0.5)),
                rf"action_prob is .*'{action}': 0\.5.*, but it must be 0 for",
            )
            for action in ('horizontal', 'vertical')
        ),
    ],
    ids=['negative', 'above 1', 'horizontal', 'vertical'],
)
def test_illegal_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstaBoost(**options)


# The semantic map


def move(old_map: np.ndarray, *moved: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
    """The map after instances moved from one mask to another."""
    codes = [(compressed(before), None if after is None else uncompressed(after)) for before, after in moved]
    results = dict(img=painted(), gt_seg_map=old_map.copy(), moved=codes, ignore_index=IGNORED)
    return MoveStuff()(results)['gt_seg_map']


def stuff(*things: tuple[np.ndarray, int]) -> np.ndarray:
    """A map of class 90 with things."""
    labels = np.full((SIDE, SIDE), 90, np.uint8)
    for mask, value in things:
        labels[mask] = value
    return labels


OLD, NEAR, FAR = filled(10, 10, 10, 10), filled(15, 12, 10, 10), filled(40, 40, 10, 10)
IGNORED_PART, OTHER_PART = filled(10, 10, 10, 6), filled(10, 16, 4, 4)


@pytest.mark.parametrize(
    ('before', 'target', 'after'),
    [
        (stuff((OLD, 7)), NEAR, stuff((OLD, IGNORED), (NEAR, 7))),
        (stuff((OLD, 7), (IGNORED_PART, IGNORED), (OTHER_PART, 9)), FAR, stuff((OLD, IGNORED), (FAR, 7))),
        (stuff((OLD, IGNORED)), FAR, stuff((OLD, IGNORED))),
        (stuff((OLD, 7)), None, stuff((OLD, IGNORED))),
    ],
    ids=['overlap', 'most frequent class', 'unknown class', 'left the image'],
)
def test_the_map_follows_an_instance(before: np.ndarray, target: np.ndarray | None, after: np.ndarray) -> None:
    """The class of an instance is the most frequent one that is not ignored; uncovered pixels become ignored."""
    assert np.array_equal(move(before, (OLD, target)), after)


def test_later_groups_cover_earlier_ones() -> None:
    """Even if the visible share of the earlier one is larger."""
    left, right, target = filled(10, 10, 10, 10), filled(30, 10, 10, 10), filled(18, 30, 10, 10)
    old = stuff((left, 1), (right, 2), (filled(30, 10, 4, 10), 90))
    for (first, _), (second, value) in (((left, 1), (right, 2)), ((right, 2), (left, 1))):
        new = move(old, (first, filled(14, 30, 10, 10)), (second, target))
        assert (new[target] == value).all()


def test_order_inside_a_group_is_that_of_the_old_map() -> None:
    """A cup, 2, stays on its table, 1, whichever is annotated first."""
    table, cup = filled(10, 10, 30, 20), filled(20, 12, 6, 6)
    table_now, cup_now = filled(13, 12, 30, 20), filled(23, 14, 6, 6)
    old, expected = stuff((table, 1), (cup, 2)), stuff((table, IGNORED), (table_now, 1), (cup_now, 2))
    assert np.array_equal(move(old, (table, table_now), (cup, cup_now)), expected)
    assert np.array_equal(move(old, (cup, cup_now), (table, table_now)), expected)


def test_generated_data(coco: Path) -> None:
    """All instances but crowds are pasted with a tight box; each is in the map where it is visible, and only there."""
    boosted, expected = moving(coco, aug_ratio=1.0, theta=(-10, 10), dx=4, dy=4), dataset(coco, LOAD)
    crowds = 0
    for index in [*range(IMAGES)] * 2:
        before, after = expected[index], boosted[index]
        things = ~before['gt_ignore_flags']
        crowds += (~things).sum()
        old, new = (results['gt_masks'].masks[things].astype(bool) for results in (before, after))
        for name in ('gt_ignore_flags', 'gt_bboxes_labels'):
            assert np.array_equal(after[name], before[name])
        assert np.array_equal(after['gt_masks'].masks[~things], before['gt_masks'].masks[~things])
        assert after['gt_bboxes'].tensor[things].tolist() == [tight_box(mask) for mask in new]
        assert len(after['moved']) == things.sum()
        for number, label in enumerate(after['gt_bboxes_labels'][things]):
            visible = new[number] & ~np.delete(new, number, 0).any(0)
            assert visible.any() and (after['gt_seg_map'][visible] == label).all()
        uncovered, kept = old.any(0) & ~new.any(0), ~old.any(0) & ~new.any(0)
        assert (after['gt_seg_map'][uncovered] == IGNORED).all()
        assert np.array_equal(after['gt_seg_map'][kept], before['gt_seg_map'][kept])
    assert crowds


@pytest.mark.parametrize(
    ('missing', 'source'), [('moved', r'mm_ummae\.InstaBoost'), ('gt_seg_map', r'LoadAnnotations\(with_seg=True\)')]
)
def test_wrong_order_of_transforms_is_named(missing: str, source: str) -> None:
    results = dict(img=painted(), gt_seg_map=stuff(), moved=[], ignore_index=IGNORED)
    del results[missing]
    message = rf'there is no {missing}, but mm_ummae\.MoveStuff must come .*: {source} is missing or comes later'
    with pytest.raises(ValueError, match=message):
        MoveStuff()(results)


def test_a_map_of_another_size_is_named() -> None:
    results = dict(img=painted(), gt_seg_map=stuff()[:, :60], moved=[], seg_map_path='maps/1.png', img_path='1.jpg')
    message = r'maps/1\.png has the shape \(64, 60\), but it must be \(64, 64\) as that of its image 1\.jpg'
    with pytest.raises(ValueError, match=message):
        MoveStuff()(results)


@pytest.mark.integration
def test_the_pipeline_runs_in_loader_processes(coco: Path) -> None:
    data = dataset(
        coco,
        dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
        LOAD,
        dict(type='mm_ummae.MoveStuff'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    )
    loader = DataLoader(data, 4, num_workers=2, collate_fn=pseudo_collate, timeout=120)
    samples = [sample for batch in loader for sample in batch['data_samples']]
    assert len(samples) == IMAGES
    for sample in samples:
        found = sample.gt_instances
        assert found.masks.masks.shape == (len(found), SIDE, SIDE)
        assert sample.gt_sem_seg.sem_seg.shape == (1, SIDE, SIDE)
        for mask, box in zip(found.masks.masks, found.bboxes.tensor, strict=True):
            # Instances that were not pasted keep their annotated box, that of the digit before it was outlined
            assert np.abs(box.numpy() - tight_box(mask)).max() <= 2
