"""InstaBoost and MoveStuff: what is pasted where, what the map says of it, annotations that would stop a training."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmengine.runner import set_random_seed
from pycocotools import mask as mask_tools
from torch.utils.data import DataLoader

from demo.images import DIGIT_CLASSES
from demo.make_data import make_demo_data
from mm_ummae.detection import InstaBoost, MoveStuff

SIDE = 64
GREY = 100
IGNORED = 255
STEPS = (
    dict(type='LoadImageFromFile'),
    dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mm_ummae.MoveStuff'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
)


@pytest.fixture(autouse=True)
def seed() -> None:
    set_random_seed(0)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = dict(num_pretrain=1, num_labelled_train=10, num_labelled_val=10)
    counts |= dict(num_coco_train=20, num_coco_val=1, num_ade_train=1, num_ade_val=1)
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', image_size=SIDE, **counts)


def dataset(data: Path, steps: tuple[dict, ...] = STEPS, **insta_boost: Any) -> BaseDataset:
    """The generated COCO, with other arguments for InstaBoost."""
    pipeline = copy.deepcopy(list(steps))
    pipeline[1].update(insta_boost)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(
            dict(
                type='mm_ummae.CocoStuffDataset',
                data_root=f'{data}/coco/',
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/', seg='stuffthingmaps/train2017/'),
                metainfo=dict(classes=DIGIT_CLASSES),
                pipeline=pipeline,
            )
        )


def square(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """The polygon that pycocotools fills with exactly these pixels."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def filled(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    return mask_tools.encode(np.asfortranarray(mask, np.uint8))


def as_text(code: dict) -> dict:
    return dict(size=code['size'], counts=code['counts'].decode('ascii'))


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order='F').astype(int)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return dict(size=[SIDE, SIDE], counts=np.diff(changes, prepend=0, append=flat.size).tolist())


def instance(mask: object, label: int = 3, box: tuple[float, ...] = (10, 10, 30, 30), crowd: int = 0) -> dict:
    return dict(bbox=list(box), bbox_label=label, mask=mask, ignore_flag=crowd)


def picture(*colored: tuple[np.ndarray, int]) -> np.ndarray:
    """Masks in shades of their own on grey."""
    image = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    for mask, shade in colored:
        image[mask] = shade
    return image


def boost(image: np.ndarray, *instances: dict, **options: Any) -> dict:
    """Every image is changed, and no colours but by pasting."""
    transform = InstaBoost(**{'aug_ratio': 1.0, 'color_prob': 0.0, **options})
    return transform(dict(img=image.copy(), instances=copy.deepcopy(list(instances)), ori_shape=image.shape[:2]))


def loaded(results: dict) -> dict:
    return LoadAnnotations(with_bbox=True, with_mask=True)(copy.deepcopy(results))


