"""PretrainImages: files found, damaged files replaced, several samples per file, mistakes in the pipeline reported."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine import fileio
from mmengine.dataset import default_collate
from mmengine.logging import MMLogger
from PIL import Image
from pytest import MonkeyPatch
from torch.utils.data import DataLoader

from mm_ummae.datasets import PretrainImages, reading
from mm_ummae.datasets.damaged import DataError
from mm_ummae.datasets.file_flags import UNDECODED, UNREAD
from mm_ummae.registry import DATASETS

LOAD = dict(type='mm_ummae.LoadCompleteImage')
PACK = dict(type='PackInputs')
CENTRE_CROP = [LOAD, dict(type='CenterCrop', crop_size=32), PACK]
RANDOM_CROP = [LOAD, dict(type='mm_ummae.TorchRandomResizedCrop', scale=32, flip_prob=0.5), PACK]
# Transforms of MMPretrain, which write into their input
MMPRETRAIN = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5),
    PACK,
]


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, 0.jpg to 9.jpg, in three levels of folders."""
    for i in range(10):
        write_image(tmp_path / 'set' / 'train' / ('.', 'a', 'b/c')[i % 3] / f'{i}.jpg', i)
    return tmp_path / 'set'


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """File with the messages of MMEngine's current logger, including those of worker processes."""
    logger, handler = MMLogger.get_current_instance(), logging.FileHandler(tmp_path / 'log.txt')
    logger.addHandler(handler)
    yield tmp_path / 'log.txt'
    logger.removeHandler(handler)
    handler.close()


def reported(log: Path) -> list[str]:
    """Files that were reported as bad, in order."""
    return re.findall(r'(\w+)\.jpg is truncated \(600 bytes are there\); another image takes', log.read_text())


def build(folder: Path, pipeline: list = CENTRE_CROP, **kwargs: Any) -> PretrainImages:
    options = dict(data_root=str(folder), data_prefix='train', pipeline=list(pipeline))
    return DATASETS.build(dict(type='mm_ummae.PretrainImages', **{**options, **kwargs}))


def path_of(data: PretrainImages, index: int) -> Path:
    return Path(data.get_data_info(index)['img_path'])


def files_of(samples: list) -> list[str]:
    return [Path(sample.img_path).stem for sample in samples]


def damage(data: PretrainImages, *indices: int) -> list[str]:
    """Cut the files; returns their names without suffix."""
    paths = [path_of(data, index) for index in indices]
    for path in paths:
        path.write_bytes(path.read_bytes()[:600])
    return [path.stem for path in paths]


