"""PretrainImages: what is found, what happens to files that do not decode, and what must not pass for one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch.utils.data import DataLoader

from mm_ummae.datasets import PretrainImages
from mm_ummae.registry import DATASETS

from .leaves import build_model, config, leaf

SIDE = 48
LOAD = dict(type='mm_ummae.LoadCompleteImage')
CROP = dict(type='CenterCrop', crop_size=32)
RANDOM_CROP = dict(type='mm_ummae.TorchRandomResizedCrop', scale=32, flip_prob=0.5)
PACK = dict(type='PackInputs')
PIPELINE = (LOAD, CROP, PACK)
RANDOM_PIPELINE = (LOAD, RANDOM_CROP, PACK)
# Whose transforms write into what they are given
HOST_PIPELINE = (
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5),
    PACK,
)
DAMAGES = ('random', 'empty', 'truncated')


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    path.write_bytes({'random': noise, 'empty': b'', 'truncated': content[: len(content) // 2]}[kind])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, named by number, in three levels of folders."""
    for i in range(10):
        write_picture(tmp_path / 'set' / 'train' / ('.', 'a', 'b/c')[i % 3] / f'{i}.jpg', i)
    return tmp_path / 'set'


def dataset(folder: Path, **kwargs: Any) -> PretrainImages:
    options = dict(type='mm_ummae.PretrainImages', data_root=str(folder), data_prefix='train', pipeline=list(PIPELINE))
    return DATASETS.build({**options, **kwargs})


def find(folder: Path, number: int) -> Path:
    return next(folder.rglob(f'{number}.jpg'))


def index_of(data: PretrainImages, path: Path) -> int:
    paths = [Path(data.get_data_info(i)['img_path']).resolve() for i in range(len(data))]
    return paths.index(path.resolve())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file with what reaches MMEngine's current logger, also from loader processes."""
    logger, handler = MMLogger.get_current_instance(), logging.FileHandler(tmp_path / 'log.txt')
    logger.addHandler(handler)
    yield tmp_path / 'log.txt'
    logger.removeHandler(handler)
    handler.close()


def reports(log: Path) -> list[str]:
    """Names of the files reported as bad, in order."""
    return re.findall(r'(\w+)\.jpg cannot be decoded and is left out \(\w+: ', log.read_text())


# What is found


def test_pictures_of_all_subfolders_are_found_without_labels(folder: Path) -> None:
    (folder / 'train' / 'a' / 'notes.txt').write_text('no image')
    write_picture(folder / 'val' / '11.jpg', 11)
    write_picture(folder / 'train' / 'b' / 'upper.PNG', 12)
    data = dataset(folder)
    names = [Path(data.get_data_info(i)['img_path']).name for i in range(len(data))]
    assert sorted(names) == sorted([*(f'{i}.jpg' for i in range(10)), 'upper.PNG'])
    assert {'img_path', 'sample_idx'} == set(data.get_data_info(0))


