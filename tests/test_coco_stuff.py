"""CocoStuffDataset: maps that are there, and a start that fails at once where any is missing."""

from __future__ import annotations

import os
import re
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
ADVICE = r'use a config named htcpp-without-semantic_\* \(configs/htc\), which trains without stuff maps'


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'coco'
    write_coco(root, seed=0, image_size=64, num_coco_train=12, num_coco_val=1)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / 'coco')


def dataset(root: Path, kind: str = 'mm_ummae.CocoStuffDataset', **options: Any) -> CocoDataset:
    annotations = str(root / 'annotations' / 'instances_train2017.json')
    options = {**dict(data_root=str(root), data_prefix=dict(PREFIX)), **options}
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(
            dict(type=kind, ann_file=annotations, metainfo=dict(classes=DIGIT_CLASSES), pipeline=[], **options)
        )


def test_everything_else_is_as_in_coco(written: Path) -> None:
    """Filters and training's split, too."""
    options = dict(filter_cfg=dict(filter_empty_gt=True, min_size=32), indices=5)
    ours, plain = dataset(written, **options), dataset(written, 'CocoDataset', **options)
    assert isinstance(ours, CocoStuffDataset) and len(ours) == len(plain) == 5
    for index in range(5):
        assert ours.get_data_info(index) == plain.get_data_info(index)
        assert Path(ours.get_data_info(index)['seg_map_path']).is_file()


def test_maps_are_looked_up_in_one_listing(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, scan = [], os.scandir
    monkeypatch.setattr(os, 'scandir', lambda folder: (listed.append(str(folder)), scan(folder))[1])
    assert len(dataset(written)) == 12
    assert [Path(folder) for folder in listed] == [written / 'stuffthingmaps' / 'train2017']


def test_missing_maps_are_counted_and_one_is_named(root: Path) -> None:
    for number in (3, 7):
        (root / 'stuffthingmaps' / 'train2017' / f'{number:012d}.png').unlink()
    message = rf'2 of 12 stuff-thing maps are missing in .*/train2017/, for example .*/0+3\.png; {ADVICE}'
    with pytest.raises(FileNotFoundError, match=message):
        dataset(root)


def test_a_missing_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / 'stuffthingmaps')
    message = (
        rf'the folder .*/coco/stuffthingmaps/train2017/ of .* does not exist; correct data_prefix\.seg or {ADVICE}'
    )
    with pytest.raises(FileNotFoundError, match=message):
        dataset(root)


@pytest.mark.parametrize('prefix', [dict(img='train2017/'), {}], ids=['images only', 'empty'])
def test_a_prefix_without_maps_is_refused(written: Path, prefix: dict) -> None:
    with pytest.raises(ValueError, match=rf'data_prefix is \{{.*, but it must have seg, .*; or {ADVICE}'):
        dataset(written, data_prefix=prefix)


@pytest.mark.parametrize('folder', ['s3://bucket/maps', 'http://host/maps', 'petrel://bucket/maps'])
def test_remote_folders_are_not_listed(written: Path, folder: str) -> None:
    data = dataset(written, data_root='', data_prefix=dict(img='train2017/', seg=folder))
    assert len(data) == 12
    assert re.fullmatch(rf'{folder}/0+1\.png', data.get_data_info(0)['seg_map_path'])


def test_maps_in_subfolders_are_found(root: Path) -> None:
    """Where images are named with their folder."""
    annotations = root / 'annotations' / 'instances_train2017.json'
    annotations.write_text(annotations.read_text().replace('"file_name": "', '"file_name": "part/'))
    maps = root / 'stuffthingmaps' / 'train2017'
    shutil.move(maps, root / 'part')
    maps.mkdir()
    shutil.move(root / 'part', maps / 'part')
    assert len(dataset(root)) == 12