def test_images_of_all_subfolders_are_found_without_labels(folder: Path) -> None:
    (folder / 'train' / 'a' / 'notes.txt').write_text('no image')
    write_image(folder / 'val' / '11.jpg', 11)
    write_image(folder / 'train' / 'b' / 'upper.PNG', 12)
    data = build(folder)
    names = [path_of(data, i).name for i in range(len(data))]
    assert sorted(names) == sorted([*(f'{i}.jpg' for i in range(10)), 'upper.PNG'])
    assert {'img_path', 'sample_idx'} == set(data.get_data_info(0))
    assert len(build(folder, indices=3)) == 3, 'an argument of the base class'
    pixels = np.asarray(Image.open(path_of(data, 4)))[8:40, 8:40, ::-1]  # BGR until the data preprocessor
    assert torch.equal(data[4]['inputs'], torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    assert files_of([data[4]['data_samples']]) == [path_of(data, 4).stem]


def test_a_damaged_and_a_removed_file_are_replaced_and_reported_once(folder: Path, log: Path) -> None:
    data = build(folder, max_bad_share=0.5)
    bad = damage(data, 4, 6)
    path_of(data, 6).unlink()
    for index in (4, 6, 4, 6):
        sample = data[index]
        assert not {*files_of([sample['data_samples']])} & {*bad} and sample['inputs'].shape == (3, 32, 32)
    lines = [line for line in log.read_text().splitlines() if 'another image' in line]
    assert len(lines) == 2
    assert f'{path_of(data, 4)} is truncated (600 bytes are there); another image takes its place' in ''.join(lines)
    assert f'{path_of(data, 6)} cannot be read (FileNotFoundError: ' in ''.join(lines)
    assert (data.flags.find(UNDECODED), data.flags.find(UNREAD)) == ([4], [6])


def test_a_file_that_is_decoded_later_loses_its_flag(folder: Path, log: Path) -> None:
    data = build(folder, max_bad_share=0.1)
    content = path_of(data, 4).read_bytes()
    for _ in range(3):  # three files at a time would be too many
        (name,) = damage(data, 4)
        data[4]
        assert data.flags.find(UNDECODED) == [4]
        path_of(data, 4).write_bytes(content)
        assert files_of([data[4]['data_samples']]) == [name]
        assert data.flags.find(UNDECODED) == []
    assert log.read_text().count(f'{path_of(data, 4)} can be decoded again') == 3


# Storage that fails


class Storage:
    """Stands for MMEngine's file access: the reads of some files fail a number of times."""

    def __init__(self, monkeypatch: MonkeyPatch) -> None:
        self.failures: dict[str, int] = {}
        self.error: Exception = OSError(errno.ESTALE, 'Stale file handle')
        self.get = fileio.get
        monkeypatch.setattr(fileio, 'get', self)
        monkeypatch.setattr(reading.time, 'sleep', lambda seconds: None)

    def __call__(self, path: str, backend_args: dict | None = None) -> bytes:
        if self.failures.get(path, 0):
            self.failures[path] -= 1
            raise self.error
        return self.get(path, backend_args)


def test_an_error_of_reading_an_epoch_stops_no_run(folder: Path, monkeypatch: MonkeyPatch, log: Path) -> None:
    """Neither one that passes at once nor one that lasts longer than the attempts; the flags do not add up."""
    storage, data = Storage(monkeypatch), build(folder, max_bad_share=0.1)
    data._rand_another = lambda: (index + 1) % 10
    for index in range(10):
        storage.failures[str(path_of(data, index))] = 1
        sample = data[index]['data_samples']
        assert sample.img_path == str(path_of(data, index)) and not data.flags.changed()
    for index in range(10):
        storage.failures[str(path_of(data, index))] = 4
        assert data[index]['data_samples'].img_path != str(path_of(data, index))
        assert data.flags.find(UNREAD) == [index] and data.flags.find(UNDECODED) == []
        assert data[index]['data_samples'].img_path == str(path_of(data, index))
    assert log.read_text().count('jpg cannot be read, 4 attempts failed (OSError: [Errno') == 10
    assert 'cannot be decoded' not in log.read_text()


def test_storage_that_fails_as_a_whole_stops_the_run(folder: Path, monkeypatch: MonkeyPatch) -> None:
    storage, data = Storage(monkeypatch), build(folder, max_bad_share=0.9)
    storage.failures = {str(path_of(data, index)): 99 for index in range(10)}
    data._rand_another = lambda: 3
    message = (
        r'10 files in a row cannot be read: check whether the storage is there and answers\. The last one: .*\.jpg '
        'cannot be read, 4 attempts failed .*Stale file handle'
    )
    with pytest.raises(DataError, match=message):
        data[3]
    data = build(folder, max_bad_share=0.9)
    data._unread_in_a_row = 8
    storage.failures = {str(path_of(data, 3)): 4}
    data._rand_another = lambda: 0
    data[3]
    assert data._unread_in_a_row == 0, 'a file that is read ends the row'


def test_too_many_files_that_cannot_be_read(folder: Path, monkeypatch: MonkeyPatch) -> None:
    """They are counted apart from the damaged ones."""
    storage, data = Storage(monkeypatch), build(folder, max_bad_share=0.2)
    data._rand_another = lambda: 0
    damage(data, 1, 2)
    storage.failures = {str(path_of(data, index)): 99 for index in (3, 4, 5)}
    for index in (1, 2, 3, 4):
        data[index]
    message = (
        r'3 of 10 files below .*train cannot be read, more than max_bad_share 0\.2 allows \(.*\): check whether the '
        'storage is there and answers or raise max_bad_share'
    )
    with pytest.raises(DataError, match=message):
        data[5]


def test_a_missing_package_of_a_backend_is_no_bad_file(folder: Path, monkeypatch: MonkeyPatch) -> None:
    storage, data = Storage(monkeypatch), build(folder, max_bad_share=0.9)
    storage.failures, storage.error = {str(path_of(data, 0)): 9}, ImportError('install petrel_client')
    with pytest.raises(ImportError, match='install petrel_client'):
        data[0]


# Folders


def test_a_link_back_is_left_out(folder: Path, log: Path) -> None:
    """MMEngine's listing follows it until the system refuses, 40 times."""
    (folder / 'train' / 'a' / 'loop').symlink_to(folder / 'train')
    data = build(folder)
    assert len(data) == 10
    assert f'1 links below {folder / "train"} are left out' in log.read_text()
    assert [path_of(data, i) for i in range(10)] == sorted(path_of(data, i) for i in range(10))


@pytest.mark.integration
def test_worker_processes_share_the_bad_files(folder: Path, log: Path) -> None:
    """Every batch is complete, a bad file is reported once, and the limit counts the files of all workers."""
    data = build(folder, max_bad_share=0.3)
    bad = damage(data, 1, 4, 8)
    data._rand_another = lambda: 0  # otherwise two workers may meet one bad file at the same time
    loader = DataLoader(data, 5, num_workers=2, collate_fn=default_collate, timeout=120)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch['inputs']) for batch in batches] == [5, 5]
        assert not {file for batch in batches for file in files_of(batch['data_samples'])} & set(bad)
    # Here in the main process, which has read none of them
    assert data.flags.find(UNDECODED) == [1, 4, 8]
    assert sorted(reported(log)) == sorted(bad)
    message = (
        r'4 of 10 files below .*train cannot be decoded, more than max_bad_share 0\.3 allows '
        rf'\(.*{bad[0]}\.jpg, .*{bad[1]}\.jpg, .*{bad[2]}\.jpg, \.\.\.\): repair the data or raise max_bad_share'
    )
    damage(data, 9)
    with pytest.raises(DataError, match=message) as error:
        data[9]
    assert isinstance(error.value.__context__, OSError), "the decoder's message is kept"


