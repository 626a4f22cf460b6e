"""Demo data: content and split of the images, and ground truth that agrees with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from demo import images, make_data, scenes
from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SPLITS
from demo.make_data import Stream, make_demo_data
from demo.scenes import Scene, SceneObject, draw_mosaic, draw_scene

SEED, SIZE = 3, 128
LABELLED = dict(num_labelled_train=20, num_labelled_val=10)
COUNTS = dict(num_pretrain=8, num_coco_train=32, num_coco_val=12, num_ade_train=6, num_ade_val=5, **LABELLED)
TINY = {'image_size': 64, **dict.fromkeys(COUNTS, 1), **dict.fromkeys(LABELLED, 10)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def objects(scene: Scene) -> list[SceneObject]:
    return [*scene.objects, *([scene.crowd] if scene.crowd else [])]


def box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


# Source images and scenes


def test_the_splits_share_no_pixel_of_a_photograph_and_no_digit() -> None:
    """Photographs have large parts in both, digits are split completely and in each class."""
    for index in range(len(PHOTOGRAPH_CLASSES)):
        used = np.zeros(images.load_photograph(index).shape[:2], int)
        for split in SPLITS:
            left, top, right, bottom = images.region_box(index, split)
            assert 0 <= left < right <= used.shape[1] and 0 <= top < bottom <= used.shape[0]
            used[top:bottom, left:right] += 1
        assert used.max() == 1 and (used == 0).any(), 'no gap between the regions'
        assert images.reference_side(index) >= 150
    samples = {split: [images.digit_samples(label, split) for label in range(10)] for split in SPLITS}
    assert sorted(np.concatenate([*samples['train'], *samples['val']])) == list(range(1797))
    for train, val in zip(*samples.values(), strict=True):
        assert len(val) == pytest.approx(0.2 * (len(train) + len(val)), abs=1)


@pytest.mark.parametrize('split', SPLITS)
def test_scenes(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits and background of the split, vivid digits, no overlap, and enough of each digit in sight."""
    areas, shares, num_crops, claim = {}, [], set(), scenes._claim

    def record(*args: Any) -> int:
        areas[args[-1]] = claim(*args)  # of the last attempt, which was accepted
        return areas[args[-1]]

    monkeypatch.setattr(scenes, '_claim', record)
    for i in range(40):
        options = dict(with_crowd=i % 4 == 0, num_objects=(1, 4), min_visible=0.6)
        scene = draw_scene(np.random.default_rng([11, i]), split, 96, **options)
        num_crops.add(len(scene.crops))
        assert {crop.photograph for crop in scene.crops} == set(np.unique(scene.stuff))
        for photograph, (x0, y0, x1, y1) in scene.crops:
            left, top, right, bottom = images.region_box(photograph, split)
            assert left <= x0 < x1 <= right and top <= y0 < y1 <= bottom
        assert 1 <= len(scene.objects) <= 4
        assert all(set(thing.samples) <= set(images.digit_samples(thing.label, split)) for thing in objects(scene))
        assert np.sum([scene.outline, *(thing.mask for thing in objects(scene))], axis=0).max() == 1
        for number, thing in enumerate(scene.objects, start=1):
            shares.append(thing.mask.sum() / areas[number])
            assert np.median(np.ptp(scene.image[thing.mask].astype(int), axis=1)) > 90
            if scene.crowd:
                x, y, width, height = box(scene.crowd.mask)
                assert not thing.mask[y : y + height, x : x + width].any()
    assert num_crops == {1, 2} and min(shares) >= 0.6 and min(shares) < 0.7


# Files: each image depends on its seed, split and index alone, so it can be drawn again


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', seed=SEED, image_size=SIZE, **COUNTS)


def again(part: str, draw: Callable[[np.random.Generator, int], Any]) -> list:
    """Draw a part of the data: ``draw(source of randomness, index)``."""
    stream = Stream[part.upper()]
    return [draw(np.random.default_rng([SEED, stream, i]), i) for i in range(COUNTS[f'num_{part}'])]


def check_images(folder: Path, expected: Iterable[np.ndarray]) -> None:
    """The files have these images, but for the losses of JPEG."""
    for path, image in zip(sorted(folder.iterdir()), expected, strict=True):
        found = cv2.imread(str(path))[..., ::-1]
        assert found.shape == (SIZE, SIZE, 3) and np.abs(found.astype(int) - image).mean() < 10


