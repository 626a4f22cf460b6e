"""What the readers of labelled data share: parts for training, validation and tests, and a split of images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mm_ummae.datasets.damaged import DataError, name_some

SPLITS = dict(
    train=('train', 'training', 'train_set', 'training_set'),
    val=('val', 'valid', 'validation', 'val_set', 'validation_set'),
    test=('test', 'testing', 'test_set', 'testing_set'),
)
IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'JPEGImages')


@dataclass
class LabelledData:
    """Labelled images of a task.

    Args:
        classes (tuple[str, ...]): Names of the classes.
        files (dict[str, list[str]]): Images of ``train``, ``val`` and ``test``; those of validation are also those of
            the test if there are no others.
        values (dict[str, Any]): Values at the top of the config that say where the data are.
        written (dict[str, str]): Files that belong to the run, by their names: lists and annotations of a split.
    """

    classes: tuple[str, ...]
    files: dict[str, list[str]]
    values: dict[str, Any]
    written: dict[str, str] = field(default_factory=dict)


def check_folder(data: Path) -> None:
    """Raise FileNotFoundError unless the data are a folder."""
    if not data.is_dir():
        raise FileNotFoundError(f'data is {data}, but there is no such folder')


def part_of_folder(name: str) -> str | None:
    """Which part a folder is for by its whole name, such as ``Train`` or ``training-set``: a class may be test_tube."""
    name = name.lower().replace('-', '_').rstrip('0123456789')
    return next((part for part, names in SPLITS.items() if name in names), None)


def split(
    items: Sequence[Any], share: float, what: str, key: Callable[[Any], str] = str
) -> tuple[list[Any], list[Any]]:
    """Divide items into those for training and for validation; more items move few of the others.

    Args:
        items (Sequence[Any]): Images, in any form.
        share (float): Share of the second half, in (0, 1).
        what (str): What they are, for messages.
        key (Callable[[Any], str]): Name of an item, by which it is drawn. Default ``str``.
    Returns:
        tuple[list[Any], list[Any]]: Both halves, in their order.
    Raises:
        ValueError: If the share is illegal.
        DataError: If one half would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f'val_share is {share}, but it must be between 0 and 1')
    count = max(round(len(items) * share), 1)
    if count >= len(items):
        raise DataError(f'there are {len(items)} {what}, but training and validation need one each at least: add some')
    order = sorted(range(len(items)), key=lambda index: hashlib.sha256(key(items[index]).encode()).digest())
    chosen = set(order[:count])
    kept = [item for index, item in enumerate(items) if index not in chosen]
    return kept, [item for index, item in enumerate(items) if index in chosen]


def warn(message: str) -> None:
    """Log what is left out or suspicious."""
    print_log(message, 'current', logging.WARNING)


def log_parts(classes: Sequence[str], counts: dict[str, int], what: str) -> None:
    """Log the number of images of each part, and the classes."""
    parts = ', '.join(f'{part} {count}' for part, count in counts.items())
    print_log(f'{what}: {parts}; {len(classes)} classes: {name_some(classes)}', 'current')