def masks(results: dict) -> np.ndarray:
    """(N, H, W) bool, as the host reads them."""
    return loaded(results)['gt_masks'].masks.astype(bool)


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def shrunk(mask: np.ndarray) -> np.ndarray:
    """Without the pixels at its edge, whose colours are mixed."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    return inner


def grown(mask: np.ndarray, times: int = 3) -> np.ndarray:
    for _ in range(times):
        mask = ~shrunk(~mask)
    return mask


DISC = np.hypot(*(np.indices((SIDE, SIDE)) - 32)) < 14
RING = DISC & (np.hypot(*(np.indices((SIDE, SIDE)) - 32)) > 7)
FORMS = {
    'polygon': square(20, 24, 20, 16),
    'counts in a list': uncompressed(filled(20, 24, 20, 16)),
    'counts in bytes': compressed(filled(20, 24, 20, 16)),
    'counts in a string': as_text(compressed(filled(20, 24, 20, 16))),
}
each_form = pytest.mark.parametrize('mask', FORMS.values(), ids=FORMS)


# What is pasted


@each_form
def test_pasted_pixels_lie_under_the_new_mask_and_nowhere_else(mask: object) -> None:
    """In every form of the annotation; also where its box is a pixel off."""
    image = picture((filled(20, 24, 20, 16), 250))
    moved = 0
    for _ in range(10):
        results = boost(image, instance(mask, box=(20.6, 23.2, 39.1, 40.4)))
        (new,) = masks(results)
        assert (results['img'][shrunk(new)] > 210).all()  # cubic interpolation swings at the edge
        assert (np.abs(results['img'][~grown(new)].astype(int) - GREY) < 10).all()
        moved += not np.array_equal(new, filled(20, 24, 20, 16))
    assert moved >= 8


@each_form
def test_the_host_loads_what_comes_back(mask: object) -> None:
    results = loaded(boost(picture((filled(20, 24, 20, 16), 250)), instance(mask)))
    assert results['gt_ignore_flags'].tolist() == [False]
    assert results['gt_bboxes'].tensor.tolist() == [tight_box(results['gt_masks'].masks[0].astype(bool))]


def test_a_hole_stays_a_hole() -> None:
    results = boost(picture((RING, 250)), instance(as_text(compressed(RING))), theta=(0, 0))
    (new,) = masks(results)
    left, top, right, bottom = tight_box(new)
    row, column = (top + bottom) // 2, (left + right) // 2
    centre = (slice(row - 2, row + 2), slice(column - 2, column + 2))
    assert not new[centre].any()
    assert (results['img'][centre] < 150).all()


def test_boxes_are_tight_on_generated_data(data: Path) -> None:
    """Around each pasted mask to the pixel; many are pasted; nothing comes or goes."""
    boosted, count = dataset(data, STEPS[:2], aug_ratio=1.0), 0
    for index in range(len(boosted)):
        before = boosted.get_data_info(index)['instances']
        results = boosted[index]
        assert len(results['instances']) == len(before)
        count += len(results['moved'])
        codes = [after['counts'] for _, after in results['moved']]
        for number, mask in enumerate(masks(results)):
            now = results['instances'][number]
            assert now['bbox_label'] == before[number]['bbox_label']
            if now['ignore_flag']:
                assert now == before[number]
            else:
                assert now['mask']['counts'] in codes
                assert now['bbox'] == tight_box(mask)
    assert count == sum(not item['ignore_flag'] for i in range(20) for item in boosted.get_data_info(i)['instances'])
    assert count > 20


def test_it_fires_as_often_as_it_should() -> None:
    image, thing = picture((filled(4, 4, 8, 8), 250))[:16, :16], instance(square(4, 4, 8, 8))
    transform = InstaBoost(aug_ratio=0.3)
    fired = [bool(transform(dict(img=image, instances=[thing]))['moved']) for _ in range(600)]
    assert 0.24 < np.mean(fired) < 0.36  # three standard deviations


def test_where_it_does_not_fire_nothing_changes(data: Path) -> None:
    quiet = dataset(data, STEPS[:2], aug_ratio=0.0)
    for index in range(len(quiet)):
        results = quiet[index]
        assert results.pop('moved') == []
        original = quiet.pipeline.transforms[0](quiet.get_data_info(index))
        assert np.array_equal(results.pop('img'), original.pop('img'))
        assert results == original


def test_other_keys_of_an_instance_are_kept() -> None:
    thing = {**instance(square(20, 24, 20, 16)), 'track': 'seven'}
    (new,) = boost(picture((filled(20, 24, 20, 16), 250)), thing)['instances']
    assert new['track'] == 'seven' and new['mask'] != thing['mask']


def test_an_instance_that_vanishes_is_left_out_and_told() -> None:
    """Three pixels at a hundredth of their size."""
    speck, other = instance(square(12, 12, 3, 3)), instance(square(30, 30, 20, 20), label=5)
    results = boost(picture(), speck, other, scale=(0.01, 0.01), theta=(0, 0))
    assert [item['bbox_label'] for item in results['instances']] == [5]
    assert results['moved'] == [(speck['mask'], None), (other['mask'], results['instances'][0]['mask'])]


# What is not pasted

STUCK = {
    'one pixel': square(50, 50, 1, 1),
    'one row': square(45, 50, 9, 1),
    'box that rounds to nothing': [[50.2, 50.2, 50.4, 50.2, 50.4, 50.4]],
    'no polygon': [],
    'empty polygon': [[]],
    'two corners': [[50, 50, 55, 55]],
    'odd number of coordinates': [[50, 50, 55, 50, 55, 55, 50]],
    'outside the image': square(SIDE + 5, 10, 20, 20),
    'empty run-lengths': as_text(compressed(np.zeros((SIDE, SIDE)))),
}


@pytest.mark.parametrize('mask', STUCK.values(), ids=STUCK)
def test_what_cannot_be_pasted_stays_as_it_is(mask: object) -> None:
    stuck, thing = instance(mask, label=1, box=(50, 50, 50, 50)), instance(square(20, 24, 20, 16), label=2)
    image = picture((filled(20, 24, 20, 16), 250))
    results = boost(image, stuck, thing, color_prob=1.0)
    assert results['instances'][0] == stuck
    assert [before for before, _ in results['moved']] == [thing['mask']]
    assert results['instances'][1]['mask'] != thing['mask']
    alone = boost(image, stuck)
    assert alone['instances'] == [stuck] and alone['moved'] == [] and np.array_equal(alone['img'], image)


def test_a_polygon_that_reaches_out_of_the_picture_is_pasted() -> None:
    results = boost(picture((filled(0, 24, 20, 16), 250)), instance(square(-6, 24, 26, 16), box=(-6, 24, 20, 40)))
    (new,) = masks(results)
    assert results['instances'][0]['bbox'] == tight_box(new)
    assert len(results['moved']) == 1 and new[:, 0].any()


def test_a_crowd_stays_where_it_is() -> None:
    crowd, thing = instance(uncompressed(RING), crowd=1), instance(square(2, 2, 10, 10))
    results = boost(picture((RING, 200), (filled(2, 2, 10, 10), 250)), crowd, thing)
    assert results['instances'][0] == crowd and len(results['moved']) == 1
    assert (results['img'][shrunk(RING)] == 200).all()


@pytest.mark.parametrize('results', [dict(instances=[]), {}], ids=['empty list', 'no list'])
def test_a_picture_without_instances_passes(results: dict) -> None:
    image = picture((DISC, 250))
    after = InstaBoost(aug_ratio=1.0)(dict(img=image, **results))
    assert after['moved'] == [] and after['img'] is image and after.get('instances', []) == []


def test_a_wide_picture_and_its_map_are_not_turned() -> None:
    image, labels = np.full((40, 90, 3), GREY, np.uint8), np.full((40, 90), 90, np.uint8)
    image[12:24, 60:76], labels[12:24, 60:76] = 250, 7
    results = boost(image, instance(square(60, 12, 16, 12)))
    (new,) = masks(results)
    assert new.shape == (40, 90) and (results['img'][shrunk(new)] > 210).all()
    moved_map = MoveStuff()({**results, 'gt_seg_map': labels, 'ignore_index': IGNORED})['gt_seg_map']
    assert np.array_equal(moved_map == 7, new)


def test_the_type_of_the_picture_is_kept() -> None:
    image = picture((DISC, 250)).astype(np.float32)
    assert boost(image, instance(compressed(DISC)))['img'].dtype == np.float32


# The transform as an object


def test_a_copy_for_a_loader_process_draws_the_same() -> None:
    transform = InstaBoost(aug_ratio=1.0)
    image, thing = picture((DISC, 250)), instance(compressed(DISC))
    set_random_seed(5)
    first = transform(dict(img=image, instances=[thing]))
    set_random_seed(5)
    second = pickle.loads(pickle.dumps(transform))(dict(img=image, instances=[thing]))
    assert np.array_equal(first['img'], second['img']) and first['instances'] == second['instances']


def test_matplotlib_keeps_its_backend() -> None:
    before = pyplot.get_backend()
    pyplot.switch_backend('svg')
    try:
        boost(picture((DISC, 250)), instance(compressed(DISC)))
        assert pyplot.get_backend() == 'svg'
    finally:
        pyplot.switch_backend(before)


def test_the_missing_package_is_named_when_the_transform_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'instaboostfast', None)
    with pytest.raises(ImportError, match=r'pip install --no-build-isolation instaboostfast==0\.1\.2(\n|$)'):
        TRANSFORMS.build(dict(type='mm_ummae.InstaBoost'))


@pytest.mark.parametrize('action', ['horizontal', 'vertical'])
def test_flips_are_refused(action: str) -> None:
    with pytest.raises(ValueError, match=rf"action_prob is .*'{action}': 0\.5.*, but it must be 0 for"):
        InstaBoost(action_candidate=('normal', action), action_prob=(0.5, 0.5))


@pytest.mark.parametrize('ratio', [-0.1, 50])
def test_a_share_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf'aug_ratio is {ratio}, but it must be in \[0, 1\]'):
        InstaBoost(aug_ratio=ratio)


# The map


def move(old_map: np.ndarray, *moved: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
    codes = [(compressed(before), None if after is None else uncompressed(after)) for before, after in moved]
    results = dict(img=picture(), gt_seg_map=old_map.copy(), moved=codes, ignore_index=IGNORED)
    return MoveStuff()(results)['gt_seg_map']


def stuff(*things: tuple[np.ndarray, int]) -> np.ndarray:
    """A map of class 90 with things."""
    labels = np.full((SIDE, SIDE), 90, np.uint8)
    for mask, value in things:
        labels[mask] = value
    return labels


def test_a_thing_moves_and_what_it_covered_is_ignored() -> None:
    before, after = filled(10, 10, 10, 10), filled(15, 12, 10, 10)
    expected = stuff((before, IGNORED), (after, 7))
    assert np.array_equal(move(stuff((before, 7)), (before, after)), expected)


def test_the_most_frequent_value_is_the_thing() -> None:
    """Ignored pixels are the most here, and another class has a corner."""
    before, after = filled(10, 10, 10, 10), filled(40, 40, 10, 10)
    old = stuff((before, 7), (filled(10, 10, 10, 6), IGNORED), (filled(10, 16, 4, 4), 9))
    assert np.array_equal(move(old, (before, after)), stuff((before, IGNORED), (after, 7)))


def test_a_thing_of_which_the_map_knows_nothing_is_not_painted() -> None:
    before, after = filled(10, 10, 10, 10), filled(40, 40, 10, 10)
    old = stuff((before, IGNORED))
    assert np.array_equal(move(old, (before, after)), old)


def test_a_thing_that_left_is_ignored() -> None:
    before = filled(10, 10, 10, 10)
    assert np.array_equal(move(stuff((before, 7)), (before, None)), stuff((before, IGNORED)))


def test_a_group_pasted_later_is_painted_over_earlier_ones() -> None:
    """Although the earlier one's share is the larger."""
    left, right = filled(10, 10, 10, 10), filled(30, 10, 10, 10)
    old = stuff((left, 1), (right, 2), (filled(30, 10, 4, 10), 90))
    target = filled(18, 30, 10, 10)
    for (first, _), (second, value) in (((left, 1), (right, 2)), ((right, 2), (left, 1))):
        new = move(old, (first, filled(14, 30, 10, 10)), (second, target))
        assert (new[target] == value).all()


