"""Labels are checked before training: COCO files, the classes of heads, label maps; and good data are counted."""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mmdet.datasets
import mmseg.datasets  # noqa: F401  registers
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch import nn

from mm_ummae.datasets import label_maps, labels
from mm_ummae.datasets.coco_annotations import Use, check_coco
from mm_ummae.datasets.damaged import DataError, name_some
from mm_ummae.datasets.labels import check_annotation_files, check_labels
from mm_ummae.datasets.run_dataset import RunDataset
from mm_ummae.engine.runner import ResumableRunner
from mm_ummae.models.class_counts import class_counts
from tests.runs import CLASSIFY, DEMO, IN_PROCESS

CLASSES = ('bolt', 'nut', 'washer')
USE = Use(CLASSES, training=True, filter_empty=True, min_size=4)
POLYGON = [[1, 1, 5, 1, 5, 5]]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is logged: text and level."""
    lines: list[tuple[str, int]] = []
    monkeypatch.setattr(labels, '_log', lambda text, level=logging.INFO: lines.append((text, level)))
    return lines


# COCO files


def coco() -> dict:
    """Images 1 to 5, 20 px wide and 10 px high, with annotations 10 to 19."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=20, height=10) for i in range(1, 6)]
    categories = [dict(id=10 * i, name=name) for i, name in enumerate(('parts', *CLASSES), 1)]
    annotations = [
        dict(id=10 + i, image_id=1 + i % 3, category_id=20 + 10 * (i % 3), bbox=[1, 1, 5, 5], area=20, iscrowd=0)
        for i in range(10)
    ]
    for annotation in annotations:
        annotation['segmentation'] = copy.deepcopy(POLYGON)
    return dict(images=images, categories=categories, annotations=annotations)


def oddities() -> dict:
    """Each reason why an annotation is left out: 10, 17, 18 and 19 remain, in images 1 to 3; 4 is small, 5 has none."""
    content = coco()
    changes: list[dict] = [
        dict(iscrowd=1),
        dict(ignore=1),
        dict(bbox=[30, 1, 5, 5]),
        dict(bbox=[1, 1, 0.5, 5]),
        dict(category_id=10, image_id=5),
        dict(image_id=77),
    ]
    for annotation, change in zip(content['annotations'][1:], changes, strict=False):
        annotation.update(change)
    content['annotations'][7].pop('iscrowd')
    content['annotations'].append(dict(content['annotations'][0], id=30, image_id=4))
    content['images'][3].update(height=3, width=3)
    return content


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def detection(file: Path, masks: bool = False, **options: Any) -> dict:
    """Config of a data set of MMDetection."""
    load = dict(type=mmdet.datasets.transforms.LoadAnnotations, with_bbox=True, with_mask=masks)
    config: dict = dict(
        type='mmdet.CocoDataset',
        ann_file=str(file),
        data_prefix=dict(img=str(file.parent)),
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type=LoadImageFromFile), load],
    )
    return config | options


def test_counts_are_those_of_mmdet(tmp_path: Path, log: list[tuple[str, int]]) -> None:
    file = write(tmp_path / 'oddities.json', oddities())
    config = detection(file, filter_cfg=dict(filter_empty_gt=True, min_size=4))
    built = DATASETS.build(config)
    instances = [each for i in range(len(built)) for each in built.get_data_info(i)['instances']]
    report = check_coco(str(file), oddities(), USE)
    assert (report.images, report.objects) == (len(built), sum(not each['ignore_flag'] for each in instances)) == (3, 4)
    assert sum(report.left_out.values()) + report.objects == report.all_annotations == 11
    assert str(report) == (
        '3 of 5 images and 4 of 11 annotations are used; left out: 1 crowds (regions that are ignored), 1 marked to be '
        'ignored, 1 outside of their image, 1 smaller than 1 px, 1 of categories that the config does not use, 1 of '
        'unknown images, 1 in images that are too small, 2 images without objects or too small (filter_cfg)'
    )
    check_annotation_files(config)
    assert log[0] == (f'{file}: {report}', logging.INFO)
    warnings = [text for text, level in log[1:] if level == logging.WARNING]
    assert warnings == [
        f'the annotation file {file}: 1 annotations have an image_id that no image of the file has, and are left out '
        '(ids 16)',
        f'the annotation file {file}: 1 annotations have no iscrowd, which is taken for 0 (ids 17)',
        f'the annotation file {file} has 1 categories that the config does not use (parts); their 1 annotations are '
        f'left '
        'out',
    ]