def test_a_batch_has_the_samples_of_a_file_next_to_each_other(folder: Path) -> None:
    data = build(folder, RANDOM_CROP, repeats=3)
    assert len(data) == 10, 'an epoch counts files'
    batches = list(DataLoader(data, 4, collate_fn=default_collate, drop_last=True))
    assert [batch['inputs'].shape for batch in batches] == [(12, 3, 32, 32)] * 2
    for batch in batches:
        files = files_of(batch['data_samples'])
        assert files[::3] == files[1::3] == files[2::3] and len(set(files)) == 4
        for group in batch['inputs'].split(3):
            assert not torch.equal(group[0], group[1]) and not torch.equal(group[1], group[2])


def test_a_file_is_decoded_once_and_its_samples_are_those_of_reading_it_again(folder: Path) -> None:
    data, single = build(folder, MMPRETRAIN, repeats=4), build(folder, MMPRETRAIN)
    load, decoded = data.pipeline.transforms[0], []
    data.pipeline.transforms[0] = lambda results: decoded.append(results['sample_idx']) or load(results)
    np.random.seed(0)
    samples = data.__getitems__([2, 3])
    assert len(samples) == 8 and decoded == [2, 3]
    np.random.seed(0)
    for i, sample in enumerate(samples):
        assert torch.equal(sample['inputs'], single[2 + i // 4]['inputs'])


@pytest.mark.parametrize('reason', ['damaged', 'refused'])
def test_a_file_is_replaced_with_all_its_samples(folder: Path, reason: str) -> None:
    """So that a batch keeps its size. A transform refuses a sample by returning None; its file is not damaged."""
    data = build(folder, RANDOM_CROP, repeats=2, max_bad_share=0.5)
    data._rand_another = lambda: 0
    if reason == 'damaged':
        damage(data, 4)
    else:
        crop, calls = data.pipeline.transforms[1], []
        data.pipeline.transforms[1] = lambda results: None if calls.append(0) or len(calls) == 2 else crop(results)
    batch = default_collate(data.__getitems__([4, 5]))
    assert files_of(batch['data_samples']) == [path_of(data, i).stem for i in (0, 0, 5, 5)]
    assert data.flags.changed() == (reason == 'damaged')


def test_mistakes_in_later_transforms_are_not_taken_for_damaged_files(folder: Path, log: Path) -> None:
    data = build(folder, [LOAD, dict(type='Resize', scale=32, interpolation='bicubc')], max_bad_share=0.9)
    with pytest.raises(KeyError, match='bicubc'):
        data[0]
    assert not data.flags.changed() and reported(log) == []


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(max_bad_share=-0.1), ValueError, r'max_bad_share is -0\.1, but it must be in \[0, 1\)'),
        (dict(max_bad_share=1), ValueError, r'max_bad_share is 1, but it must be in \[0, 1\)'),
        (dict(repeats=0), ValueError, 'repeats is 0, but it must be at least 1'),
        (dict(data_prefix='texts'), ValueError, 'the data folder .*/set/texts holds no image'),
        (dict(data_prefix='no'), FileNotFoundError, r"/no does not exist: set data_root \(now '.*/set'\) and data_p"),
    ],
)
def test_wrong_arguments(folder: Path, kwargs: dict, error: type[Exception], message: str) -> None:
    (folder / 'texts' / 'a').mkdir(parents=True)
    (folder / 'texts' / 'notes.txt').write_text('no image')
    with pytest.raises(error, match=message):
        build(folder, **kwargs)


