"""Loaders of MMEngine, replaced by those that execute no code.

MMEngine reads every checkpoint of a host (``load_from``, ``resume``, tests, ``init_cfg``, ``get_model``) through its
``CheckpointLoader``, which takes loaders by the start of the address. Where PyTorch refuses a file, MMEngine's own ones
read it again without protection. Importing this module registers ours for the whole process.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine import fileio
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_mmcls, load_from_openmmlab, load_from_pavi, load_from_torchvision

from mm_ummae.resources import WEIGHTS_PREFIX, weights_path

from .files import CheckpointError, read_checkpoint, reason


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a file; see :func:`read_checkpoint`."""
    return read_checkpoint(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=WEIGHTS_PREFIX)
def load_stored_weights(filename: str, map_location: Any = None) -> Any:
    """Read weights that are installed with the package, such as ``mm_ummae://um-swin-test``."""
    return read_checkpoint(weights_path(filename), map_location)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Download a file into PyTorch's cache, unless it is there, and read it."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(filename).path).name
    if is_main_process():
        _download(filename, path)
    barrier()
    _download(filename, path)  # on other machines
    return read_checkpoint(path, map_location)


@CheckpointLoader.register_scheme(prefixes=(r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), force=True)
def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Read a file of an object store, through MMEngine's file backends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(filename).name
        path.write_bytes(fileio.get(filename))
        return read_checkpoint(path, map_location)


def _download(address: str, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path))


@contextmanager
def _without_objects() -> Iterator[None]:
    """Let ``torch.load`` refuse objects even where its caller trusts the file."""
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    os.environ[name] = '1'
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _guarded(loader: Callable) -> Callable:
    """A loader that turns a name into an address and loads that by itself."""

    @wraps(loader)
    def load(filename: str, map_location: Any = None) -> Any:
        with _without_objects():
            try:
                return loader(filename, map_location)
            except pickle.UnpicklingError as error:
                raise CheckpointError(f'the checkpoint {filename} cannot be read. {reason(error)}') from error

    return load


for _prefixes, _loader in (
    (('modelzoo://', 'torchvision://'), load_from_torchvision),
    (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
    (('mmcls://',), load_from_mmcls),
    (('pavi://',), load_from_pavi),
):
    CheckpointLoader.register_scheme(_prefixes, _guarded(_loader), force=True)
