"""Iterations of an epoch, and the errors of one that has none."""

from __future__ import annotations

import logging

import pytest
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from mm_ummae.datasets import batches
from mm_ummae.datasets.batches import check_batches


@pytest.mark.parametrize('drop_last', [True, False])
@pytest.mark.parametrize('images', [1, 8, 9, 15, 16, 17])
def test_the_number_is_that_of_mmengines_loader(images: int, drop_last: bool) -> None:
    for batch_size in (1, 3, 8):
        loader = DataLoader(range(images), batch_size, sampler=DefaultSampler(range(images)), drop_last=drop_last)
        if len(loader):
            assert check_batches(images, batch_size, 1, drop_last) == len(loader)
        else:
            with pytest.raises(ValueError, match='an epoch has no iteration'):
                check_batches(images, batch_size, 1, drop_last)


def test_several_processes_share_the_images() -> None:
    assert check_batches(17, 4, 2, drop_last=True) == 2
    assert check_batches(17, 4, 2) == 3
    assert check_batches(3, 1, 2, drop_last=True) == 2
    message = (
        r'an epoch has no iteration: 30 images over 8 processes are 4 for each, less than '
        r'train_dataloader\.batch_size=8, and train_dataloader\.drop_last=True leaves out incomplete batches\. Set '
        r'train_dataloader\.batch_size to at most 4, set drop_last=False, use fewer processes or more images'
    )
    with pytest.raises(ValueError, match=message):
        check_batches(30, 8, 8, drop_last=True)


def test_fewer_images_than_processes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple] = []
    monkeypatch.setattr(batches, 'print_log', lambda text, logger, level: log.append((text, level)))
    assert check_batches(5, 8, 5) == 1 and not log
    assert check_batches(5, 8, 6) == 1
    assert log == [('the training set holds 5 images for 6 processes: some train on the same images', logging.WARNING)]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((0, 8), r'the training set holds no image: check the paths in train_dataloader\.dataset and, for detection'),
        ((8, 0), 'train_dataloader: batch_size is 0, but it must be at least 1'),
        ((8, 8, 0), 'train_dataloader: num_processes is 0, but it must be at least 1'),
    ],
)
def test_wrong_arguments(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batches(*arguments)
