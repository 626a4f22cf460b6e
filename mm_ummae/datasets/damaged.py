"""Why a sample cannot be loaded: the file that is to blame and its damage, for the datasets of all hosts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mmengine import fileio
from PIL import UnidentifiedImageError

from .decoding import decode
from .image_kinds import ImageKindError
from .reading import UnreadableFileError, is_unreadable

# Files that a record may name, what they are, and the key that a loaded one has left in the record
FILES = {'img_path': ('image', 'img'), 'seg_map_path': ('label map', 'gt_seg_map')}
REMEDY = 'Copy or download the file again, or remove it from the data and their annotations'
REMEDY_UNREAD = 'Check path and storage, or remove the file from the data and their annotations'


NAMED = 8  # of many files or annotations, in messages


class DataError(RuntimeError):
    """The data as a whole cannot be used; the message says why."""


def name_some(names: Collection[Any]) -> str:
    """The first names of many, and how many follow: ``1, 2, 3 and 40 more``."""
    shown = ', '.join(str(name) for name in list(names)[:NAMED])
    return f'{shown} and {len(names) - NAMED} more' if len(names) > NAMED else shown


def describe_failure(dataset: Any, index: int, error: Exception) -> Exception:
    """Turn an error of ``dataset[index]`` into one that names the file and what is wrong with it.

    The record of the sample is taken from the failed transform, because a dataset may load others than the requested
    image (mosaics, another image in place of one without objects), or else from ``dataset.get_data_info(index)``.
    Files of the record that were not loaded yet are read once more and decoded strictly.

    Use it as ``raise describe_failure(dataset, index, error) from error``.

    Args:
        dataset (Any): Dataset of any host, with or without wrappers.
        index (int): Index that was requested.
        error (Exception): What ``dataset[index]`` raised, with its traceback.
    Returns:
        Exception: A ``ValueError``, or a :class:`DataError` with the same text if ``error`` is one: it speaks for the
        whole dataset.
    """
    if isinstance(error, DataError):
        return DataError(str(error))
    return ValueError(_describe(dataset, index, error))


def find_damage(content: bytes) -> str | None:
    """Decode an image file strictly, and put an error in words.

    Args:
        content (bytes): Content of the file.
    Returns:
        str | None: What is wrong, such as ``is truncated``, or None if it can be decoded.
    """
    if not content:
        return 'is empty'
    if not any(content):
        return f'holds nothing but {len(content)} zero bytes'
    try:
        decode(content)
    except (ImageKindError, ImportError):  # intact
        return None
    except UnidentifiedImageError:
        return f'is not an image: it begins with {content[:40]!r}'
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        if 'truncated' in str(error).lower():
            return f'is truncated ({len(content)} bytes are there)'
        return f'cannot be decoded ({type(error).__name__}: {error})'
    return None


def examine(path: str) -> str | None:
    """Read a file once and look for damage, see :func:`find_damage`; None also if it cannot be read.

    Args:
        path (str): Path or URI.
    Returns:
        str | None: What is wrong.
    """
    try:
        content = fileio.get(path)
    except Exception:  # of storage that needs arguments of the dataset
        return None
    return find_damage(content)


def _describe(dataset: Any, index: int, error: Exception) -> str:
    if isinstance(error, ImportError):  # of a package that this kind of file or storage needs
        return f'sample {index} of {type(dataset).__name__} cannot be loaded: {error}'
    reason = f'{type(error).__name__}: {error}'
    record = _failed_record(error) or _record(dataset, index)
    # {name: path}, of files that exist in the record and were not loaded before the failure
    files = {
        name: record[key]
        for key, (name, loaded) in FILES.items()
        if isinstance(record.get(key), str) and record.get(loaded) is None
    }
    if is_unreadable(error):
        if isinstance(error, UnreadableFileError):
            return f'{error}. {REMEDY_UNREAD}'
        named = getattr(error, 'filename', None)
        names = {path: name for name, path in files.items()}
        path = named if isinstance(named, str) else next(iter(files.values()), f'sample {index}')
        return f'the {names.get(path, "file")} {path} cannot be read ({reason}). {REMEDY_UNREAD}'
    for name, path in files.items():
        damage = examine(path)
        if damage:
            return f'the {name} {path} {damage}. {REMEDY}'
    path = record.get('img_path')
    if path is None:
        return f'sample {index} of {type(dataset).__name__} cannot be loaded ({reason})'
    return (
        f'the sample of {path} cannot be prepared ({reason}). Its files are intact as far as they were read: check the '
        "transforms of the dataset's pipeline and the annotations of this image"
    )


def _failed_record(error: Exception) -> dict:
    """Record of a sample in the innermost call that has one: the argument of the transform that failed."""
    found: dict = {}
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, dict) and 'img_path' in value:
                found = value
        trace = trace.tb_next
    return found


def _record(dataset: Any, index: int) -> dict:
    try:
        info = dataset.get_data_info(index)
    except Exception:  # many datasets have none
        return {}
    return info if isinstance(info, dict) else {}
