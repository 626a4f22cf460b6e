"""Demo data: content and split of the images, and ground truth that agrees with them."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from demo import make_data, scenes
from demo.images import (
    DIGIT_CLASSES,
    PHOTOGRAPH_CLASSES,
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    SPLITS,
    digit_samples,
    load_photograph,
    reference_side,
    region_box,
)
from demo.make_data import FIRST_IMAGE_ID, Stream, coco_scene, make_demo_data
from demo.scenes import Scene, draw_scene, label_map

SEED, SIZE = 3, 128
COUNTS = dict(
    num_pretrain=8,
    num_labelled_train=20,
    num_labelled_val=10,
    num_coco_train=32,
    num_coco_val=12,
    num_ade_train=6,
    num_ade_val=5,
)
TINY = {'image_size': 64, **dict.fromkeys(COUNTS, 1), 'num_labelled_train': 10, 'num_labelled_val': 10}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', seed=SEED, image_size=SIZE, **COUNTS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def annotations(root: Path, split: str) -> Path:
    return root / 'coco' / 'annotations' / f'instances_{split}2017.json'


def load_coco(content: dict) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco


def coco_scenes(split: str) -> list[Scene]:
    """Scenes of the fixture's COCO images, drawn again."""
    stream = {'train': Stream.COCO_TRAIN, 'val': Stream.COCO_VAL}[split]
    count = COUNTS[f'num_coco_{split}']
    return [coco_scene(np.random.default_rng([SEED, stream, i]), split, i, SIZE) for i in range(count)]


def random_scenes(split: str, count: int = 40) -> list[Scene]:
    return [draw_scene(np.random.default_rng([11, i]), split, 96, with_crowd=i % 4 == 0) for i in range(count)]


def objects(scene: Scene) -> list[scenes.SceneObject]:
    return [*scene.objects, *([scene.crowd] if scene.crowd else [])]


def box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


# Source images and scenes


def test_photograph_regions_are_large_and_share_no_pixel() -> None:
    for index in range(len(PHOTOGRAPH_CLASSES)):
        used = np.zeros(load_photograph(index).shape[:2], int)
        for split in SPLITS:
            left, top, right, bottom = region_box(index, split)
            assert 0 <= left < right <= used.shape[1] and 0 <= top < bottom <= used.shape[0]
            used[top:bottom, left:right] += 1
        assert used.max() == 1 and (used == 0).any(), 'no gap between the regions'
        assert reference_side(index) >= 150


def test_digit_split_is_disjoint_complete_and_stratified() -> None:
    samples = []
    for label in range(10):
        train, val = digit_samples(label, 'train'), digit_samples(label, 'val')
        assert len(val) == pytest.approx(0.2 * (len(train) + len(val)), abs=1)
        samples += [*train, *val]
    assert sorted(samples) == list(range(1797))


def test_classes_and_palette_are_distinct() -> None:
    assert SEGMENTATION_CLASSES == DIGIT_CLASSES + PHOTOGRAPH_CLASSES
    assert len(set(SEGMENTATION_CLASSES)) == len(set(SEGMENTATION_PALETTE)) == 20
    assert list(PHOTOGRAPH_CLASSES) == sorted(PHOTOGRAPH_CLASSES), 'class folders are read in sorted order'


@pytest.mark.parametrize('split', SPLITS)
def test_scenes(split: str) -> None:
    """Digits and background of the split, vivid digits, and parts that do not overlap."""
    num_crops = Counter()
    for scene in random_scenes(split):
        num_crops[len(scene.crops)] += 1
        assert {crop.photograph for crop in scene.crops} == set(np.unique(scene.stuff))
        for crop in scene.crops:
            left, top, right, bottom = region_box(crop.photograph, split)
            x0, y0, x1, y1 = crop.box
            assert left <= x0 < x1 <= right and top <= y0 < y1 <= bottom
        assert 1 <= len(scene.objects) <= 4
        assert all(set(thing.samples) <= set(digit_samples(thing.label, split)) for thing in objects(scene))
        assert np.sum([scene.outline, *(thing.mask for thing in objects(scene))], axis=0).max() == 1
        for thing in scene.objects:
            assert np.median(np.ptp(scene.image[thing.mask].astype(int), axis=1)) > 90
            if scene.crowd:
                x, y, width, height = box(scene.crowd.mask)
                assert not thing.mask[y : y + height, x : x + width].any()
    assert set(num_crops) == {1, 2}