def test_in_a_group_a_thing_stays_below_what_was_on_it() -> None:
    """A cup, 2, on a table, 1, whichever is annotated first."""
    table, cup = filled(10, 10, 30, 20), filled(20, 12, 6, 6)
    table_now, cup_now = filled(13, 12, 30, 20), filled(23, 14, 6, 6)
    expected = stuff((table, IGNORED), (table_now, 1), (cup_now, 2))
    old = stuff((table, 1), (cup, 2))
    assert np.array_equal(move(old, (table, table_now), (cup, cup_now)), expected)
    assert np.array_equal(move(old, (cup, cup_now), (table, table_now)), expected)


def test_the_map_agrees_with_the_masks_on_generated_data(data: Path) -> None:
    """Values of digits are their labels: each is where it was pasted, all that is visible of it, and nowhere else."""
    boosted, moved = dataset(data, STEPS[:4], aug_ratio=1.0, theta=(-10, 10), dx=4, dy=4), 0
    original = dataset(data, STEPS[:4], aug_ratio=0.0)
    assert boosted.get_data_info(10)['instances'][-1]['ignore_flag'], 'no crowd among the images'
    for index in [*range(len(boosted))] * 3:
        before, after = original[index], boosted[index]
        old, new = (results['gt_masks'].masks[~results['gt_ignore_flags']].astype(bool) for results in (before, after))
        values = after['gt_bboxes_labels'][~after['gt_ignore_flags']]
        moved += len(after['moved'])
        for number, value in enumerate(values):
            visible = new[number] & ~np.delete(new, number, 0).any(0)
            assert visible.any() and (after['gt_seg_map'][visible] == value).all()
        # Smoothed polygons leave pixels out at a digit's edge, which stay in map and image
        elsewhere = ~new.any(0) & ~((before['gt_seg_map'] < 10) & ~old.any(0))
        assert (after['gt_seg_map'][elsewhere] >= 10).all()
    assert moved > 60