def test_a_list_of_paths_needs_no_folder(folder: Path, tmp_path: Path, log: Path) -> None:
    """Field case 17: absolute paths, with or without labels, and paths below a folder."""
    paths = sorted((folder / 'train').rglob('*.jpg'))
    lists = {
        'absolute': ('\n'.join(map(str, paths)), {}),
        'labelled': ('\n'.join(f'{path} {index}' for index, path in enumerate(paths)), {}),
        'relative': (
            '\n'.join(str(path.relative_to(folder)) for path in paths) + '\n\n',
            dict(data_root=str(folder), data_prefix=''),
        ),
    }
    for name, (text, options) in lists.items():
        (tmp_path / name).write_text(text)
        data = build(folder, **dict(dict(data_root='', data_prefix=''), ann_file=str(tmp_path / name), **options))
        assert [path_of(data, index) for index in range(len(data))] == paths, name
        assert data[3]['inputs'].shape == (3, 32, 32)
    assert f'{len(paths)} labels in the list {tmp_path}/labelled are left out' in log.read_text()


def test_names_in_a_list_are_not_mistaken_for_labels(folder: Path, tmp_path: Path) -> None:
    strange = folder / 'train' / 'scan 7.jpg'
    write_image(strange, 3)
    (tmp_path / 'list').write_text(f'{strange}\n{strange} -1')
    data = build(folder, data_root='', data_prefix='', ann_file=str(tmp_path / 'list'))
    assert [path_of(data, index) for index in range(2)] == [strange, strange]
    # Keys of another file backend are taken as they are
    (tmp_path / 'keys').write_text('n01/key 1\nn01/key 2')
    keys = build(
        folder,
        [
            dict(type='mm_ummae.LoadCompleteImage', backend_args=dict(backend='lmdb', db_path='x.lmdb')),
            *CENTRE_CROP[1:],
        ],
        data_root='',
        data_prefix='',
        ann_file=str(tmp_path / 'keys'),
    )
    assert [keys.get_data_info(index)['img_path'] for index in range(2)] == ['n01/key 1', 'n01/key 2']


def test_a_list_that_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / 'empty').write_text('\n')
    with pytest.raises(ValueError, match=r'the list .*empty \(ann_file\) names no image'):
        build(folder, ann_file=str(tmp_path / 'empty'))
    (tmp_path / 'moved').write_text('old/1.jpg\nold/2.jpg')
    message = r"train/old/1.jpg, the first of 2 images in the list .*moved, does not exist: .* \(now '.*train/?'\)"
    with pytest.raises(FileNotFoundError, match=message):
        build(folder, ann_file=str(tmp_path / 'moved'))


def test_images_of_other_depth_stop_the_run_with_the_way_out(folder: Path) -> None:
    """Field case 04: they trained, white, without a word."""
    for path in (folder / 'train').rglob('*.jpg'):
        Image.fromarray(np.asarray(Image.open(path).convert('L')).astype(np.uint16) * 256).save(
            path.with_suffix('.png')
        )
        path.unlink()
    data = build(folder)
    with pytest.raises(DataError, match=r'1 of 10 files .* The last one: .*\.png has more than 8 bits .*value_range='):
        data[0]
    scaled = build(folder, [dict(LOAD, value_range=(0, 65535)), *CENTRE_CROP[1:]])
    assert 20 < scaled[0]['inputs'].float().mean() < 235
