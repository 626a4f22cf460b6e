"""Reading of files from storage that may fail for a moment: a failed read is tried again."""

from __future__ import annotations

import errno
import logging
import os
import time
from urllib.error import HTTPError

from mmengine import fileio
from mmengine.logging import print_log

PAUSES = (0.5, 2.0, 8.0)  # seconds before each further attempt: network storage takes some to come back
# These answers are final. Whatever else the system reports (ESTALE, EIO, time-outs, ...) may pass
FINAL = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
TEMPORARY_STATUS = {408, 425, 429}  # of HTTP, besides 500 and above


class UnreadableFileError(OSError):
    """A file cannot be read, which says nothing about its content; the message names it."""


def read_file(path: str, backend_args: dict | None = None) -> bytes:
    """Read a file through MMEngine's file backend; a read that fails for the moment is tried three times more.

    Args:
        path (str): Path or URI.
        backend_args (dict, optional): Arguments of the file backend. Default: the backend that suits the path.
    Returns:
        bytes: Content.
    Raises:
        UnreadableFileError: If the last attempt failed as well.
        OSError: If another attempt is useless: the file does not exist, may not be read, or is a folder.
    """
    for attempt, pause in enumerate((*PAUSES, None), 1):
        try:
            content = fileio.get(path, backend_args=backend_args)
            break
        except Exception as error:  # each backend raises its own types
            if not _may_pass(error):
                raise
            what = f'{type(error).__name__}: {error}'
            if pause is None:
                raise UnreadableFileError(f'{path} cannot be read, {attempt} attempts failed ({what})') from error
            print_log(
                f'{path} cannot be read at the moment ({what}): attempt {attempt + 1} of {len(PAUSES) + 1} follows in '
                f'{pause:g} s',
                logger='current',
                level=logging.WARNING,
            )
            time.sleep(pause)
    if content is None:  # petrel's answer for a missing object
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return content


def is_unreadable(error: Exception) -> bool:
    """Whether an error says that a file could not be read; errors of decoders, also ``OSError``, have no number."""
    return isinstance(error, (UnreadableFileError, HTTPError)) or (
        isinstance(error, OSError) and error.errno is not None
    )


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in TEMPORARY_STATUS
    if isinstance(error, OSError):
        return error.errno not in FINAL
    # Python's own exceptions are mistakes in the arguments and missing packages; clients of storage define theirs
    return type(error).__module__ != 'builtins'
