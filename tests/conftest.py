"""Shared settings and fixtures of all tests."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from mmengine.config.utils import load
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]

# Networks here are tiny: more threads make them slower, and many times so where other work shares the cores. The
# variable is for the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_collection_finish() -> None:
    """MMEngine's datasets collect garbage when they are built: half a second each, unless all modules are frozen."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_default_scope() -> Iterator[None]:
    """A runner leaves its default scope behind for the whole process, where the next test would build in it."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session', autouse=True)
def metafiles_are_parsed_once() -> Iterator[None]:
    """MMEngine parses every metafile of a host for every base that comes from it."""
    with mock.patch('mmengine.config.utils.load', cache(load)):
        yield


@pytest.fixture(scope='session')
def tool() -> Callable[[str], ModuleType]:
    """Imports a script of tools/ by its name without suffix."""

    @cache
    def load_tool(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / 'tools' / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_tool


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data of a few images of 128 px: imagenet/{unlabelled,train,val}, coco and ade."""
    from demo.make_data import make_demo_data  # what it needs takes time to import

    return make_demo_data(
        tmp_path_factory.mktemp('data') / 'demo',
        image_size=128,
        num_pretrain=16,
        num_labelled_train=20,
        num_labelled_val=10,
        num_coco_train=4,
        num_coco_val=2,
        num_ade_train=4,
        num_ade_val=2,
    )