def test_a_class_without_objects_is_a_warning_of_training() -> None:
    content = coco()
    content['annotations'] = [each for each in content['annotations'] if each['category_id'] != 30]
    assert check_coco('x', content, USE).warnings[0] == 'the annotation file x has no object of 1 classes: nut'
    assert not any('no object' in text for text in check_coco('x', content, Use(CLASSES, training=False)).warnings)


def change(key: str, function: Callable[[list], Any]) -> Callable[[dict], Any]:
    return lambda content: function(content[key])


def each_annotation(**values: Any) -> Callable[[dict], Any]:
    return change('annotations', lambda annotations: [annotation.update(values) for annotation in annotations])


MASKS, TEST = Use(CLASSES, training=True, masks=True), Use(CLASSES, training=False)
BROKEN = {
    'no class in common': (
        change('categories', lambda entries: [entry.update(name=f'M8 {entry["name"]}') for entry in entries]),
        USE,
        r'has none of the classes of the config\. Config: bolt, nut, washer; file: M8 parts, M8 bolt, M8 nut, M8 '
        r'washer\. '
        r"Either set the data set's metainfo=dict\(classes=\.\.\.\) to the file's names in their order, and "
        r'num_classes',
    ),
    'a class is missing': (
        change('categories', lambda entries: entries.pop(2)),
        USE,
        r'has no category for 1 classes of the config: nut\. Labels are places among the categories.*'
        r'The file has parts, bolt, washer\. Add the categories to the file \(they need no objects\), or set the '
        r"data set's",
    ),
    'another order': (
        change('categories', lambda entries: entries.reverse()),
        USE,
        r"lists its categories in another order than the config: label 0 is 'washer' in the file and 'bolt' in the "
        r'config'
        r'.*The file has washer, nut, bolt: set',
    ),
    'a category twice': (
        change('categories', lambda entries: entries.append(dict(id=99, name='nut'))),
        USE,
        r'lists the categories nut more than once: merge them in the file',
    ),
    'no box': (
        change('annotations', lambda entries: [entries[0].pop('bbox'), entries[1].update(bbox=[1, 1, 2])]),
        USE,
        r'2 of 10 annotations have no box of four numbers \(ids 10, 11\)\. It is x, y, width, height in pixels',
    ),
    'no area': (
        change('annotations', lambda entries: [entry.pop('area') for entry in entries]),
        USE,
        r'10 of 10 annotations have no area \(ids 10, 11, 12, 13, 14, 15, 16, 17 and 2 more\)\..*: add the area of '
        r'the mask',
    ),
    'no masks': (
        change('annotations', lambda entries: [entries[0].pop('segmentation'), entries[3].update(segmentation=[])]),
        MASKS,
        r'2 of 10 annotations have no segmentation \(ids 10, 13\)\. The pipeline loads masks \(LoadAnnotations '
        r'with_mask='
        r'True\): add polygons or RLE, remove the annotations, or train a detector without masks, such as '
        r'.*configs/gfl',
    ),
    'no iscrowd in a test': (
        change('annotations', lambda entries: entries[4].pop('iscrowd')),
        TEST,
        r'1 of 10 annotations have no iscrowd \(ids 14\)\. COCO\'s metrics need it: add iscrowd=0',
    ),
    'crowds only': (
        each_annotation(iscrowd=1),
        USE,
        r'has no object to learn from: of 10 annotations 10 are crowds \(regions that are ignored\)\. Correct the '
        r'annotations \(iscrowd=1 is for regions that are ignored, objects have 0\) or ann_file',
    ),
    'polygons of two points only': (
        each_annotation(segmentation=[[1, 1, 5, 5]]),
        MASKS,
        r'no object to learn from: of 10 annotations 10 are with polygons of fewer than three points',
    ),
    'images that do not exist': (
        each_annotation(image_id='a'),
        USE,
        r'no object to learn from: of 10 annotations 10 are of unknown images',
    ),
    'no annotations': (
        change('annotations', list.clear),
        USE,
        r'no object to learn from: of 0 annotations none is left',
    ),
    'an id twice': (
        change('annotations', lambda entries: entries[1].update(id=10)),
        USE,
        r'1 ids of annotations are not unique \(10\): number them anew',
    ),
    'an image twice': (
        change('images', lambda entries: entries[4].update(id=1)),
        USE,
        r'1 ids of images are not unique \(1\)',
    ),
    'no height': (
        change('images', lambda entries: entries[4].pop('height')),
        USE,
        r'1 images have no height \(ids 5\)',
    ),
    'another format': (
        lambda content: content.pop('categories'),
        USE,
        r"has no list of categories, which COCO's format",
    ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_coco_files(name: str) -> None:
    damage, use, message = BROKEN[name]
    content = coco()
    damage(content)
    with pytest.raises(DataError, match=rf'^the annotation file a/b\.json:? .*{message}'):
        check_coco('a/b.json', content, use)


def test_what_does_not_matter_for_the_use() -> None:
    """Masks without a pipeline that loads them, iscrowd in training, and crowds or nothing at all in a test."""
    content = coco()
    for annotation in content['annotations']:
        annotation.pop('segmentation'), annotation.pop('iscrowd')
    assert check_coco('x', content, USE).objects == 10
    each_annotation(iscrowd=1)(content)
    assert check_coco('x', content, TEST).objects == 0
    content.pop('annotations')
    assert check_coco('x', content, TEST).images == 5


@pytest.mark.parametrize(
    'wrap',
    [
        lambda config: config,
        lambda config: dict(type='RepeatDataset', dataset=config, times=2),
        lambda config: dict(type='ConcatDataset', datasets=[config]),
        lambda config: dict(type='ClassBalancedDataset', dataset=config, oversample_thr=0.1),
        lambda config: dict(type='MultiImageMixDataset', _scope_='mmdet', dataset=config, pipeline=[]),
        lambda config: dict(config, type='CocoDataset', _scope_='mmdet'),
        lambda config: dict(config, type=mmdet.datasets.CocoDataset),
        lambda config: RunDataset(dict(config, lazy_init=True)),
    ],
)
def test_files_are_found_in_wrappers(wrap: Callable, tmp_path: Path) -> None:
    """And need masks where the pipeline does."""
    content = coco()
    content['annotations'][0].pop('segmentation')
    file = write(tmp_path / 'a.json', content)
    before = wrap(detection(file))
    check_annotation_files(before)
    with pytest.raises(
        DataError, match=rf'{file}: 1 of 10 annotations have no segmentation \(ids 10\).*check_labels=False'
    ):
        check_annotation_files(wrap(detection(file, masks=True)))


def test_a_config_is_left_as_it_is(tmp_path: Path) -> None:
    config = detection(write(tmp_path / 'a.json', coco()), masks=True)
    config['pipeline'] = [dict(type='TestTimeAug', transforms=[[step] for step in config['pipeline']])]
    expected = copy.deepcopy(config)
    check_annotation_files(config)
    assert config == expected


def test_files_of_others_are_left_to_the_host(tmp_path: Path) -> None:
    """Missing files, other formats, and classes that cannot be built."""
    file = write(tmp_path / 'a.json', dict())
    check_annotation_files(detection(tmp_path / 'missing.json'))
    check_annotation_files(detection(file, type='mmdet.LVISV1Dataset'))
    check_annotation_files(detection(file, type='Unknown'))
    file.write_text('{"images": [')
    with pytest.raises(DataError, match=rf'the annotation file {file} is no JSON \(Expecting value.*write it again'):
        check_annotation_files(detection(file))


# Classes of heads


def head(number: int, **attributes: Any) -> nn.Module:
    module = nn.Identity()
    for name, value in dict(num_classes=number, **attributes).items():
        setattr(module, name, value)
    return module


def tree(**parts: Any) -> nn.Module:
    """A module with the given parts; lists become lists of modules."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, nn.ModuleList(part) if isinstance(part, list) else part)
    return module


def model(**parts: Any) -> nn.Module:
    return tree(backbone=tree(head=head(7)), neck=nn.Identity(), **parts)


def test_heads_that_are_counted() -> None:
    """Single ones and lists, of all hosts; not RPNs, class-agnostic masks, semantic heads, and what has no number."""
    cascade = model(
        rpn_head=head(1),
        roi_head=tree(bbox_head=[head(3), head(4)], mask_head=[head(5)], semantic_head=head(183)),
    )
    assert class_counts(cascade) == {'roi_head.bbox_head.0': 3, 'roi_head.bbox_head.1': 4, 'roi_head.mask_head.0': 5}
    agnostic = tree(bbox_head=head(3), mask_head=head(80, class_agnostic=True))
    assert class_counts(model(roi_head=agnostic)) == {'roi_head.bbox_head': 3}
    assert class_counts(model(bbox_head=head(3))) == {'bbox_head': 3}
    assert class_counts(tree(student=model(bbox_head=head(3)))) == {'student.bbox_head': 3}
    segmentor = model(decode_head=head(2), auxiliary_head=[head(3)])
    assert class_counts(segmentor) == {'decode_head': 2, 'auxiliary_head.0': 3}
    assert class_counts(model(data_preprocessor=head(4), head=head(5))) == {'data_preprocessor': 4, 'head': 5}
    assert class_counts(model(data_preprocessor=head(None), head=nn.Identity())) == {}
    edges = type('STDCHead', (nn.Module,), dict(num_classes=2))()
    assert class_counts(model(decode_head=head(19), auxiliary_head=[edges])) == {'decode_head': 19}


@pytest.mark.parametrize(('number', 'consequence'), [(2, 'labels have no output'), (80, 'outputs have no label')])
@pytest.mark.parametrize(
    'wrap', [RunDataset, lambda x: RunDataset(RepeatDataset(x, 2)), lambda x: ConcatDataset([x, x])]
)
def test_other_numbers_of_classes(wrap: Callable, number: int, consequence: str, tmp_path: Path) -> None:
    file = write(tmp_path / 'a.json', coco())
    dataset = wrap(DATASETS.build(detection(file)))
    message = (
        rf'^CocoDataset of {file} has 3 classes \(bolt, nut, washer\), but model\.roi_head\.bbox_head\.1\.num_classes='
        rf'{number}, model\.roi_head\.mask_head\.num_classes={number}: some {consequence}\. Set '
        rf'model\.roi_head\.bbox_head'
        r'\.1\.num_classes=3 model\.roi_head\.mask_head\.num_classes=3, or correct the classes of the data set '
        r'\(metainfo\)\. check_labels=False'
    )
    roi_head = tree(bbox_head=[head(3), head(number)], mask_head=head(number))
    with pytest.raises(DataError, match=message):
        check_labels(dataset, model(roi_head=roi_head))
    check_labels(dataset, model(roi_head=tree(bbox_head=[head(3)], mask_head=head(3))))


def test_things_and_texts(tmp_path: Path) -> None:
    """Panoptic data have heads for things; models that read names of classes have as many outputs as words."""
    file = write(tmp_path / 'a.json', coco())
    panoptic = DATASETS.build(detection(file))
    panoptic._metainfo.update(thing_classes=('bolt', 'nut'))
    check_labels(panoptic, model(bbox_head=head(2)))
    check_labels(DATASETS.build(detection(file, return_classes=True)), model(bbox_head=head(256)))


def folders(root: Path, **options: Any) -> Any:
    """Data set of MMPretrain: two images of each class."""
    for name in CLASSES:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(2):
            picture(root / name / f'{index}.png')
    return DATASETS.build(dict(type='mmpretrain.CustomDataset', data_prefix=str(root), pipeline=[], **options))


def test_classification(tmp_path: Path, log: list[tuple[str, int]]) -> None:
    """The preprocessor counts as well; a list of files has no names of classes, but labels."""
    dataset = folders(tmp_path / 'images')
    check_labels(dataset, model(data_preprocessor=head(3), head=head(3)))
    name = f'CustomDataset of {tmp_path}/images'
    assert log == [(f'{name}: 6 images of 3 classes, as the heads have', logging.INFO)]
    message = rf'^{name} has 3 classes \(bolt, nut, washer\), but model.data_preprocessor.num_classes=1000: some'
    with pytest.raises(DataError, match=message):
        check_labels(dataset, model(data_preprocessor=head(1000), head=head(3)))
    (tmp_path / 'list.txt').write_text('bolt/0.png 1\nnut/0.png 2\nwasher/0.png 3\n')
    listed = folders(tmp_path / 'images', ann_file=str(tmp_path / 'list.txt'))
    check_labels(listed, model(head=head(4)))
    message = (
        rf'^CustomDataset of {tmp_path}/list\.txt: 1 labels are below 0 or above 2, the last output of '
        r'model\.head\.num_classes=3: .*washer/0\.png \(3\)\. Number the classes from 0, or raise '
        r'model\.head\.num_classes'
    )
    with pytest.raises(DataError, match=message):
        check_labels(listed, model(head=head(3)))


# Label maps

SEGMENTOR = model(decode_head=head(3, ignore_index=255), auxiliary_head=head(3))
RNG = np.random.default_rng(0)


def picture(path: Path, **options: Any) -> None:
    Image.fromarray(RNG.integers(0, 255, (6, 8, 3), np.uint8)).save(path, **options)


def maps(root: Path, content: list[np.ndarray], reduce_zero_label: bool = False, **options: Any) -> Any:
    """Data set of MMSegmentation whose images have 8 x 6 px."""
    for name in ('images', 'labels'):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index, each in enumerate(content):
        picture(root / 'images' / f'{index}.jpg')
        Image.fromarray(each).save(root / 'labels' / f'{index}.png')
    steps = [dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations'), dict(type='mmseg.PackSegInputs')]
    config = dict(
        type='mmseg.BaseSegDataset',
        data_prefix=dict(img_path=str(root / 'images'), seg_map_path=str(root / 'labels')),
        metainfo=dict(classes=CLASSES),
        reduce_zero_label=reduce_zero_label,
        pipeline=steps,
    )
    return DATASETS.build(config | options)


def blank(value: int = 0, shape: tuple[int, ...] = (6, 8)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def mixed(*values: int) -> np.ndarray:
    """All given values."""
    return np.resize(np.array(values, np.uint8), (6, 8))


def test_good_maps_are_counted(tmp_path: Path, log: list[tuple[str, int]]) -> None:
    for reduce_zero_label, content in ((False, [mixed(0, 255), mixed(0, 2), blank(255)]), (True, [mixed(0, 1, 3)] * 3)):
        log.clear()
        dataset = maps(tmp_path / str(reduce_zero_label), content, reduce_zero_label)
        check_labels(RunDataset(dataset), SEGMENTOR)
        share = 'and 33.3% ignored' if reduce_zero_label else 'and 50.0% ignored'
        assert log[1][0] == (
            f'BaseSegDataset of {tmp_path}/{reduce_zero_label}/labels: 3 label maps exist, 3 of them were looked at: '
            f'they '
            f'have the sizes of their images, 2 of 3 classes {share} pixels. Each is checked when it is loaded'
        )
    assert len(log) == 2


WRONG = {
    'size': (
        [blank(), blank(shape=(6, 7))],
        r'1\.png has 7 x 6 px, but its image has 8 x 6 px: labels would lie beside',
    ),
    'RGB': ([blank(shape=(6, 8, 3))] * 2, r'0\.png has 3 channels, but a map has one.*turn the colours into indices'),
    'value': (
        [mixed(0, 2, 3, 117), mixed(0, 1)],
        r'1 of 2 label maps that were looked at do not fit\. .*/labels/0\.png has the values 3, 117, which are no '
        r'classes: '
        r'those are 0 to 2, and 255 is ignored \(after reduce_zero_label.*Correct the maps, or num_classes, classes '
        r'and',
    ),
    'others are named': ([blank(9)] * 3, r'3 of 3 .*/0\.png has the values 9, .*\. Others are 1\.png, 2\.png'),
    '16 bits': (
        [np.full((6, 8), 256, np.uint16)] * 2,
        r'0\.png has values up to 256, which do not fit into 8 bits: write classes below 255',
    ),
    'all ignored': (
        [blank(255)] * 2,
        r'all pixels of all 2 label maps that were looked at are ignored, such as those of .*/0\.png, which has the '
        r'values '
        r'255 in the file: nothing would be learnt\. .*correct reduce_zero_label of data set and LoadAnnotations',
    ),
    'masks of 0 and 255': (
        [mixed(0, 255), blank()],
        r'all 2 label maps that were looked at, such as .*/0\.png, have class 0 and ignored pixels \(255\) only, as '
        r'masks '
        r'of 0 and 255 have: nothing but class 0 would be learnt\. Write 1 for 255',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_maps_that_do_not_fit(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    with pytest.raises(DataError, match=message + r'.*\. check_labels=False'):
        check_labels(RunDataset(maps(tmp_path, content)), SEGMENTOR)


def test_16_bits_with_values_of_8(tmp_path: Path) -> None:
    """65535 becomes 255, which is ignored."""
    check_labels(maps(tmp_path, [np.where(mixed(0, 1), 65535, mixed(0, 0, 2)).astype(np.uint16)]), SEGMENTOR)


def test_maps_with_reduce_zero_label(tmp_path: Path) -> None:
    """Masks of 0 and 255 are ignored as a whole; 3 is the last class."""
    message = r'all pixels of all 2 label maps .*0\.png, which has the values 0, 255 in the file.*1 is the first class'
    with pytest.raises(DataError, match=message):
        check_labels(maps(tmp_path / '0', [mixed(0, 255)] * 2, True), SEGMENTOR)
    with pytest.raises(DataError, match=r'0\.png has the values 3, which are no classes: those are 0 to 2'):
        check_labels(maps(tmp_path / '1', [mixed(0, 4)] * 2, True), SEGMENTOR)


def test_suspicious_maps_are_warnings(tmp_path: Path, log: list[tuple[str, int]]) -> None:
    check_labels(maps(tmp_path, [blank(1), blank(1), blank(255)]), SEGMENTOR)
    name = f'BaseSegDataset of {tmp_path}/labels'
    assert log[2:] == [
        (f'{name}: all pixels of 1 label maps are ignored: {tmp_path}/labels/2.png', logging.WARNING),
        (f'{name}: the label maps that were looked at have class 1 only, of 3', logging.WARNING),
    ]


def test_missing_and_damaged_maps(tmp_path: Path) -> None:
    dataset = maps(tmp_path, [mixed(0, 1)] * 3)
    (tmp_path / 'labels/0.png').write_bytes((tmp_path / 'labels/0.png').read_bytes()[:40])
    with pytest.raises(DataError, match=rf'the label map {tmp_path}/labels/0\.png .*: copy or make it again'):
        check_labels(dataset, SEGMENTOR)
    (tmp_path / 'labels/1.png').unlink()
    with pytest.raises(
        DataError, match=rf'1 of 3 label maps are missing: {tmp_path}/labels/1\.png\. Correct data_prefix'
    ):
        check_labels(dataset, SEGMENTOR)


def test_an_image_that_is_stored_sideways(tmp_path: Path) -> None:
    """Its map has the shape in which it is loaded."""
    exif = Image.Exif()
    exif[label_maps.ORIENTATION] = 6
    dataset = maps(tmp_path, [mixed(0, 1).reshape(8, 6)])
    picture(tmp_path / 'images/0.jpg', exif=exif)
    check_labels(dataset, SEGMENTOR)
    assert dataset[0]['inputs'].shape == (3, 8, 6)


def test_few_maps_are_looked_at_and_all_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, int]]
) -> None:
    content = [mixed(0, 1)] * 9
    content[2], content[3] = blank(9), blank(shape=(6, 9))
    dataset = RunDataset(RepeatDataset(maps(tmp_path, content), 2))
    load, seen = label_maps._load, []
    monkeypatch.setattr(label_maps, '_load', lambda loader, record: seen.append(record) or load(loader, record))
    for _ in range(2):  # a second check, as of a test after a training, adds no second transform
        check_labels(dataset, SEGMENTOR, num_maps=3)
    assert [Path(record['seg_map_path']).stem for record in seen[:3]] == ['0', '4', '8']
    assert '9 label maps exist, 3 of them were looked at' in log[1][0]
    assert [type(step).__name__ for step in dataset.dataset.dataset.pipeline.transforms] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'LabelMapCheck',
        'PackSegInputs',
    ]
    assert dataset[1]['inputs'].shape == (3, 6, 8)
    with pytest.raises(
        DataError, match=rf'^the label map {tmp_path}/labels/2\.png has the values 9, which are no classes'
    ):
        dataset[2]
    with pytest.raises(
        DataError, match=rf'^the label map {tmp_path}/labels/3\.png has 9 x 6 px, but its image has 8 x 6'
    ):
        dataset[3]


def test_maps_inside_of_test_time_augmentation(tmp_path: Path) -> None:
    nested = [[dict(type='mmseg.LoadAnnotations')], [dict(type='mmseg.PackSegInputs')]]
    steps = [dict(type='mmseg.LoadImageFromFile'), dict(type='TestTimeAug', transforms=nested)]
    dataset = maps(tmp_path, [blank(9)], pipeline=steps)
    with pytest.raises(DataError, match=r'0\.png has the values 9'):
        check_labels(dataset, SEGMENTOR)


def test_without_a_loader_of_maps_none_is_needed(tmp_path: Path) -> None:
    """Images to test on have none."""
    dataset = maps(tmp_path, [blank(9)], pipeline=[dict(type='mmseg.LoadImageFromFile')])
    (tmp_path / 'labels/0.png').unlink()
    check_labels(dataset, SEGMENTOR)


@pytest.mark.parametrize(
    ('value', 'message'),
    [(181, None), (183, r'1\.png has the values 183, which are no classes: those are 0 to 182, and 255 is ignored')],
)
def test_stuff_maps_of_htc(value: int, message: str | None, tmp_path: Path) -> None:
    content = coco()
    for image in content['images']:
        picture(tmp_path / image['file_name'])
        Image.fromarray(mixed(0, 90, value, 255)).save(tmp_path / f'{image["id"]}.png')
    config = detection(write(tmp_path / 'a.json', content), data_prefix=dict(img=str(tmp_path), seg=str(tmp_path)))
    config['pipeline'][1]['with_seg'] = True
    htc = model(roi_head=tree(bbox_head=[head(3)], semantic_head=head(183, criterion=tree())))
    htc.roi_head.semantic_head.criterion.ignore_index = 255
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config)
    if message is None:
        check_labels(dataset, htc)
        return
    with pytest.raises(DataError, match=message):
        check_labels(dataset, htc)


# Runs


def test_the_option_of_a_config() -> None:
    logger = logging.getLogger('labels')
    runner = SimpleNamespace(cfg={}, logger=logger)
    for chosen, expected in ((True, 200), (False, None), (dict(num_maps=9), 9)):
        runner.cfg = dict(check_labels=chosen)
        assert ResumableRunner._num_checked_maps(runner) == expected
    runner.cfg = {}
    assert ResumableRunner._num_checked_maps(runner) == 200


def test_some_names() -> None:
    assert (
        name_some(range(8)) == '0, 1, 2, 3, 4, 5, 6, 7'
        and name_some('abcdefghij') == 'a, b, c, d, e, f, g, h and 2 more'
    )


def without_area(data: Path, kind: str) -> None:
    path = data / f'coco/annotations/instances_{kind}2017.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        annotation.pop('area')
    path.write_text(json.dumps(content))


def add_100(data: Path, _: str) -> None:
    for path in (data / 'ade/annotations/training').glob('*.png'):
        Image.fromarray(np.asarray(Image.open(path)) + np.uint8(100)).save(path)


RUNS = {
    'detection': (
        next(DEMO.glob('mask-rcnn_*')),
        'coco',
        without_area,
        r'^error: the annotation file .*train2017\.json: \d+ of \d+ annotations have no area \(ids \d+, '
        r'.*check_labels=False',
    ),
    'segmentation': (
        next(DEMO.glob('upernet_*')),
        'ade',
        add_100,
        r'^error: 4 of 4 label maps .*annotations/training/\S+\.png has the values 10\d, .*no classes: those are 0 '
        r'to 9,',
    ),
    'validation': (
        CLASSIFY,
        'imagenet',
        lambda data, _: (data / 'imagenet/val/eleventh').mkdir(),
        r'^error: CustomDataset of .*/val has 11 classes \(brick, .*\), but model\.data_preprocessor\.num_classes=10, '
        r'model\.head\.num_classes=10: some labels have no output\. Set ',
    ),
}


@pytest.mark.integration
@pytest.mark.parametrize('name', RUNS)
def test_runs_stop_before_the_first_iteration(
    name: str, tool: Callable[[str], ModuleType], demo_data: Path, tmp_path: Path
) -> None:
    """With one line, for training and for validation data."""
    config, folder, damage, message = RUNS[name]
    shutil.copytree(demo_data / folder, tmp_path / folder)
    damage(tmp_path, 'train')
    options = [f'{split}_dataloader.dataset.data_root={tmp_path / folder}/' for split in ('train', 'val')]
    options += [f'{split}_dataloader.{option}' for split in ('train', 'val') for option in IN_PROCESS]
    options += ['train_dataloader.batch_size=2', 'model.backbone.init_cfg=None', f'experiment_name=labels_{name}']
    with pytest.raises(SystemExit, match=message):
        tool('train').main([str(config), '--work-dir', str(tmp_path / 'run'), '--cfg-options', *options])
    (log,) = (tmp_path / 'run').rglob('*.log')
    assert not re.search(r'Iter\(train\)|Epoch\(train\)', log.read_text()) and not list(tmp_path.rglob('*.pth'))