def test_made_up_background_is_ignored_and_other_stuff_kept(data: Path) -> None:
    boosted = dataset(data, STEPS[:4], aug_ratio=1.0)
    original = dataset(data, STEPS[:4], aug_ratio=0.0)
    for index in range(len(boosted)):
        before, after = original[index], boosted[index]
        old, new = (results['gt_masks'].masks[~results['gt_ignore_flags']].any(0) for results in (before, after))
        assert (after['gt_seg_map'][old & ~new] == IGNORED).all()
        kept = ~old & ~new
        assert np.array_equal(after['gt_seg_map'][kept], before['gt_seg_map'][kept])


def test_nothing_moved_leaves_the_map_as_it_was(data: Path) -> None:
    quiet = dataset(data, STEPS[:4], aug_ratio=0.0)
    plain = dataset(data, STEPS[:3], aug_ratio=0.0)
    for index in range(len(quiet)):
        assert np.array_equal(quiet[index]['gt_seg_map'], plain[index]['gt_seg_map'])


@pytest.mark.parametrize('key', ['moved', 'gt_seg_map'])
def test_a_wrong_place_in_the_pipeline_is_named(key: str) -> None:
    results = dict(img=picture(), gt_seg_map=stuff(), moved=[], ignore_index=IGNORED)
    del results[key]
    source = dict(moved=r'mm_ummae\.InstaBoost', gt_seg_map=r'LoadAnnotations\(with_seg=True\)')[key]
    message = rf'there is no {key}, but mm_ummae\.MoveStuff must come .*: {source} is missing'
    with pytest.raises(ValueError, match=message):
        MoveStuff()(results)


def test_a_map_of_another_size_is_named() -> None:
    results = dict(img=picture(), gt_seg_map=stuff()[:, :60], moved=[], seg_map_path='maps/1.png', img_path='1.jpg')
    message = r'maps/1\.png has the shape \(64, 60\), but it must be \(64, 64\) as that of its image 1\.jpg'
    with pytest.raises(ValueError, match=message):
        MoveStuff()(results)


# All together


def test_the_whole_pipeline_runs_in_loader_processes(data: Path) -> None:
    loader = DataLoader(dataset(data), 4, num_workers=2, collate_fn=pseudo_collate, timeout=120)
    samples = [sample for batch in loader for sample in batch['data_samples']]
    assert len(samples) == 20
    for sample in samples:
        found = sample.gt_instances
        assert found.masks.masks.shape == (len(found), SIDE, SIDE)
        assert sample.gt_sem_seg.sem_seg.shape == (1, SIDE, SIDE)
        for mask, box in zip(found.masks.masks, found.bboxes.tensor, strict=True):
            # Those that were not pasted have the annotation's own boxes, of the digit before its outline was smoothed
            assert np.abs(box.numpy() - tight_box(mask.astype(bool))).max() <= 2