def test_imagenet_has_crops_and_scenes_and_grey_crops_by_class(root: Path) -> None:
    def unlabelled(rng: np.random.Generator, index: int) -> np.ndarray:
        if index % 2:
            return draw_scene(rng, 'train', SIZE).image
        return scenes.crop_photograph(rng, rng.integers(10), 'train', SIZE, make_data.PRETRAIN_SCALE)[0]

    check_images(root / 'imagenet' / 'unlabelled', again('pretrain', unlabelled))
    for split in SPLITS:
        crops = again(f'labelled_{split}', lambda rng, i, split=split: scenes.grey_crop(rng, i % 10, split, SIZE)[0])
        assert all(np.ptp(crop, axis=2).max() == 0 and crop.std() > 2 for crop in crops)
        folders = sorted((root / 'imagenet' / split).iterdir())
        assert [folder.name for folder in folders] == list(PHOTOGRAPH_CLASSES)
        for label, folder in enumerate(folders):
            check_images(folder, crops[label::10])


def check_maps(folder: Path, photos: Path, drawn: list[Scene]) -> None:
    """Label maps have 0 to 19, and 255 for ignored pixels."""
    check_images(photos, (scene.image for scene in drawn))
    assert [path.stem for path in sorted(folder.iterdir())] == [path.stem for path in sorted(photos.iterdir())]
    for path, scene in zip(sorted(folder.iterdir()), drawn, strict=True):
        expected = scene.stuff + np.uint8(10)
        for thing in scene.objects:
            expected[thing.mask] = thing.label
        expected[scene.outline | scene.crowd.mask if scene.crowd else scene.outline] = 255
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected)


@pytest.mark.parametrize('split', SPLITS)
def test_coco_describes_the_scenes(root: Path, split: str) -> None:
    """Box and area are those of the drawn mask. Run lengths are exact; polygons are smoothed: IoU from 0.95 on."""
    drawn = again(f'coco_{split}', lambda rng, i: draw_scene(rng, split, SIZE, with_crowd=i % 20 == 10))
    check_maps(root / 'coco' / 'stuffthingmaps' / f'{split}2017', root / 'coco' / f'{split}2017', drawn)
    coco, kinds = COCO(root / 'coco' / 'annotations' / f'instances_{split}2017.json'), set()
    # Positive, because pycocotools takes 0 for no match; unique over both splits; the same when a split grows
    first = dict(train=1, val=1_000_001)[split]
    assert sorted(coco.imgs) == list(range(first, first + len(drawn)))
    for info, scene in zip(coco.imgs.values(), drawn, strict=True):
        assert info['file_name'] == f'{info["id"]:012d}.jpg' and info['height'] == info['width'] == SIZE
        for i, (annotation, thing) in enumerate(zip(coco.imgToAnns[info['id']], objects(scene), strict=True)):
            assert annotation['id'] == 10 * info['id'] + i and annotation['iscrowd'] == (thing is scene.crowd)
            assert coco.cats[annotation['category_id']]['name'] == DIGIT_CLASSES[thing.label]
            assert annotation['bbox'] == box(thing.mask) and annotation['area'] == thing.mask.sum()
            mask, segmentation = coco.annToMask(annotation).astype(bool), annotation['segmentation']
            kinds.add(type(segmentation))
            assert not annotation['iscrowd'] or isinstance(segmentation['counts'], list), "not as in COCO's files"
            if isinstance(segmentation, dict):
                assert np.array_equal(mask, thing.mask)
            else:
                assert (mask & thing.mask).sum() >= 0.95 * (mask | thing.mask).sum()
                np.testing.assert_allclose(box(mask), annotation['bbox'], atol=2)
    assert kinds == {list, dict}, 'polygons and run lengths should both occur'


