"""Checkpoint files: read safely (no arbitrary code execution), written atomically."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

# Classes and functions in training checkpoints beside the weights: options of MAE-style scripts, MMEngine's logs. None
# of them is looked up or called: reading replaces their objects by a LeftOut.
LEFT_OUT = (
    'argparse.Namespace',
    'builtins.getattr',  # for methods to which MMEngine's logs refer
    'builtins.slice',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.dtype',
    'numpy.ndarray',
    'numpy.core.multiarray._reconstruct',
    'numpy.core.multiarray.scalar',
    'numpy._core.multiarray._reconstruct',
    'numpy._core.multiarray.scalar',
    'pathlib.PosixPath',
)
# Whether torch.load(weights_only=True) can replace classes
CAN_LEAVE_OUT = Version(torch.__version__) >= Version('2.6')


class LeftOut:
    """Placeholder for an object that is not restored.

    Args:
        args: Ignored.
    """

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _SafePickle:
    """``pickle`` for ``torch.load`` before PyTorch 2.6: what ``weights_only=True`` restores, and :data:`LEFT_OUT`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            from torch._weights_only_unpickler import _get_allowed_globals  # its place in these versions

            full_name = f'{module.replace("__builtin__", "builtins")}.{name}'  # pickles of Python 2 have __builtin__
            if full_name in LEFT_OUT:
                return LeftOut
            if full_name in _get_allowed_globals() or full_name == '_codecs.encode':  # bytes in pickles of Python 2
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f'Unsupported class {full_name}')

    @classmethod
    def load(cls, file: Any, **kwargs: Any) -> Any:
        return cls.Unpickler(file, **kwargs).load()


def read_checkpoint(path: str | Path) -> Any:
    """Read tensors and plain values safely (no arbitrary code execution).

    This is ``torch.load(weights_only=True)`` with a placeholder for :data:`LEFT_OUT`, or its equivalent where PyTorch
    cannot do that.

    Args:
        path (str | Path): File of ``torch.save``.
    Returns:
        Any: Its content, a dict in a checkpoint.
    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be read, or holds other objects.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    try:
        if not CAN_LEAVE_OUT:
            return torch.load(path, map_location='cpu', pickle_module=_SafePickle)
        with torch.serialization.safe_globals([(LeftOut, name) for name in LEFT_OUT]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load raises many kinds on damaged files
        raise ValueError(f'the checkpoint {path} cannot be read. {_reason(error)}') from error


def _reason(error: Exception) -> str:
    foreign = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))
    if not foreign:
        # The first sentence only: the next ones of PyTorch advise to read the file with weights_only=False
        sentence = next(iter(str(error).splitlines()), '').partition('. ')[0]
        return f'It is truncated or was not written by torch.save. {type(error).__name__}: {sentence}'
    return (
        f'It holds {foreign[1]}, and restoring that could execute code of its author. If you trust the file, save its '
        "weights alone: torch.save({'model': torch.load(path, weights_only=False)['model']}, new_path)"
    )


def find_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Parameters in a checkpoint: under ``state_dict`` or ``model``, or the dict itself.

    Args:
        content (Any): From :func:`read_checkpoint`.
        path (str | Path): Path of the file, for errors.
    Returns:
        dict[str, Tensor]: Parameters by name, without the ``module.`` of data-parallel training.
    Raises:
        ValueError: If there is no dict of tensors, or names occur with and without ``module.``.
    """
    state = content.get('state_dict', content.get('model', content)) if isinstance(content, dict) else None
    is_state = isinstance(state, dict) and state
    if not is_state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ValueError(f'the checkpoint {path} holds no state_dict of tensors')
    plain = {name.removeprefix('module.'): value for name, value in state.items()}
    if len(plain) < len(state):
        twice = sorted(name for name in state if f'module.{name}' in state)
        raise ValueError(f'the checkpoint {path} holds names both with and without module.: {", ".join(twice[:8])}')
    return plain


def write_checkpoint(content: dict, target: str | Path, hash_suffix: bool = False) -> Path:
    """Write a checkpoint atomically: after an error the target is unchanged.

    Args:
        content (dict): ``meta`` of plain values and a dict of tensors.
        target (str | Path): File to write; an existing one is replaced.
        hash_suffix (bool): Append the first 8 digits of the file's SHA-256 to its name, as OpenMMLab does. Default
            False.
    Returns:
        Path: The file.
    """
    target = Path(target)
    # Copies, since a view is saved with the whole storage behind it
    content = {
        key: {name: x.detach().clone() if isinstance(x, Tensor) else x for name, x in value.items()}
        for key, value in content.items()
    }
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        with part.open('wb') as file:  # not the path, since torch.save writes the name of a path into the file
            torch.save(content, file)
        if hash_suffix:
            target = target.with_name(f'{target.stem}-{file_hash(part)[:8]}{target.suffix}')
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
