"""The demo data: what is drawn, how it is split, and that the files say what was drawn."""

import contextlib
import importlib.util
import io
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from demo import scenes, writers
from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, PHOTOGRAPHS, SEGMENTATION_CLASSES, SEGMENTATION_PALETTE, SPLITS, digit_samples, load_photograph, reference_side, region_box
from demo.scenes import Scene, draw_scene, label_map
from demo.make_data import FIRST_IMAGE_ID, Stream, coco_scene, make_demo_data

SEED = 3
IMAGE_SIZE = 128
COUNTS = {
    'num_pretrain': 8,
    'num_labelled_train': 20,
    'num_labelled_val': 10,
    'num_coco_train': 32,
    'num_coco_val': 12,
    'num_ade_train': 6,
    'num_ade_val': 5,
}
# For tests that look at no image.
TINY = {'image_size': 64, **dict.fromkeys(COUNTS, 1), 'num_labelled_train': 10, 'num_labelled_val': 10}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', seed=SEED, image_size=IMAGE_SIZE, **COUNTS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def load_coco(path: Path | dict) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(path, Path):
            return COCO(str(path))
        coco = COCO()
        coco.dataset = path
        coco.createIndex()
        return coco


def redrawn_coco(split: str) -> list[Scene]:
    """The scenes that the fixture's COCO images were written from."""
    stream = {'train': Stream.COCO_TRAIN, 'val': Stream.COCO_VAL}[split]
    rngs = (np.random.default_rng([SEED, stream, i]) for i in range(COUNTS[f'num_coco_{split}']))
    return [coco_scene(rng, split, index, IMAGE_SIZE) for index, rng in enumerate(rngs)]


def sample_scenes(split: str, count: int = 40) -> list[Scene]:
    rngs = (np.random.default_rng([11, i]) for i in range(count))
    return [draw_scene(rng, split, 96, with_crowd=i % 4 == 0) for i, rng in enumerate(rngs)]


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# The raw material


@pytest.mark.parametrize('index', range(len(PHOTOGRAPHS)), ids=PHOTOGRAPH_CLASSES)
def test_photograph_regions_share_no_pixel_and_are_large(index: int) -> None:
    used = np.zeros(load_photograph(index).shape[:2], int)
    for split in SPLITS:
        left, top, right, bottom = region_box(index, split)
        assert 0 <= left < right <= used.shape[1] and 0 <= top < bottom <= used.shape[0]
        used[top:bottom, left:right] += 1
    assert used.max() == 1
    assert (used == 0).any(), 'no gap between the regions'
    assert reference_side(index) >= 150


def test_digit_split_is_disjoint_complete_and_stratified() -> None:
    everything = []
    for label in range(10):
        train, val = digit_samples(label, 'train'), digit_samples(label, 'val')
        assert len(val) == pytest.approx(0.2 * (len(train) + len(val)), abs=1)
        everything += [*train, *val]
    assert sorted(everything) == list(range(1797))


def test_class_names_and_palette_are_distinct() -> None:
    assert SEGMENTATION_CLASSES == DIGIT_CLASSES + PHOTOGRAPH_CLASSES
    assert len(set(SEGMENTATION_CLASSES)) == len(set(SEGMENTATION_PALETTE)) == 20
    assert list(PHOTOGRAPH_CLASSES) == sorted(PHOTOGRAPH_CLASSES), 'class folders are read in sorted order'


# Scenes


@pytest.mark.parametrize('split', SPLITS)
def test_scenes_take_digits_and_background_from_their_split(split: str) -> None:
    num_crops = Counter()
    for scene in sample_scenes(split):
        num_crops[len(scene.crops)] += 1
        assert {crop.photograph for crop in scene.crops} == set(np.unique(scene.stuff))
        for crop in scene.crops:
            left, top, right, bottom = region_box(crop.photograph, split)
            x0, y0, x1, y1 = crop.box
            assert left <= x0 < x1 <= right and top <= y0 < y1 <= bottom
        for thing in [*scene.objects, *([scene.crowd] if scene.crowd else [])]:
            assert set(thing.samples) <= set(digit_samples(thing.label, split))
    assert set(num_crops) == {1, 2}


def test_scene_parts_do_not_overlap() -> None:
    for scene in sample_scenes('train'):
        parts = [thing.mask for thing in scene.objects] + [scene.outline]
        if scene.crowd is not None:
            parts.append(scene.crowd.mask)
            x, y, width, height = tight_box(scene.crowd.mask)
            assert not any(thing.mask[y : y + height, x : x + width].any() for thing in scene.objects)
        assert np.sum(parts, axis=0).max() == 1
        assert 1 <= len(scene.objects) <= 4


