"""Reading of files from storage that may fail for a moment: a failed read is tried again."""

from __future__ import annotations

import errno
import logging
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
        UnreadableFileError: If the file does not exist, may not be read, or the last attempt failed as well.
    """
    for attempt, pause in enumerate((*PAUSES, None), 1):
        try:
            content = fileio.get(path, backend_args=backend_args)
        except Exception as error:  # each backend raises its own types
            if not _of_storage(error):
                raise
            what = f'{type(error).__name__}: {error}'
            if not _may_pass(error):
                raise UnreadableFileError(f'{path} cannot be read ({what})') from error
            if pause is None:
                raise UnreadableFileError(f'{path} cannot be read, {attempt} attempts failed ({what})') from error
            print_log(
                f'{path} cannot be read at the moment ({what}): attempt {attempt + 1} of {len(PAUSES) + 1} follows in '
                f'{pause:g} s',
                logger='current',
                level=logging.WARNING,
            )
            time.sleep(pause)
        else:
            if content is None:  # petrel's answer for a missing object
                raise UnreadableFileError(f'{path} cannot be read (it does not exist)')
            return content
    raise AssertionError('the last attempt returns or raises')


def is_unreadable(error: Exception) -> bool:
    """Whether an error says that a file could not be read; errors of decoders, also ``OSError``, have no number."""
    return isinstance(error, (UnreadableFileError, HTTPError)) or (
        isinstance(error, OSError) and error.errno is not None
    )


def _of_storage(error: Exception) -> bool:
    """Not a mistake in the arguments or a missing package, which are Python's own exceptions."""
    return isinstance(error, OSError) or type(error).__module__ != 'builtins'


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in TEMPORARY_STATUS
    return not (isinstance(error, OSError) and error.errno in FINAL)