@pytest.mark.parametrize(('split', 'folder'), [('train', 'training'), ('val', 'validation')])
def test_ade_describes_the_scenes(root: Path, split: str, folder: str) -> None:
    """Images and maps are those drawn: grey, of two to four photographs."""
    drawn = again(f'ade_{split}', lambda rng, _: draw_mosaic(rng, split, SIZE))
    counts = set()
    for (image, photographs), name in zip(drawn, sorted((root / 'ade' / 'images' / folder).iterdir()), strict=True):
        saved = cv2.imread(str(name), cv2.IMREAD_UNCHANGED)
        labels = cv2.imread(str(root / 'ade' / 'annotations' / folder / f'{name.stem}.png'), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and np.array_equal(labels, photographs + 1) and labels.shape == saved.shape[:2]
        assert np.abs(saved.astype(int) - image).mean() < 5 and np.ptp(image, axis=2).max() == 0
        counts.add(len(np.unique(labels)))
    assert counts <= {2, 3, 4} and len(counts) > 1
    assert len(set(images.SEGMENTATION_PALETTE)) == len(PHOTOGRAPH_CLASSES) == 10


@pytest.mark.parametrize('split', SPLITS)
def test_mosaics_have_tiles_of_their_split(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With crops of one brightness each, the map tells the photograph behind every pixel."""
    crops: list[tuple[int, str]] = []

    def crop(rng: np.random.Generator, index: int, split: str, size: int) -> tuple[np.ndarray, None]:
        crops.append((index, split))
        return np.full((size, size, 3), 10 * index, np.uint8), None

    monkeypatch.setattr(scenes, 'grey_crop', crop)
    image, photographs = draw_mosaic(np.random.default_rng(0), split, SIZE)
    assert np.array_equal(image, 10 * photographs[..., None].repeat(3, axis=2))
    assert {index for index, _ in crops} == set(np.unique(photographs)) and {name for _, name in crops} == {split}


# The folder


def test_a_data_set_is_replaced_only_on_demand_and_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / 'demo'
    root.mkdir()  # an empty folder is filled
    options = [f'--{name.replace("_", "-")}={value}' for name, value in TINY.items()]
    make_data.main([f'--out={root}', '--seed=5', *options])
    printed, before = capsys.readouterr().out, contents(tmp_path)
    assert str(root) in printed and 'coco/annotations: 2 files' in printed
    with monkeypatch.context() as patch:
        patch.setattr(make_data, 'write_ade', None)  # fails
        assert make_demo_data(root, seed=5, **TINY) == root
        for path in (root, tmp_path / 'new'):
            with pytest.raises(TypeError):
                make_demo_data(path, seed=1, overwrite=True, **TINY)
    with pytest.raises(FileExistsError, match=r'demo holds a demo data set with other parameters; overwrite'):
        make_demo_data(root, seed=1, **TINY)
    assert contents(tmp_path) == before and list(tmp_path.iterdir()) == [root]
    make_demo_data(root, seed=1, overwrite=True, **TINY)
    after = contents(tmp_path)
    assert json.loads(after['demo/demo_data.json'])['parameters'] == {'seed': 1, **TINY}
    assert before.keys() == after.keys() and before != after and list(tmp_path.iterdir()) == [root]
    (root / 'demo_data.json').unlink()  # now it is any folder
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='root must be a new or empty folder or a demo data set'):
            make_demo_data(root, overwrite=overwrite, **TINY)
    assert len(contents(root)) == len(after) - 1


SCENE = partial(draw_scene, np.random.default_rng(0), split='train', image_size=64)
DATA = partial(make_demo_data, '/dev/null/demo')  # where nothing can be written


@pytest.mark.parametrize(
    ('make', 'options', 'message'),
    [
        (SCENE, dict(split='test'), r"split must be one of .* but is 'test'"),
        (SCENE, dict(num_objects=(0, 2)), r'num_objects must be an ascending range from 1 on, but is \(0, 2\)'),
        (SCENE, dict(object_scale=(0.5, 0.9)), r'object_scale must be .* up to 0.75, but is \(0.5, 0.9\)'),
        (SCENE, dict(two_photographs=1.5), r'two_photographs must lie between 0 and 1, but is 1.5'),
        (SCENE, dict(min_visible=-0.1), r'min_visible must lie between 0 and 1, but is -0.1'),
        (DATA, dict(image_size=100), 'image_size must be a multiple of 32 from 64 on, but is 100'),
        (DATA, dict(image_size=32), 'image_size must be a multiple of 32 from 64 on, but is 32'),
        (DATA, dict(image_size=128.0), 'image_size must be an integer, but is 128.0'),
        (DATA, dict(seed=-1), 'seed must be 0 or above, but is -1'),
        (DATA, dict(num_pretrain=0), 'num_pretrain must lie between 1 and 1000000, but is 0'),
        (DATA, dict(num_labelled_val=15), 'num_labelled_val must be a multiple of the 10 classes, but is 15'),
    ],
)
def test_bad_parameters_are_named(make: Callable, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
