"""Random streams by place, the batch sampler that names them, and the dataset that starts them."""

from __future__ import annotations

import copy
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from mm_ummae.datasets.batch_sampler import ResumableBatchSampler, SeededIndex
from mm_ummae.datasets.random_streams import seed_streams
from mm_ummae.datasets.run_dataset import RunDataset


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_streams_are_functions_of_the_key() -> None:
    found = {}
    for key in ((0,), (1,), (0, 0), (0, 1), (1, 0), (2**31 - 1, 3, 10**6, 127)):
        seed_streams(*key)
        found[key] = draws()
        draws()
        seed_streams(*key)
        assert draws() == found[key]
    for place in range(3):
        assert len({values[place] for values in found.values()}) == len(found)


def test_neighbouring_keys_are_not_related() -> None:
    """Streams of consecutive iterations: means of 0.5, no correlation between neighbours."""
    values = []
    for iteration in range(2000):
        seed_streams(3, 0, iteration)
        values.append(draws())
    table = np.array(values)
    assert np.abs(table.mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(table[:-1].T, table[1:].T) - np.eye(6)).max() < 0.1


def test_index_carries_its_key_through_pickle() -> None:
    index = pickle.loads(pickle.dumps(SeededIndex(4, (1, 2))))
    assert index == 4 and index.key == (1, 2)
    assert SeededIndex(4).key == ()


class Noise:
    """Dataset whose samples are their index and noise of two streams; ``paired`` gives batches at once."""

    pipeline = 'old'

    @property
    def metainfo(self) -> dict:
        return dict(classes=('a',))

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[int, float, float]:
        assert type(index) is int
        if index == 6:
            raise OSError('broken')
        return index, random.random(), float(np.random.rand())


class Paired(Noise):
    """Two samples a file."""

    def __getitems__(self, indices: list[int]) -> list:
        return [self[index] for index in indices for _ in range(2)]


def epoch(dataset: RunDataset, iteration: int = 0, skip: int = 0, workers: int = 0) -> list:
    sampler = DefaultSampler(range(6), shuffle=True, seed=5)
    batches = ResumableBatchSampler(sampler, batch_size=2)
    assert list(batches) == []  # the place is not known yet
    batches.begin(seed=9, iteration=iteration, skip=skip)
    assert len(batches) == 3
    return list(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list))


@pytest.mark.parametrize('kind', [Noise, Paired])
def test_samples_depend_on_their_place_alone(kind: type[Noise]) -> None:
    dataset = RunDataset(kind())
    whole = epoch(dataset)
    assert epoch(dataset, workers=2) == whole
    assert epoch(dataset, iteration=1, skip=1) == whole[1:]
    other = epoch(dataset, iteration=3)  # the next epoch draws anew
    assert [[sample[0] for sample in batch] for batch in other] == [[sample[0] for sample in batch] for batch in whole]
    noise = {value for batch in whole + other for sample in batch for value in sample[1:]}
    assert len(noise) == 2 * 2 * 6 * (1 + (kind is Paired))


def test_wrapper_forwards_to_the_dataset() -> None:
    dataset = RunDataset(Noise())
    assert len(dataset) == 7 and dataset.metainfo == dict(classes=('a',))
    dataset.pipeline = 'new'
    assert dataset.dataset.pipeline == dataset.pipeline == 'new'
    dataset.full_init()  # nothing was put off
    assert len(copy.deepcopy(dataset)) == len(pickle.loads(pickle.dumps(dataset))) == 7


def test_wrapper_names_what_failed() -> None:
    with pytest.raises(ValueError, match='broken'):
        RunDataset(Noise())[6]


@pytest.mark.parametrize(('drop_last', 'number'), [(False, 3), (True, 2)])
def test_drop_last(drop_last: bool, number: int) -> None:
    batches = ResumableBatchSampler(DefaultSampler(range(5), shuffle=False), 2, drop_last=drop_last)
    batches.begin(0, 0)
    assert [list(map(int, batch)) for batch in batches] == [[0, 1], [2, 3], [4]][:number]
    assert len(batches) == number


def test_batch_sampler_of_a_host() -> None:
    """MMDetection's groups by aspect ratio; skipped batches are those of the host."""
    from mmdet.datasets.samplers import AspectRatioBatchSampler

    class Shapes(list):
        def get_data_info(self, index: int) -> dict:
            return self[index]

    shapes = Shapes(dict(width=1 + i % 2, height=1.5) for i in range(8))
    sampler = DefaultSampler(shapes, shuffle=False)
    batches = ResumableBatchSampler(sampler, 2, batch_sampler=dict(type=AspectRatioBatchSampler, drop_last=True))
    batches.begin(0, 0)
    whole = [list(map(int, batch)) for batch in batches]
    assert whole == [[0, 2], [1, 3], [4, 6], [5, 7]]
    batches.begin(0, 2, skip=2)
    assert [list(map(int, batch)) for batch in batches] == whole[2:]


@pytest.mark.parametrize('kind', ['mmpretrain.CustomDataset', 'mmpretrain.ImageNet'])
@pytest.mark.parametrize('lazy', [False, True])
def test_scan_without_end_names_the_link(kind: str, lazy: bool, tmp_path: Path) -> None:
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'train' / 'a' / '1.jpg').write_bytes(b'')
    link = tmp_path / 'train' / 'a' / 'loop'
    link.symlink_to(tmp_path / 'train')
    where = (
        dict(data_prefix='train')
        if kind.endswith('CustomDataset')
        else dict(split='train', metainfo=dict(classes=('a',)))
    )
    with pytest.raises(
        ValueError, match=re.escape(f'the link {link} leads back to {tmp_path}/train, in which it lies')
    ):
        RunDataset(dict(type=kind, data_root=str(tmp_path), lazy_init=lazy, **where)).full_init()