def test_every_object_keeps_its_share_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    full_areas: dict[int, int] = {}
    claim = scenes._claim

    def recording_claim(owner: np.ndarray, digit: Any, y: int, x: int, number: int) -> int:
        full_areas[number] = claim(owner, digit, y, x, number)  # the last, accepted attempt stays
        return full_areas[number]

    monkeypatch.setattr(scenes, '_claim', recording_claim)
    num_occluded = 0
    for i in range(40):
        scene = draw_scene(np.random.default_rng([12, i]), 'train', 96, num_objects=(3, 4), min_visible=0.6)
        for number, thing in enumerate(scene.objects, start=1):
            assert thing.mask.sum() >= 0.6 * full_areas[number]
            num_occluded += thing.mask.sum() < full_areas[number]
    assert num_occluded > 10


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(split='test'), r"split must be one of .* but is 'test'"),
        (dict(num_objects=(0, 2)), r'num_objects must be an ascending range from 1 on, but is \(0, 2\)'),
        (dict(object_scale=(0.5, 0.9)), r'object_scale must be .* up to 0.75, but is \(0.5, 0.9\)'),
        (dict(two_photographs=1.5), r'two_photographs must lie between 0 and 1, but is 1.5'),
        (dict(min_visible=-0.1), r'min_visible must lie between 0 and 1, but is -0.1'),
    ],
)
def test_draw_scene_names_the_bad_parameter(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_scene(np.random.default_rng(0), **{'split': 'train', 'image_size': 64, **options})


# Files


def test_bytes_depend_on_seed_and_index_only(root: Path, tmp_path: Path) -> None:
    """The same bytes with larger counts, other images with another seed."""
    files = contents(root)
    images = [name for name in files if name.endswith(('.jpg', '.png'))]
    assert len(images) == sum(COUNTS.values()) + sum(COUNTS[name] for name in COUNTS if 'coco' in name or 'ade' in name)
    grown = {name: count + 10 for name, count in COUNTS.items()}
    larger = contents(make_demo_data(tmp_path / 'larger', seed=SEED, image_size=SIZE, **grown))
    assert all(larger[name] == files[name] for name in images)
    for split in SPLITS:
        path = str(annotations(root, split).relative_to(root))
        for part in ('images', 'annotations'):
            first = json.loads(files[path])[part]
            assert json.loads(larger[path])[part][: len(first)] == first
    other = contents(make_demo_data(tmp_path / 'other', seed=SEED + 1, image_size=SIZE, **COUNTS))
    assert other.keys() == files.keys()
    assert all(other[name] != files[name] for name in images if name.endswith('.jpg'))


def test_each_part_draws_from_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter = Counter()

    def record(name: str, position: int) -> None:
        original = getattr(make_data, name)

        def recording(*args: Any, **kwargs: Any) -> Any:
            calls[name, args[position]] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(make_data, name, recording)

    record('draw_scene', 1)
    record('crop_photograph', 2)
    record('grey_crop', 2)
    make_demo_data(tmp_path / 'demo', image_size=64, **COUNTS)
    assert calls == {
        ('draw_scene', 'train'): 4 + 32 + 6,
        ('draw_scene', 'val'): 12 + 5,
        ('crop_photograph', 'train'): 4,
        ('grey_crop', 'train'): 20,
        ('grey_crop', 'val'): 10,
    }


def test_imagenet_layout_is_balanced_and_grey(root: Path) -> None:
    folder = root / 'imagenet'
    unlabelled = [cv2.imread(str(path)) for path in (folder / 'unlabelled').iterdir()]
    assert [image.shape for image in unlabelled] == COUNTS['num_pretrain'] * [(SIZE, SIZE, 3)]
    for split in SPLITS:
        assert sorted(path.name for path in (folder / split).iterdir()) == list(PHOTOGRAPH_CLASSES)
        for name in PHOTOGRAPH_CLASSES:
            images = [cv2.imread(str(path)) for path in (folder / split / name).iterdir()]
            assert [image.shape for image in images] == COUNTS[f'num_labelled_{split}'] // 10 * [(SIZE, SIZE, 3)]
            assert all(np.ptp(image, axis=2).max() == 0 and image.std() > 2 for image in images)


@pytest.mark.parametrize('split', SPLITS)
def test_coco_annotations_describe_the_scenes(root: Path, split: str) -> None:
    """Box and area are those of the drawn mask. Run lengths are exact; polygons are smoothed: IoU from 0.95 on."""
    coco = load_coco(json.loads(annotations(root, split).read_text()))
    kinds: Counter = Counter()
    for index, scene in enumerate(coco_scenes(split)):
        info = coco.imgs[FIRST_IMAGE_ID[split] + index]
        image = cv2.imread(str(root / 'coco' / f'{split}2017' / info['file_name']))
        assert image.shape == (info['height'], info['width'], 3)
        assert np.abs(image[..., ::-1].astype(int) - scene.image).mean() < 10, 'another image'
        for annotation, thing in zip(coco.imgToAnns[info['id']], objects(scene), strict=True):
            assert coco.cats[annotation['category_id']]['name'] == DIGIT_CLASSES[thing.label]
            assert annotation['iscrowd'] == (thing is scene.crowd)
            assert annotation['bbox'] == box(thing.mask) and annotation['area'] == thing.mask.sum()
            mask = coco.annToMask(annotation).astype(bool)
            kind = type(annotation['segmentation'])
            kinds[kind] += 1
            if kind is dict:
                assert np.array_equal(mask, thing.mask)
            else:
                assert (mask & thing.mask).sum() >= 0.95 * (mask | thing.mask).sum()
                assert mask.sum() == pytest.approx(annotation['area'], rel=0.05)
                np.testing.assert_allclose(box(mask), annotation['bbox'], atol=2)
    assert min(kinds[list], kinds[dict]) >= 3, 'polygons and run lengths should both occur'


def test_coco_ids_are_positive_and_unique_over_both_splits(root: Path) -> None:
    contents = [json.loads(annotations(root, split).read_text()) for split in SPLITS]
    for part in ('images', 'annotations'):
        ids = [entry['id'] for content in contents for entry in content[part]]
        assert len(ids) == len(set(ids)) and min(ids) > 0, 'pycocotools takes the id 0 for no match'


def average_precision(ground_truth: COCO, annotations: list[dict], kind: str = 'segm') -> dict[str, float]:
    """AP by area range of predictions that equal annotations; those of crowds have the highest score."""
    predictions = [
        dict(
            image_id=annotation['image_id'],
            category_id=annotation['category_id'],
            bbox=annotation['bbox'],
            segmentation=ground_truth.annToRLE(annotation),
            score=1.0 if annotation['iscrowd'] else 0.9,
        )
        for annotation in annotations
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(predictions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., -1]  # IoU threshold, recall, category, area range
    ranges = zip(evaluation.params.areaRngLbl, np.moveaxis(precision, -1, 0), strict=True)
    return {name: values[values > -1].mean() for name, values in ranges if (values > -1).any()}  # -1: no objects


def test_average_precision(root: Path) -> None:
    """One for perfect predictions. One on a crowd does not count; without the crowd's annotation it is wrong."""
    for split in SPLITS:
        content = json.loads(annotations(root, split).read_text())
        everything = content['annotations']
        digits = [annotation for annotation in everything if not annotation['iscrowd']]
        for kind in ('bbox', 'segm'):
            precision = average_precision(load_coco(content), digits, kind)
            assert precision == pytest.approx(dict(all=1.0, small=1.0, medium=1.0))
        assert len(everything) - len(digits) == {'train': 2, 'val': 1}[split], 'one in twenty, from the 11th on'
        assert average_precision(load_coco(content), everything)['all'] == pytest.approx(1.0)
        assert average_precision(load_coco(content | dict(annotations=digits)), everything)['all'] < 0.99


def test_label_maps_agree_with_the_scenes(root: Path) -> None:
    """COCO's stuff-thing maps have 0..19 and 255 for ignored pixels, those of ADE20K 1..20 and 0."""
    for split, folder in zip(SPLITS, ('training', 'validation'), strict=True):
        coco_maps = sorted((root / 'coco' / 'stuffthingmaps' / f'{split}2017').iterdir())
        ade_maps = sorted((root / 'ade' / 'annotations' / folder).iterdir())
        ade_images = sorted((root / 'ade' / 'images' / folder).iterdir())
        assert [path.stem for path in ade_images] == [path.stem for path in ade_maps]
        assert all(cv2.imread(str(path)).shape == (SIZE, SIZE, 3) for path in ade_images)
        stream = {'train': Stream.ADE_TRAIN, 'val': Stream.ADE_VAL}[split]
        ade_scenes = [
            draw_scene(np.random.default_rng([SEED, stream, i]), split, SIZE) for i in range(COUNTS[f'num_ade_{split}'])
        ]
        files = [(path, 0) for path in coco_maps] + [(path, 1) for path in ade_maps]
        for (path, first), scene in zip(files, [*coco_scenes(split), *ade_scenes], strict=True):
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert labels.dtype == np.uint8 and labels.shape == (SIZE, SIZE)
            assert np.array_equal(labels, label_map(scene) - np.uint8(1 - first))
            for label in range(10):
                masks = [thing.mask for thing in scene.objects if thing.label == label]
                assert np.array_equal(labels == first + label, np.any([np.zeros_like(scene.outline), *masks], axis=0))
            ignored = scene.outline | scene.crowd.mask if scene.crowd else scene.outline
            assert ignored.any() and np.array_equal(labels == (first - 1) % 256, ignored)
            stuff = (labels >= first + 10) & (labels < first + 20)
            assert np.array_equal(labels[stuff] - first - 10, scene.stuff[stuff])


# The folder


def interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_demo_data(tmp_path / 'demo', **TINY)
    before = contents(tmp_path)
    monkeypatch.setattr(make_data, 'write_ade', interrupt)
    for path, seed in ((root, 1), (tmp_path / 'new', 0)):
        with pytest.raises(KeyboardInterrupt):
            make_demo_data(path, seed=seed, overwrite=True, **TINY)
    assert contents(tmp_path) == before and list(tmp_path.iterdir()) == [root]


def test_finished_data_are_kept_and_replaced_only_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'demo').mkdir()  # an empty folder is filled
    root = make_demo_data(tmp_path / 'demo', **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(make_data, 'write_imagenet', interrupt)
        assert make_demo_data(root, **TINY) == root
    with pytest.raises(FileExistsError, match=r'demo holds a demo data set with other parameters; overwrite'):
        make_demo_data(root, seed=1, **TINY)
    before = contents(root)
    make_demo_data(root, seed=1, overwrite=True, **TINY)
    after = contents(root)
    assert json.loads(after['demo_data.json'])['parameters'] == {'seed': 1, **TINY}
    assert before.keys() == after.keys() and before != after and list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_with_other_files_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='root must be a new or empty folder or a demo data set'):
        make_demo_data(tmp_path, overwrite=overwrite, **TINY)
    assert contents(tmp_path) == {'thesis.txt': b'years of work'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(image_size=100), 'image_size must be a multiple of 32 from 64 on, but is 100'),
        (dict(image_size=32), 'image_size must be a multiple of 32 from 64 on, but is 32'),
        (dict(image_size=128.0), 'image_size must be an integer, but is 128.0'),
        (dict(seed=-1), 'seed must be 0 or above, but is -1'),
        (dict(num_pretrain=0), 'num_pretrain must lie between 1 and 1000000, but is 0'),
        (dict(num_labelled_val=15), 'num_labelled_val must be a multiple of the 10 classes, but is 15'),
    ],
)
def test_make_demo_data_names_the_bad_parameter(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_demo_data(tmp_path / 'demo', **options)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f'--{name.replace("_", "-")}={value}' for name, value in TINY.items()]
    make_data.main([f'--out={tmp_path / "demo"}', '--seed=5', *options])
    record = json.loads((tmp_path / 'demo' / 'demo_data.json').read_text())
    assert record['parameters'] == {'seed': 5, **TINY}
    printed = capsys.readouterr().out
    assert str(tmp_path / 'demo') in printed and 'coco/annotations: 2 files' in printed
