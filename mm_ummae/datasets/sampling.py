"""Samples of long lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar('Item')


def evenly_spaced(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` items at equal distances, the first and the last one included.

    Args:
        items (Sequence[Item]): In any order, which is kept.
        limit (int): Largest number of them, at least 1.
    Returns:
        list[Item]: Each of them once.
    """
    places = np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]


def random_sample(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` items, drawn with a fixed seed: equal distances may follow a pattern in the list.

    Args:
        items (Sequence[Item]): In any order, which is kept.
        limit (int): Largest number of them.
    Returns:
        list[Item]: Each of them once.
    """
    count = min(limit, len(items))
    places = np.random.default_rng(0).choice(len(items), count, replace=False)
    return [items[place] for place in np.sort(places).tolist()]
