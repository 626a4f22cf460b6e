"""Reads that fail for the moment are tried again; final answers and mistakes are not."""

from __future__ import annotations

import errno
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
from mmengine import fileio
from PIL import UnidentifiedImageError
from pytest import MonkeyPatch

from mm_ummae.datasets import reading
from mm_ummae.datasets.reading import PAUSES, UnreadableFileError, is_unreadable, read_file


class ServerError(Exception):
    """Of a client of storage."""


def answer(code: int) -> HTTPError:
    return HTTPError('http://a/b.jpg', code, 'answer', {}, None)


PASSING = [
    OSError(errno.ESTALE, 'Stale file handle'),
    OSError(errno.EIO, 'Input/output error'),
    OSError(errno.EREMOTEIO, 'Remote I/O error'),
    TimeoutError('timed out'),
    ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer'),
    URLError('no route'),
    IncompleteRead(b''),
    answer(503),
    answer(429),
    ServerError('slow down'),
]
FINAL = [
    FileNotFoundError(errno.ENOENT, 'No such file'),
    PermissionError(errno.EACCES, 'Permission denied'),
    IsADirectoryError(errno.EISDIR, 'Is a directory'),
    OSError(errno.ELOOP, 'Too many levels of symbolic links'),
    answer(404),
    ImportError('install petrel_client'),
    ValueError('unknown backend'),
]


@pytest.fixture
def storage(monkeypatch: MonkeyPatch) -> list:
    """What each attempt finds, content or an error, and then the pauses."""
    found: list = []
    monkeypatch.setattr(reading.time, 'sleep', found.append)

    def get(path: str, backend_args: dict | None = None) -> bytes:
        first = found.pop(0)
        if isinstance(first, Exception):
            raise first
        return first

    monkeypatch.setattr(fileio, 'get', get)
    return found


@pytest.mark.parametrize('error', PASSING, ids=repr)
def test_a_read_that_may_pass_is_tried_again(error: Exception, storage: list, monkeypatch: MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(reading, 'print_log', lambda text, logger, level: log.append(text))
    storage += [error, error, b'content']
    assert read_file('a.jpg') == b'content'
    assert storage == [*PAUSES[:2]] and list(PAUSES) == sorted(PAUSES)
    what = f'{type(error).__name__}: {error}'
    assert log[0] == f'a.jpg cannot be read at the moment ({what}): attempt 2 of 4 follows in 0.5 s'
    storage[:] = 4 * [error]
    with pytest.raises(UnreadableFileError, match=r'^a\.jpg cannot be read, 4 attempts failed \(') as raised:
        read_file('a.jpg')
    assert what in str(raised.value) and raised.value.__cause__ is error and is_unreadable(raised.value)
    assert storage == [*PAUSES]


@pytest.mark.parametrize('error', FINAL, ids=repr)
def test_final_answers_and_mistakes_are_raised_at_once(error: Exception, storage: list) -> None:
    storage += [error]
    with pytest.raises(type(error)) as raised:
        read_file('a.jpg')
    assert raised.value is error and storage == []
    assert is_unreadable(error) == isinstance(error, OSError)


def test_other_answers(storage: list, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    storage += [None]  # petrel's for a missing object
    with pytest.raises(FileNotFoundError, match=r'No such file or directory: .s3://a\.jpg'):
        read_file('s3://a.jpg')
    assert not is_unreadable(UnidentifiedImageError('an OSError')) and not is_unreadable(OSError('image is truncated'))
    monkeypatch.undo()
    (tmp_path / 'a').write_bytes(b'content')
    assert read_file(str(tmp_path / 'a'), dict(backend='local')) == b'content'
