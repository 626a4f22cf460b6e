"""Shared settings of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope

# Networks here are tiny: more threads make them slower, and many times so where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_default_scope() -> Iterator[None]:
    """A runner leaves its default scope behind for the whole process, where the next test would build in it."""
    yield
    DefaultScope._instance_dict.clear()
