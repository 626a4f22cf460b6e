"""Checkpoint files: read safely (no arbitrary code execution), written atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from mmengine.logging import print_log
from packaging.version import Version
from torch import Tensor

# Classes and functions in training checkpoints beside the weights: options of MAE-style scripts, MMEngine's logs. None
# of them is looked up or called: reading leaves their objects out.
LEFT_OUT = (
    'argparse.Namespace',
    'builtins.getattr',  # for methods to which MMEngine's logs refer
    'builtins.slice',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'pathlib.PosixPath',
)
# Text that MMEngine executes as a config: its runner when it resumes, inferencers that are given weights alone
CONFIG_TEXTS = ('meta.config', 'meta.cfg', 'message_hub.runtime_info.cfg')
# Whether torch.load(weights_only=True) can replace classes
CAN_LEAVE_OUT = Version(torch.__version__) >= Version('2.6')
# The one way to trust files: their paths in this environment variable, joined as those of PATH
TRUSTED = 'MM_UMMAE_TRUSTED_CHECKPOINTS'
SAFETENSORS = '.safetensors'


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message is for users, on one line."""


class LeftOut:
    """Placeholder for an object that is not restored.

    Args:
        args: Ignored.
    """

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class NumpyType(LeftOut):
    """Stand-in for a data type of NumPy; only those of numbers and text have a :attr:`kind`.

    NumPy's own ``__setstate__`` would take any flags and fields, with which an array reads bytes as addresses.
    """

    order = '='

    def __init__(self, code: str, *args: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple) -> None:  # (version, byte order, ...)
        self.order = state[1]

    @property
    def kind(self) -> np.dtype | None:
        """The type; None for others."""
        kind = np.dtype(self.code)
        return kind.newbyteorder(self.order) if kind.kind in 'biufcU' else None


class NumpyArray(LeftOut):
    """Stand-in for an array of NumPy, whose values are :attr:`array` unless they are other objects."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, data = state
        if kind.kind is not None:
            self.array = np.ndarray(shape, kind.kind, data, order='F' if by_columns else 'C').copy()


def numpy_number(kind: NumpyType, data: bytes) -> Any:
    """Number of NumPy, such as a best score."""
    return LeftOut() if kind.kind is None else np.frombuffer(data, kind.kind)[0]


# Arrays and numbers of NumPy are plain values. Its module had another name before version 2.
RESTORED = {
    'builtins.bytes': bytes,  # of an empty array
    'numpy.ndarray': LeftOut,  # named beside an array, never called
    'numpy.dtype': NumpyType,
    **{f'numpy.{core}.multiarray._reconstruct': NumpyArray for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': numpy_number for core in ('core', '_core')},
}


class _SafePickle:
    """``pickle`` for ``torch.load`` before PyTorch 2.6: what ``weights_only=True`` restores, and what is left out."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            from torch._weights_only_unpickler import _get_allowed_globals  # its place in these versions

            full_name = f'{module.replace("__builtin__", "builtins")}.{name}'  # pickles of Python 2 have __builtin__
            if full_name in LEFT_OUT:
                return LeftOut
            if full_name in RESTORED:
                return RESTORED[full_name]
            if full_name in _get_allowed_globals() or full_name == '_codecs.encode':  # bytes in pickles of Python 2
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f'Unsupported class {full_name}')

    @classmethod
    def load(cls, file: Any, **kwargs: Any) -> Any:
        return cls.Unpickler(file, **kwargs).load()


def read_checkpoint(path: str | Path, map_location: str | torch.device | Callable = 'cpu') -> Any:
    """Read tensors and plain values safely (no arbitrary code execution).

    This is ``torch.load(weights_only=True)`` without the objects in :data:`LEFT_OUT`, or its equivalent where PyTorch
    cannot do that. The log lists what is left out. Files that the environment variable :data:`TRUSTED` names are read
    with all their objects, which may execute code of their author.

    Args:
        path (str | Path): File of ``torch.save``, or of safetensors (by its suffix).
        map_location (str | torch.device | Callable): Device of the tensors, as for ``torch.load``. Default: the CPU.
    Returns:
        Any: Its content, a dict in a checkpoint.
    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If it cannot be read, is damaged, or holds other objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    map_location = map_location or 'cpu'
    trusted = [Path(name).expanduser().resolve() for name in os.environ.get(TRUSTED, '').split(os.pathsep) if name]
    try:
        if path.suffix == SAFETENSORS:
            return _read_safetensors(path, map_location)
        _check_archive(path)
        if path.resolve() in trusted:
            print_log(f'{path} is trusted ({TRUSTED}): its objects may execute code', 'current', logging.WARNING)
            return torch.load(path, map_location=map_location, weights_only=False)
        return _plain(_load_safely(path, map_location), path)
    except Exception as error:  # the libraries raise many kinds on damaged files
        raise CheckpointError(f'the checkpoint {path} cannot be read. {reason(error)}') from error


def _load_safely(path: Path, map_location: Any) -> Any:
    if not CAN_LEAVE_OUT:
        return torch.load(path, map_location=map_location, pickle_module=_SafePickle)
    allowed = [(LeftOut, name) for name in LEFT_OUT] + [(kind, name) for name, kind in RESTORED.items()]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location=map_location, weights_only=True)


def _read_safetensors(path: Path, map_location: Any) -> dict:
    """``{meta: ..., state_dict: ...}``; the metadata of the file are JSON in the entry ``meta``, or plain text."""
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    with safetensors.safe_open(path, framework='pt') as file:
        metadata = file.metadata() or {}
    state = safetensors.torch.load_file(path, device=str(device))
    meta = json.loads(metadata['meta']) if 'meta' in metadata else metadata
    return dict(meta=meta, state_dict=state)


def _check_archive(path: Path) -> None:
    """Raise _Refused for what PyTorch reads without a word. Files before PyTorch 1.6 are no archives."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise _Refused(f'It is damaged: the checksum of {damaged} is wrong')
        if any(name.endswith('/constants.pkl') for name in archive.namelist()):  # torch.load runs it before 2.6
            raise _Refused('It is a TorchScript archive, a program. Save the state_dict of the model instead')


