"""CocoStuffDataset: COCO's data, and errors before training if stuff-thing maps are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS, DefaultScope

from demo.images import DIGIT_CLASSES
from demo.make_data import write_coco
from mm_ummae.detection import CocoStuffDataset

PREFIX = dict(img='train2017/', seg='stuffthingmaps/train2017/')
WAY_OUT = r'use a config named htcpp-without-semantic_\* \(configs/htc\), which trains without stuff maps'


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'coco'
    write_coco(root, seed=0, image_size=64, num_coco_train=6, num_coco_val=1)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / 'coco')


def dataset(root: Path, kind: str = 'mm_ummae.CocoStuffDataset', **options: Any) -> CocoDataset:
    options = dict(data_root=str(root), data_prefix=dict(PREFIX), metainfo=dict(classes=DIGIT_CLASSES)) | options
    annotations = str(root / 'annotations' / 'instances_train2017.json')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(dict(type=kind, ann_file=annotations, pipeline=[], **options))


def test_data_are_those_of_coco(written: Path) -> None:
    """Filters and subsets included."""
    options = dict(filter_cfg=dict(filter_empty_gt=True, min_size=32), indices=5)
    ours, expected = dataset(written, **options), dataset(written, 'CocoDataset', **options)
    assert isinstance(ours, CocoStuffDataset) and len(ours) == len(expected) == 5
    for index in range(5):
        assert ours.get_data_info(index) == expected.get_data_info(index)
        assert Path(ours.get_data_info(index)['seg_map_path']).is_file()


def test_folder_is_listed_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, scan = [], os.scandir
    monkeypatch.setattr(os, 'scandir', lambda folder: (listed.append(Path(folder)), scan(folder))[1])
    assert len(dataset(written)) == 6
    assert listed == [written / 'stuffthingmaps' / 'train2017']


def test_maps_in_subfolders_are_found(root: Path) -> None:
    """For images whose names contain a folder."""
    annotations = root / 'annotations' / 'instances_train2017.json'
    annotations.write_text(annotations.read_text().replace('"file_name": "', '"file_name": "part/'))
    maps = root / 'stuffthingmaps' / 'train2017'
    shutil.move(maps, root / 'part')
    maps.mkdir()
    shutil.move(root / 'part', maps / 'part')
    assert len(dataset(root)) == 6


@pytest.mark.parametrize('protocol', ['s3', 'http', 'petrel'])
def test_remote_folders_are_not_checked(written: Path, protocol: str) -> None:
    data = dataset(written, data_root='', data_prefix=dict(img='train2017/', seg=f'{protocol}://host/maps'))
    assert data.get_data_info(0)['seg_map_path'] == f'{protocol}://host/maps/{1:012d}.png'


def test_missing_maps_are_counted_and_one_is_named(root: Path) -> None:
    for number in (3, 5):
        (root / 'stuffthingmaps' / 'train2017' / f'{number:012d}.png').unlink()
    message = rf'2 of 6 stuff-thing maps are missing in .*/train2017/, for example .*/0+3\.png; {WAY_OUT}'
    with pytest.raises(FileNotFoundError, match=message):
        dataset(root)


def test_missing_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / 'stuffthingmaps')
    message = r'the folder .*/stuffthingmaps/train2017/ of .* does not exist; correct data_prefix\.seg or '
    with pytest.raises(FileNotFoundError, match=message + WAY_OUT):
        dataset(root)


def test_prefix_without_maps_is_refused(written: Path) -> None:
    with pytest.raises(ValueError, match=rf'data_prefix is \{{.*, but it must have seg, .*; or {WAY_OUT}'):
        dataset(written, data_prefix=dict(img='train2017/'))