def test_every_object_keeps_its_share_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    full_areas: dict[int, int] = {}
    claim = scenes._claim

    def recording_claim(owner, digit, y, x, number):
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


def test_object_pixels_differ_from_the_background_in_colour() -> None:
    """A digit's fill is vivid: the least of its channels lies far below the greatest."""
    for scene in sample_scenes('val'):
        for thing in scene.objects:
            pixels = scene.image[thing.mask].astype(int)
            assert np.median(pixels.max(axis=1) - pixels.min(axis=1)) > 90


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'split': 'test'}, r"split must be one of .* but is 'test'"),
        ({'num_objects': (0, 2)}, r'num_objects must be a rising range from 1 on, but is \(0, 2\)'),
        ({'object_scale': (0.5, 0.9)}, r'object_scale must be .* up to 0.75, but is \(0.5, 0.9\)'),
        ({'two_photographs': 1.5}, r'two_photographs must lie between 0 and 1, but is 1.5'),
        ({'min_visible': -0.1}, r'min_visible must lie between 0 and 1, but is -0.1'),
    ],
)
def test_draw_scene_names_the_bad_parameter(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_scene(np.random.default_rng(0), **{'split': 'train', 'image_size': 64, **options})


# Files


def test_same_seed_gives_the_same_bytes_and_another_seed_others(root: Path, tmp_path: Path) -> None:
    again = contents(make_demo_data(tmp_path / 'again', seed=SEED, image_size=IMAGE_SIZE, **COUNTS))
    assert again == contents(root)
    other = contents(make_demo_data(tmp_path / 'other', seed=SEED + 1, image_size=IMAGE_SIZE, **COUNTS))
    assert other.keys() == again.keys()
    pictures = [name for name in again if name.endswith('.jpg')]
    assert all(other[name] != again[name] for name in pictures)


def test_growing_the_counts_keeps_the_earlier_pictures(root: Path, tmp_path: Path) -> None:
    grown_counts = {name: count + 10 for name, count in COUNTS.items()}
    large = make_demo_data(tmp_path / 'large', seed=SEED, image_size=IMAGE_SIZE, **grown_counts)
    small_files, large_files = contents(root), contents(large)
    pictures = [name for name in small_files if name.endswith(('.jpg', '.png'))]
    assert all(large_files[name] == small_files[name] for name in pictures)
    num_scenes_with_map = sum(COUNTS[name] for name in COUNTS if 'coco' in name or 'ade' in name)
    assert len(pictures) == sum(COUNTS.values()) + num_scenes_with_map
    for split in SPLITS:
        name = f'coco/annotations/instances_{split}2017.json'
        for part in ('images', 'annotations'):
            earlier = json.loads(small_files[name])[part]
            assert json.loads(large_files[name])[part][: len(earlier)] == earlier


def test_each_part_draws_from_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter()

    def record(name: str, split_position: int) -> None:
        original = getattr(writers, name)

        def recording(*arguments, **options):
            calls[name, arguments[split_position]] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(writers, name, recording)

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
    unlabelled = sorted((folder / 'unlabelled').iterdir())
    assert len(unlabelled) == COUNTS['num_pretrain']
    assert all(cv2.imread(str(path)).shape == (IMAGE_SIZE, IMAGE_SIZE, 3) for path in unlabelled)
    for split in SPLITS:
        assert sorted(path.name for path in (folder / split).iterdir()) == list(PHOTOGRAPH_CLASSES)
        for name in PHOTOGRAPH_CLASSES:
            paths = list((folder / split / name).iterdir())
            assert len(paths) == COUNTS[f'num_labelled_{split}'] // 10
            for path in paths:
                picture = cv2.imread(str(path))
                assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
                assert np.ptp(picture, axis=2).max() == 0
                assert picture.std() > 2, 'a blank image'


@pytest.mark.parametrize('split', SPLITS)
def test_coco_annotations_describe_the_scenes(root: Path, split: str) -> None:
    """The box and the area are those of the drawn mask; the segmentation may differ from it a little.

    Polygons are smoothed and rasterised anew: they must meet the mask with an IoU of 0.95, their box may be
    off by 2 px on a side and their area by 5 %. Run-length codes are exact.
    """
    coco = load_coco(root / 'coco' / 'annotations' / f'instances_{split}2017.json')
    kinds = Counter()
    for index, scene in enumerate(redrawn_coco(split)):
        image_id = FIRST_IMAGE_ID[split] + index
        info = coco.imgs[image_id]
        picture = cv2.imread(str(root / 'coco' / f'{split}2017' / info['file_name']))
        assert picture.shape == (info['height'], info['width'], 3)
        assert np.abs(picture[..., ::-1].astype(int) - scene.image).mean() < 10, 'another image'
        annotations = coco.imgToAnns[image_id]
        things = [*scene.objects, *([scene.crowd] if scene.crowd else [])]
        for annotation, thing in zip(annotations, things, strict=True):
            assert annotation['category_id'] == 1 + thing.label
            assert coco.cats[annotation['category_id']]['name'] == DIGIT_CLASSES[thing.label]
            assert annotation['iscrowd'] == (thing is scene.crowd)
            assert annotation['bbox'] == tight_box(thing.mask)
            assert annotation['area'] == thing.mask.sum()
            mask = coco.annToMask(annotation).astype(bool)
            kind = type(annotation['segmentation'])
            kinds[kind] += 1
            if kind is dict:
                assert np.array_equal(mask, thing.mask)
            else:
                assert overlap(mask, thing.mask) >= 0.95
                assert mask.sum() == pytest.approx(annotation['area'], rel=0.05)
                np.testing.assert_allclose(tight_box(mask), annotation['bbox'], atol=2)
    assert min(kinds[list], kinds[dict]) >= 3, 'polygons and run-length codes should both occur'


def test_coco_ids_are_unique_over_both_splits(root: Path) -> None:
    for part in ('images', 'annotations'):
        ids = []
        for split in SPLITS:
            path = root / 'coco' / 'annotations' / f'instances_{split}2017.json'
            ids += [entry['id'] for entry in json.loads(path.read_text())[part]]
        assert len(ids) == len(set(ids)) > 0
        assert min(ids) > 0, 'pycocotools takes the id 0 for no match'


def evaluate(truth: COCO, predictions: list[dict], kind: str) -> dict[str, float]:
    """AP by area range, for those that hold objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(predictions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., -1]  # IoU threshold, recall, category, area range
    by_area = dict(zip(evaluation.params.areaRngLbl, np.moveaxis(precision, -1, 0), strict=True))
    # -1 stands for categories without objects.
    return {name: values[values > -1].mean() for name, values in by_area.items() if (values > -1).any()}


def perfect_predictions(coco: COCO, crowds: bool) -> list[dict]:
    return [
        {
            'image_id': annotation['image_id'],
            'category_id': annotation['category_id'],
            'bbox': annotation['bbox'],
            'segmentation': coco.annToRLE(annotation),
            # A wrong prediction lowers the precision only of those behind it.
            'score': 1.0 if annotation['iscrowd'] else 0.9,
        }
        for annotation in coco.anns.values()
        if crowds or not annotation['iscrowd']
    ]


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_perfect_predictions_score_one_on_every_area_range(root: Path, kind: str) -> None:
    for split in SPLITS:
        coco = load_coco(root / 'coco' / 'annotations' / f'instances_{split}2017.json')
        precision = evaluate(coco, perfect_predictions(coco, crowds=False), kind)
        assert precision == pytest.approx({'all': 1.0, 'small': 1.0, 'medium': 1.0})


def test_predictions_on_a_crowd_are_neither_right_nor_wrong(root: Path) -> None:
    path = root / 'coco' / 'annotations' / 'instances_train2017.json'
    coco = load_coco(path)
    predictions = perfect_predictions(coco, crowds=True)
    assert evaluate(coco, predictions, 'segm')['all'] == pytest.approx(1.0)

    content = json.loads(path.read_text())
    num_crowds = sum(annotation['iscrowd'] for annotation in content['annotations'])
    assert num_crowds == 2, 'one image in twenty, from the eleventh on'
    content['annotations'] = [a for a in content['annotations'] if not a['iscrowd']]
    assert evaluate(load_coco(content), predictions, 'segm')['all'] < 0.99


@pytest.mark.parametrize('split', SPLITS)
def test_stuff_thing_maps_agree_with_the_masks(root: Path, split: str) -> None:
    for index, scene in enumerate(redrawn_coco(split)):
        name = f'{FIRST_IMAGE_ID[split] + index:012d}.png'
        path = root / 'coco' / 'stuffthingmaps' / f'{split}2017' / name
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and labels.shape == (IMAGE_SIZE, IMAGE_SIZE)
        for label in range(10):
            masks = [thing.mask for thing in scene.objects if thing.label == label]
            assert np.array_equal(labels == label, np.any(masks, axis=0) if masks else np.zeros_like(labels))
        ignored = scene.outline | scene.crowd.mask if scene.crowd else scene.outline
        assert ignored.any()
        assert np.array_equal(labels == 255, ignored)
        is_stuff = (labels >= 10) & (labels < 20)
        assert np.array_equal(labels[is_stuff] - 10, scene.stuff[is_stuff])
        assert np.all(is_stuff | (labels < 10) | ignored)


def test_ade_maps_agree_with_the_scenes(root: Path) -> None:
    parts = {'training': ('train', Stream.ADE_TRAIN), 'validation': ('val', Stream.ADE_VAL)}
    for folder, (split, stream) in parts.items():
        pictures = sorted((root / 'ade' / 'images' / folder).iterdir())
        maps = sorted((root / 'ade' / 'annotations' / folder).iterdir())
        assert [p.stem for p in pictures] == [p.stem for p in maps]
        assert len(maps) == COUNTS[f'num_ade_{split}']
        for index, path in enumerate(maps):
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            scene = draw_scene(np.random.default_rng([SEED, stream, index]), split, IMAGE_SIZE)
            assert labels.dtype == np.uint8
            assert labels.max() <= 20
            assert np.array_equal(labels, label_map(scene))
            for thing in scene.objects:
                assert np.all(labels[thing.mask] == 1 + thing.label)
            assert np.array_equal(labels == 0, scene.outline)
            is_stuff = labels > 10
            assert np.array_equal(labels[is_stuff] - 11, scene.stuff[is_stuff])
            assert cv2.imread(str(pictures[index])).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)


# Making and replacing the folder


def fail(*arguments, **options) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, 'write_ade', fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / 'demo', **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_earlier_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = contents(make_demo_data(tmp_path / 'demo', **TINY))
    monkeypatch.setattr(writers, 'write_ade', fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / 'demo', seed=1, overwrite=True, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ['demo']
    assert contents(tmp_path / 'demo') == earlier


def test_a_finished_set_is_kept_and_replaced_only_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_demo_data(tmp_path / 'new' / 'demo', **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(writers, 'write_imagenet', fail)
        assert make_demo_data(root, **TINY) == root
    with pytest.raises(FileExistsError, match=r'demo holds a demo data set with other parameters; overwrite'):
        make_demo_data(root, seed=1, **TINY)
    before = contents(root)
    make_demo_data(root, seed=1, overwrite=True, **TINY)
    after = contents(root)
    assert json.loads(after['demo_data.json'])['parameters'] == {'seed': 1, **TINY}
    assert before.keys() == after.keys()
    assert before != after
    assert [path.name for path in root.parent.iterdir()] == ['demo']


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_with_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='root must be a new or empty folder or a demo data set'):
        make_demo_data(tmp_path, overwrite=overwrite, **TINY)
    assert contents(tmp_path) == {'thesis.txt': b'years of work'}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / 'demo').mkdir()
    root = make_demo_data(tmp_path / 'demo', **TINY)
    assert sorted(path.name for path in root.iterdir()) == ['ade', 'coco', 'demo_data.json', 'imagenet']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'image_size': 100}, 'image_size must be a multiple of 32 from 64 on, but is 100'),
        ({'image_size': 32}, 'image_size must be a multiple of 32 from 64 on, but is 32'),
        ({'image_size': 128.0}, 'image_size must be an integer, but is 128.0'),
        ({'seed': -1}, 'seed must be 0 or above, but is -1'),
        ({'num_pretrain': 0}, 'num_pretrain must lie between 1 and 1000000, but is 0'),
        ({'num_coco_val': -4}, 'num_coco_val must lie between 1 and 1000000, but is -4'),
        ({'num_labelled_val': 15}, 'num_labelled_val must be a multiple of the 10 classes, but is 15'),
    ],
)
def test_make_demo_data_names_the_bad_parameter(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_demo_data(tmp_path / 'demo', **options)
    assert list(tmp_path.iterdir()) == []


def test_the_tool_passes_its_options_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[1] / 'tools' / 'make_demo_data.py'
    spec = importlib.util.spec_from_file_location('make_demo_data_tool', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    options = [f'--{name.replace("_", "-")}={value}' for name, value in TINY.items()]
    tool.main([f'--out={tmp_path / "demo"}', '--seed=5', *options])
    record = json.loads((tmp_path / 'demo' / 'demo_data.json').read_text())
    assert record['parameters'] == {'seed': 5, **TINY}
    printed = capsys.readouterr().out
    assert str(tmp_path / 'demo') in printed
    assert 'instances_val2017.json' in printed
    assert 'unlabelled/  1 images' in printed
