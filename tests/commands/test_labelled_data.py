"""Labelled data of people: where they lie, how they are split, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_ummae.commands.labelled import read_class_folders, read_coco, read_pairs
from mm_ummae.commands.labelled.coco_files import _part_of
from mm_ummae.commands.labelled.parts import split
from mm_ummae.datasets.damaged import DataError
from tests.labelled_images import IDS, make_classes, make_coco, make_pairs


def coco(data: Path, out: Path, **change: Path) -> object:
    return read_coco(data, out, 0.25, **(dict(val=None, test=None, images=None) | change))


def pairs(data: Path, out: Path, **change: object) -> object:
    return read_pairs(data, out, 0.25, **(dict(images=None, masks=None, classes=None) | change))


@pytest.fixture(scope='module')
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp('coco'), 12)


def test_a_single_annotation_file_is_split(objects: Path, tmp_path: Path) -> None:
    found = coco(objects, tmp_path)
    assert found.classes == tuple(IDS) and found.values['masks']
    train, val = (json.loads(found.written[f'{part}.json']) for part in ('train', 'val'))
    whole = json.loads(objects.read_text())
    assert [len(each['images']) for each in (train, val)] == [9, 3] and found.files['train'][0].startswith(
        f'{objects.parent}/i'
    )
    assert sorted(each['id'] for half in (train, val) for each in half['images']) == list(range(12))
    for half in (train, val):
        ids = {image['id'] for image in half['images']}
        assert half['annotations'] == [each for each in whole['annotations'] if each['image_id'] in ids]
    assert found.values['test_file'] == found.values['val_file'] == str(tmp_path / 'val.json')
    assert coco(objects, tmp_path).written == found.written, 'the same split each time'


@pytest.mark.parametrize('layout', ['coco', 'roboflow'])
def test_files_of_train_and_validation_are_found(layout: str, objects: Path, tmp_path: Path) -> None:
    """``annotations/instances_train2017.json`` with ``train2017`` beside, and ``train/_annotations.coco.json``."""
    content = json.loads(objects.read_text())
    for part, other in (('train', 'train2017'), ('valid' if layout == 'roboflow' else 'val', 'val2017')):
        folder = tmp_path / 'data' / (part if layout == 'roboflow' else other)
        shutil.copytree(objects.parent / 'images', folder)
        file = folder / '_annotations.coco.json'
        if layout == 'coco':
            file = tmp_path / 'data' / 'annotations' / f'instances_{other}.json'
            file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    found = coco(tmp_path / 'data', tmp_path)
    assert not found.written and 'val' in found.values['val_file'] and 'train' in found.values['train_images']
    assert Path(found.files['val'][3]).is_file() and '/val' in found.values['val_images']


def test_boxes_alone_are_learned_where_masks_are_missing(tmp_path: Path) -> None:
    assert not coco(make_coco(tmp_path / 'data', 6, masks=False), tmp_path).values['masks']


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda content: content.pop('images'), "has no images, which COCO's format has"),
        (lambda content: content['images'][2].update(file_name='no.jpg'), '1 of 12 images of .* are missing in .*: no'),
        (lambda content: [each.update(file_name='no') for each in content['images']], 'none of the 12 images of .*'),
        (lambda content: content['categories'][0].pop('name'), 'has 1 categories without name: add them'),
    ],
)
def test_annotations_that_do_not_fit(spoil: object, message: str, objects: Path, tmp_path: Path) -> None:
    content = json.loads(objects.read_text())
    spoil(content)
    shutil.copytree(objects.parent / 'images', tmp_path / 'images')
    (tmp_path / 'all.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        coco(tmp_path / 'all.json', tmp_path)


def test_parts_with_other_categories(objects: Path, tmp_path: Path) -> None:
    content = json.loads(objects.read_text())
    content['categories'].reverse()
    other = tmp_path / 'val.json'
    other.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'val.json has the categories washer, nut, bolt, but .* has bolt, nut, washer'):
        coco(objects, tmp_path, val=other, images=objects.parent / 'images')


def test_ambiguous_files_and_missing_ones(objects: Path, tmp_path: Path) -> None:
    for name in ('train_a.json', 'train_b.json'):
        (tmp_path / name).write_text('{}')
    with pytest.raises(
        DataError, match=r'has 2 files for train \(.*train_a.json, .*: name the one to train on as data'
    ):
        coco(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match=r'val is no.json, but there is no such file'):
        coco(objects, tmp_path, val=Path('no.json'))
    (tmp_path / 'train_a.json').write_text('{')
    with pytest.raises(DataError, match=r'train_a.json is no JSON'):
        coco(tmp_path / 'train_a.json', tmp_path)


def test_pairs_get_their_names_from_classes_txt(tmp_path: Path) -> None:
    found = pairs(make_pairs(tmp_path / 'data', 8), tmp_path)
    assert found.classes == ('washer', 'bolt', 'nut') and found.values['values'] == (3, 7, 20)
    assert found.values['ignored'] == 255 and found.values['map_suffix'] == ''
    lists = {part: found.written[f'{part}.txt'].splitlines() for part in ('train', 'val', 'test')}
    assert (len(lists['train']), len(lists['val'])) == (6, 2) and lists['test'] == lists['val']
    assert all((tmp_path / 'data' / 'images' / name).is_file() for name in (*lists['train'], *lists['val']))
    assert pairs(tmp_path / 'data', tmp_path, classes=['a', 'b', 'c']).classes == ('a', 'b', 'c')
    (tmp_path / 'data' / 'classes.txt').unlink()
    assert pairs(tmp_path / 'data', tmp_path).classes == ('3', '7', '20')


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_masks_of_0_and_255_with_a_suffix_in_train_and_val(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ('train/a', 'train/b', 'val/c'):
        _save(tmp_path / 'img' / f'{name}.jpg', np.zeros((8, 8, 3)))
        _save(tmp_path / 'my masks' / f'{name}_mask.png', np.eye(8) * 255)
    _save(tmp_path / 'img/train/lone.jpg', np.zeros((8, 8)))
    found = pairs(tmp_path, tmp_path, masks='my masks')
    assert found.classes == ('0', '255') and found.values['values'] == (0, 255) and found.values['ignored'] is None
    assert found.values['map_suffix'] == '_mask' and found.written['train.txt'] == 'train/a.jpg\ntrain/b.jpg\n'
    assert found.written['val.txt'] == 'val/c.jpg\n' and found.values['val_images'] == 'img'
    with pytest.raises(DataError, match=r'has no folder masks, mask, .*: say which one it is \(masks\)'):
        pairs(tmp_path, tmp_path)
    with pytest.raises(DataError, match='masks is nowhere, but there is no folder'):
        pairs(tmp_path, tmp_path, masks='nowhere')


@pytest.mark.parametrize(
    ('pixels', 'names', 'message'),
    [
        (np.zeros((8, 8, 3)), None, r'has the shape \(8, 8, 3\) and values of uint8, but a map has one channel'),
        (np.zeros((8, 8)), None, 'have the value 0 only: segmentation needs two or more'),
        (np.eye(8) * 9, ['a', 'b', 'c'], r'3 classes are named \(a, b, c\), but the maps of .* have the values 0, 9'),
        (None, None, r'label map .*b.png cannot be read'),
    ],
)
def test_label_maps_that_do_not_fit(
    pixels: np.ndarray | None, names: list[str] | None, message: str, tmp_path: Path
) -> None:
    for name in 'abcd':
        _save(tmp_path / 'images' / f'{name}.jpg', np.zeros((8, 8)))
        _save(tmp_path / 'masks' / f'{name}.png', np.eye(8) if pixels is None else pixels)
    if pixels is None:
        (tmp_path / 'masks' / 'b.png').write_bytes(b'no image')
    with pytest.raises(DataError, match=message):
        pairs(tmp_path, tmp_path, classes=names)


def test_names_for_more_values_than_the_maps_have(tmp_path: Path) -> None:
    for name in 'abcd':
        _save(tmp_path / 'images' / f'{name}.jpg', np.zeros((8, 8)))
        _save(tmp_path / 'masks' / f'{name}.png', np.eye(8) * 2)
    found = pairs(tmp_path, tmp_path, classes=['sky', 'sea', 'sand', 'tree'])
    assert found.values['values'] == (0, 1, 2, 3) and found.classes[2] == 'sand'


def test_folders_of_classes(tmp_path: Path) -> None:
    found = read_class_folders(make_classes(tmp_path / 'data', 24), tmp_path, 0.25)
    assert found.classes == ('bolt', 'nut', 'washer')
    lines = {part: found.written[f'{part}.txt'].splitlines() for part in ('train', 'val')}
    labels = {part: [int(line.rsplit(' ', 1)[1]) for line in each] for part, each in lines.items()}
    assert [labels['train'].count(label) for label in range(3)] == [6] * 3 and labels['val'] == [0, 0, 1, 1, 2, 2]
    assert all(line.startswith(found.classes[int(line[-1])]) for line in lines['train'])


def test_folders_of_classes_in_train_and_val(tmp_path: Path) -> None:
    make_classes(tmp_path / 'train', 9)
    make_classes(tmp_path / 'valid', 3)
    shutil.rmtree(tmp_path / 'valid' / 'nut')
    found = read_class_folders(tmp_path, tmp_path, 0.25)
    assert found.values['val_images'] == 'valid'
    assert [line[-1] for line in found.written['val.txt'].splitlines()] == ['0', '2'], 'no label is shifted'
    (tmp_path / 'valid' / 'screw').mkdir()
    with pytest.raises(DataError, match=r'valid has the classes screw, which .*train lacks'):
        read_class_folders(tmp_path, tmp_path, 0.25)


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='there is no such folder'):
        read_class_folders(tmp_path / 'no', tmp_path, 0.25)
    make_classes(tmp_path / 'data', 9)
    (tmp_path / 'data' / 'empty').mkdir()
    with pytest.raises(DataError, match='has no image of the classes empty: add some, or remove them'):
        read_class_folders(tmp_path / 'data', tmp_path, 0.25)
    (tmp_path / 'one' / 'nut').mkdir(parents=True)
    with pytest.raises(DataError, match=r'has 1 subfolders: classification needs a subfolder'):
        read_class_folders(tmp_path / 'one', tmp_path, 0.25)
    make_classes(tmp_path / 'few', 3)
    with pytest.raises(DataError, match='there are 1 images of bolt, but training and validation need one each'):
        read_class_folders(tmp_path / 'few', tmp_path, 0.25)
    with pytest.raises(ValueError, match='val_share is 2, but it must be between 0 and 1'):
        read_class_folders(tmp_path / 'few', tmp_path, 2)


def test_parts_are_named_by_words_and_whole_folders(tmp_path: Path) -> None:
    """``removal.json`` is no validation set, ``Train`` is no class, and ``test_tube`` is one."""
    assert _part_of('annotations/instances_val2017.json') == 'val' and _part_of('removal.json') is None
    for name in ('Train/test_tube', 'Train/flask', 'VAL/flask', 'VAL/test_tube'):
        for index in range(2):
            _save(tmp_path / name / f'{index}.jpg', np.zeros((8, 8)))
    _save(tmp_path / 'Train' / 'loose.png', np.zeros((8, 8)))
    found = read_class_folders(tmp_path, tmp_path, 0.25)
    assert found.classes == ('flask', 'test_tube') and found.values['val_images'] == 'VAL'
    shutil.rmtree(tmp_path / 'Train')
    with pytest.raises(DataError, match='has VAL, but no folder train'):
        read_class_folders(tmp_path, tmp_path, 0.25)


def test_one_more_image_moves_few_of_the_others() -> None:
    before, after = (split([f'{index}.jpg' for index in range(count)], 0.2, 'images')[1] for count in (100, 101))
    assert len(before) == 20 and len(set(before) - set(after)) <= 1


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda content: [each.pop('iscrowd') for each in content['annotations']], 'have no iscrowd'),
        (lambda content: content['annotations'][0].pop('area'), 'have no area'),
        (lambda content: content['categories'][0].update(name=1), r'categories whose names are no text \(1\)'),
        (lambda content: content['images'][0].update(file_name='a\\b.jpg'), 'has file names of Windows'),
        (lambda content: [each.update(iscrowd=1) for each in content['annotations']], 'no object to learn from'),
    ],
)
def test_annotations_are_checked_before_a_file_is_split(
    spoil: object, message: str, objects: Path, tmp_path: Path
) -> None:
    content = json.loads(objects.read_text())
    spoil(content)
    (objects.parent / 'spoilt.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf'spoilt.json.*{message}'):
        coco(objects.parent / 'spoilt.json', tmp_path)


def test_images_without_objects_do_not_count(objects: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MMDetection leaves them out of training."""
    content = json.loads(objects.read_text())
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] < 4]
    (objects.parent / 'few.json').write_text(json.dumps(content))
    found = coco(objects.parent / 'few.json', tmp_path)
    train = json.loads(found.written['train.json'])
    assert len(train['images']) == 9
    assert len(found.files['train']) == len({each['image_id'] for each in train['annotations']}) <= 4


@pytest.mark.parametrize(
    ('name', 'pixels', 'message'),
    [
        ('a.jpg', np.eye(16) * 9, r'a.jpg is a JPEG, which changes values: save maps as PNG'),
        ('a.png', np.arange(1024).reshape(32, 32), 'have 1024 values, such as those of instances'),
    ],
)
def test_maps_of_lossy_formats_and_instances(name: str, pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    for stem in 'ab':
        _save(tmp_path / 'images' / f'{stem}.png', np.zeros((8, 8)))
        target = tmp_path / 'masks' / name.replace('a', stem)
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint16 if name.endswith('png') else np.uint8)).save(target)
    with pytest.raises(DataError, match=message):
        pairs(tmp_path, tmp_path)


def test_values_of_the_test_maps_are_classes_too(tmp_path: Path) -> None:
    for part, value in (('train', 1), ('val', 1), ('test', 7)):
        for stem in 'ab':
            _save(tmp_path / 'images' / part / f'{stem}.png', np.zeros((8, 8)))
            _save(tmp_path / 'masks' / part / f'{stem}.png', np.eye(8) * value)
    assert pairs(tmp_path, tmp_path).values['values'] == (0, 1, 7)