def test_a_picture_arrives_as_the_pipeline_makes_it(folder: Path) -> None:
    data = dataset(folder)
    sample = data[index_of(data, find(folder, 4))]
    pixels = np.asarray(Image.open(find(folder, 4)))[8:40, 8:40, ::-1]  # BGR until the data preprocessor
    assert torch.equal(sample['inputs'], torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    assert Path(sample['data_samples'].img_path).name == '4.jpg'


def test_a_subset_is_taken(folder: Path) -> None:
    """The base class's options still work."""
    assert len(dataset(folder, indices=3)) == 3
    assert isinstance(dataset(folder), CustomDataset)


# Damaged files


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_damaged_file_is_replaced_and_named_once(folder: Path, log: Path, kind: str) -> None:
    data = dataset(folder, max_bad_share=0.5)
    damage(find(folder, 4), kind)
    index = index_of(data, find(folder, 4))
    for _ in range(3):
        sample = data[index]
        assert Path(sample['data_samples'].img_path).name != '4.jpg'
        assert sample['inputs'].shape == (3, 32, 32)
    assert reports(log) == ['4']
    assert str(find(folder, 4)) in log.read_text()


def test_a_file_that_vanished_counts_as_damaged(folder: Path, log: Path) -> None:
    data = dataset(folder, max_bad_share=0.5)
    index = index_of(data, find(folder, 4))
    find(folder, 4).unlink()
    assert data[index]['inputs'].shape == (3, 32, 32)
    assert reports(log) == ['4']


def test_loader_processes_share_their_finds(folder: Path, log: Path) -> None:
    """Each bad file is known to all processes after the first pass; every batch stays full."""
    data = dataset(folder, max_bad_share=0.5)
    for number, kind in zip((1, 4, 8), DAMAGES, strict=True):
        damage(find(folder, number), kind)
    good = index_of(data, find(folder, 0))
    data._rand_another = lambda: good  # else two processes could meet one bad file at the same moment
    loader = DataLoader(data, 5, num_workers=2, collate_fn=default_collate, timeout=120)
    for _ in range(3):
        batches = list(loader)
        assert [len(batch['inputs']) for batch in batches] == [5, 5]
        names = {Path(sample.img_path).stem for batch in batches for sample in batch['data_samples']}
        assert not names & {'1', '4', '8'}
        # Here in the parent process, which read none of them
        bad = {Path(data.get_data_info(i)['img_path']).stem for i in data._bad.nonzero().flatten().tolist()}
        assert bad == {'1', '4', '8'}
    assert sorted(reports(log)) == ['1', '4', '8']


def test_share_counts_over_all_loader_processes(folder: Path) -> None:
    """Each of three processes reads one bad file; together they have one too many."""
    data = dataset(folder, max_bad_share=0.2)
    paths = [Path(data.get_data_info(i)['img_path']) for i in range(10)]
    for index in (1, 6, 9):
        damage(paths[index], 'random')
    data._rand_another = lambda: 0
    # The third is read here: torch takes ten seconds to end loader processes that failed
    list(DataLoader(data, 4, sampler=range(8), num_workers=2, collate_fn=default_collate, timeout=120))
    with pytest.raises(RuntimeError, match=r'3 of 10 files below .* cannot be decoded, more than max_bad_share 0\.2'):
        data[9]


def test_too_many_bad_files_stop_the_run(folder: Path) -> None:
    data = dataset(folder, max_bad_share=0.2)
    indices = []
    for number in (1, 4, 8):
        damage(find(folder, number), 'random')
        indices.append(index_of(data, find(folder, number)))
    for index in indices[:2]:
        assert data.prepare_data(index) is None
    message = (
        r'3 of 10 files below .*train cannot be decoded, more than max_bad_share 0\.2 allows; the last is .*8\.jpg'
    )
    with pytest.raises(RuntimeError, match=message) as error:
        data.prepare_data(indices[2])
    assert error.value.__cause__ is not None, "the decoder's own words are lost"


def test_no_bad_file_is_allowed_with_share_zero(folder: Path) -> None:
    data = dataset(folder, max_bad_share=0)
    damage(find(folder, 4), 'truncated')
    with pytest.raises(RuntimeError, match=r'1 of 10 files .*4\.jpg'):
        data[index_of(data, find(folder, 4))]


# Several samples of a file


def names(batch: dict) -> list[str]:
    return [Path(sample.img_path).stem for sample in batch['data_samples']]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_batch_has_the_repeats_of_each_file_one_after_the_other(folder: Path, workers: int) -> None:
    data = dataset(folder, pipeline=list(RANDOM_PIPELINE), repeats=3)
    assert len(data) == 10, 'an epoch counts files'
    batches = list(DataLoader(data, 4, collate_fn=default_collate, num_workers=workers, drop_last=True))
    assert [batch['inputs'].shape for batch in batches] == [(12, 3, 32, 32)] * 2
    for batch in batches:
        files = names(batch)
        assert files[::3] == files[1::3] == files[2::3] and len(set(files)) == 4
        for group in batch['inputs'].split(3):
            assert not torch.equal(group[0], group[1]) and not torch.equal(group[1], group[2])


def test_a_file_is_decoded_once_for_all_its_samples(folder: Path) -> None:
    data = dataset(folder, pipeline=list(RANDOM_PIPELINE), repeats=5)
    load, decoded = data.pipeline.transforms[0], []
    data.pipeline.transforms[0] = lambda results: decoded.append(results['img_path']) or load(results)
    assert len(data[3]) == 5 and len(data.__getitems__([3, 4])) == 10
    assert [Path(path).name for path in decoded] == [Path(data.get_data_info(i)['img_path']).name for i in (3, 3, 4)]


@pytest.mark.parametrize('pipeline', [RANDOM_PIPELINE, HOST_PIPELINE], ids=['ours', 'mmpretrain'])
def test_samples_of_a_file_are_those_of_reading_it_again_and_again(folder: Path, pipeline: tuple) -> None:
    np.random.seed(0)
    repeated = dataset(folder, pipeline=list(pipeline), repeats=4)[2]
    np.random.seed(0)
    single = dataset(folder, pipeline=list(pipeline))
    for sample in repeated:
        assert torch.equal(sample['inputs'], single[2]['inputs'])


def test_a_damaged_file_is_replaced_with_all_its_samples(folder: Path, log: Path) -> None:
    data = dataset(folder, pipeline=list(RANDOM_PIPELINE), repeats=2, max_bad_share=0.5)
    damage(find(folder, 4), 'truncated')
    batch = default_collate(data.__getitems__([index_of(data, find(folder, 4)), 0]))
    assert len(batch['inputs']) == 4 and '4' not in names(batch)
    assert reports(log) == ['4']


def test_a_sample_that_a_transform_refuses_takes_its_file_along(folder: Path) -> None:
    """So a batch keeps its size."""
    data = dataset(folder, pipeline=list(RANDOM_PIPELINE), repeats=3)
    crop, calls = data.pipeline.transforms[1], []
    data.pipeline.transforms[1] = lambda results: None if calls.append(0) or len(calls) == 2 else crop(results)
    assert len(data.__getitems__([0, 1])) == 6


def test_a_model_trains_on_repeated_samples(folder: Path) -> None:
    cfg = config(leaf('ummae_swin-test_1xb64-coslr-20e_demo-128px'))
    cfg.model.backbone.img_size = cfg.model.neck.img_size = 64
    cfg.train_dataloader.dataset.update(data_root=str(folder), data_prefix='train', repeats=3)
    cfg.train_dataloader.dataset.pipeline[1].scale = 64
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        model = build_model(cfg, 'cpu')
    data = model.data_preprocessor(batch, training=True)
    assert data['inputs'].shape == (6, 3, 64, 64) and data['inputs'].dtype == torch.float32
    assert len(data['data_samples']) == 6
    loss = model(**data, mode='loss')['loss']
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize('repeats', [0, -1])
def test_no_sample_of_a_file_is_refused(folder: Path, repeats: int) -> None:
    with pytest.raises(ValueError, match=f'repeats is {repeats}, but there must be at least one sample of a file'):
        dataset(folder, repeats=repeats)


# What must not pass for a damaged file


def crop_64(results: dict) -> dict:
    height, width = results['img'].shape[:2]
    if min(height, width) < 64:
        raise ValueError(f'the crop of 64 px is larger than the image of {height}x{width} px')
    return results


@pytest.mark.parametrize(
    ('transform', 'error', 'message'),
    [
        (crop_64, ValueError, r'crop of 64 px is larger than the image of 48x48'),
        (dict(type='Resize', scale=32, interpolation='bicubc'), KeyError, r'bicubc'),
        (lambda results: {**results, 'img': results['picture']}, KeyError, r'picture'),
    ],
    ids=['crop', 'typo', 'key'],
)
def test_mistakes_in_later_transforms_are_raised(
    folder: Path, log: Path, transform: Any, error: type[Exception], message: str
) -> None:
    data = dataset(folder, max_bad_share=0.9, pipeline=[LOAD, transform])
    with pytest.raises(error, match=message):
        data[0]
    assert not data._bad.any()
    assert reports(log) == []


def test_a_later_transform_may_ask_for_another_picture(folder: Path, log: Path) -> None:
    """None is MMEngine's way to refuse a sample; that is no damage."""
    data = dataset(folder, max_bad_share=0.0)
    crop = data.pipeline.transforms[1]
    data.pipeline.transforms[1] = lambda results: None if results['img_path'].endswith('4.jpg') else crop(results)
    sample = data[index_of(data, find(folder, 4))]
    assert Path(sample['data_samples'].img_path).name != '4.jpg'
    assert not data._bad.any() and reports(log) == []


# Wrong folders and arguments


def test_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / 'set' / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'set' / 'train' / 'notes.txt').write_text('no image')
    with pytest.raises(ValueError, match=r'the data folder .*/set/train holds no image'):
        dataset(tmp_path / 'set')


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'/nowhere/train .*does not exist') as error:
        dataset(tmp_path / 'nowhere')
    assert 'data_root' in str(error.value) and 'data_prefix' in str(error.value)


@pytest.mark.parametrize('share', [-0.1, 1, 1.5])
def test_share_out_of_range(folder: Path, share: float) -> None:
    with pytest.raises(ValueError, match=rf'max_bad_share is {share}, but it must be in \[0, 1\)'):
        dataset(folder, max_bad_share=share)