def _plain(content: Any, path: Path) -> Any:
    """Take out the placeholders, and the text that MMEngine executes as a config; what goes is logged."""
    left_out: list[str] = []
    content = _without_placeholders(content, '', left_out)
    for name in CONFIG_TEXTS:
        *places, key = name.split('.')
        part = content
        for place in places:
            part = part.get(place) if isinstance(part, dict) else None
        if isinstance(part, dict) and part.pop(key, None) is not None:
            left_out.append(name)
    if left_out:
        more = f' and {len(left_out) - 8} more' if len(left_out) > 8 else ''
        print_log(f'{path}: not restored: {", ".join(left_out[:8])}{more}', 'current')
    return content


def _without_placeholders(value: Any, place: str, left_out: list[str]) -> Any:
    """The value without placeholders: entries of dicts go, others become None; ``left_out`` gets their places."""
    if isinstance(value, dict):
        for key, found in list(value.items()):
            value[key] = _without_placeholders(found, f'{place}.{key}'.lstrip('.'), left_out)
            if value[key] is None and found is not None:
                del value[key]
    elif isinstance(value, list):
        value[:] = [_without_placeholders(x, f'{place}[{i}]', left_out) for i, x in enumerate(value)]
    elif type(value) is tuple:
        value = tuple(_without_placeholders(x, f'{place}[{i}]', left_out) for i, x in enumerate(value))
    elif isinstance(value, NumpyArray) and value.array is not None:
        return value.array
    elif isinstance(value, LeftOut):
        left_out.append(place)
        return None
    return value


class _Refused(Exception):
    """A reason not to read a file."""


def reason(error: Exception) -> str:
    """Why a file cannot be read, and the way out, for an error message."""
    if isinstance(error, _Refused):
        return str(error)
    foreign = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))
    if not foreign:
        # The first sentence only: the next ones of PyTorch advise to read the file with weights_only=False
        sentence = next(iter(str(error).splitlines()), '').partition('. ')[0]
        return f'It is truncated or was not written by torch.save. {type(error).__name__}: {sentence}'
    return (
        f'It holds {foreign[1]}, and restoring that could execute code of its author. If you trust the file, set '
        f'{TRUSTED}=PATH in the environment'
    )


def find_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Parameters in a checkpoint: under ``state_dict`` or ``model``, or the dict itself.

    Args:
        content (Any): From :func:`read_checkpoint`.
        path (str | Path): Path of the file, for errors.
    Returns:
        dict[str, Tensor]: Parameters by name, without the ``module.`` of data-parallel training.
    Raises:
        CheckpointError: If there is no dict of tensors, or names occur with and without ``module.``.
    """
    state = content.get('state_dict', content.get('model', content)) if isinstance(content, dict) else None
    is_state = isinstance(state, dict) and state
    if not is_state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise CheckpointError(f'the checkpoint {path} holds no state_dict of tensors')
    plain = {name.removeprefix('module.'): value for name, value in state.items()}
    if len(plain) < len(state):
        twice = sorted(name for name in state if f'module.{name}' in state)
        raise CheckpointError(
            f'the checkpoint {path} holds names both with and without module.: {", ".join(twice[:8])}'
        )
    return plain


def write_checkpoint(content: dict, target: str | Path, hash_suffix: bool = False) -> Path:
    """Write a checkpoint atomically: after an error the target is unchanged.

    Args:
        content (dict): ``meta`` of plain values and a dict of tensors, or tensors alone.
        target (str | Path): File to write, by safetensors if that is its suffix; an existing one is replaced.
        hash_suffix (bool): Append the first 8 digits of the file's SHA-256 to its name, as OpenMMLab does. Default
            False.
    Returns:
        Path: The file.
    """
    target = Path(target)

    # Copies, since a view is saved with the whole storage behind it
    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: copied(x) for name, x in value.items()}
        return value.detach().clone() if isinstance(value, Tensor) else value

    content = copied(content)
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        if target.suffix == SAFETENSORS:
            _save_safetensors(content, part)
        else:
            with part.open('wb') as file:  # not the path, since torch.save writes the name of a path into the file
                torch.save(content, file)
        if hash_suffix:
            target = target.with_name(f'{target.stem}-{file_hash(part)[:8]}{target.suffix}')
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _save_safetensors(content: dict, path: Path) -> None:
    (tensors,) = [value for key, value in content.items() if key != 'meta']
    metadata = dict(format='pt', meta=json.dumps(content.get('meta', {})))
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Write a file so that it holds the old or the new content, whenever the process is killed.

    Args:
        target (Path): File to write; an existing one is replaced.
    Yields:
        Path: Name under which to write it. After an error nothing is left there.
    """
    part = target.with_name(f'.{target.name}.part')
    try:
        yield part
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)  # the renaming
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the disk has the content of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
