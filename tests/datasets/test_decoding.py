"""Decoding: pixels of the backend, and complete files only."""

from __future__ import annotations

import struct

import cv2
import mmcv
import numpy as np
import pytest
from pytest import MonkeyPatch

from mm_ummae.datasets.decoding import BACKENDS, END_OF_JPEG, decode
from tests.datasets.photographs import IMAGE, JPEGS, OTHERS, encode

EVERY = {**JPEGS, **OTHERS}


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', EVERY)
def test_the_pixels_are_those_of_the_backend(kind: str, backend: str) -> None:
    expected = mmcv.imfrombytes(EVERY[kind], backend=backend)
    pixels = decode(EVERY[kind], backend)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)


def test_the_backends_differ() -> None:
    """Otherwise there would be no choice."""
    assert decode(OTHERS['WebP'], 'pillow').shape == (61, 45, 3), 'rotated'
    assert decode(OTHERS['WebP'], 'cv2').shape == (45, 61, 3)


def test_jpegs_are_decoded_by_opencv_and_the_rest_by_pillow(monkeypatch: MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(mmcv, 'imfrombytes')
        for kind, content in JPEGS.items():
            for backend in BACKENDS:
                assert decode(content, backend).flags.c_contiguous, kind
    monkeypatch.delattr(cv2, 'imdecode')
    for content in OTHERS.values():
        decode(content)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['4:2:0', 'progressive', 'grey', 'CMYK', 'PNG', 'WebP', 'TIFF'])
def test_a_truncated_file_is_rejected(kind: str, backend: str, monkeypatch: MonkeyPatch) -> None:
    """Unseen by OpenCV: whether it accepts such a file depends on the version and the call."""
    content = EVERY[kind]
    monkeypatch.delattr(cv2, 'imdecode')
    for length in (0, len(content) // 10, len(content) // 2, len(content) - 200, len(content) - 30):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            decode(content[:length], backend)


@pytest.mark.parametrize('missing', [0.5, 200, 20, 2, 1])
@pytest.mark.parametrize('kind', ['4:2:0', 'progressive', 'grey', 'CMYK', 'thumbnail'])
def test_a_jpeg_without_its_end_is_rejected(kind: str, missing: float) -> None:
    """Also with zeros in its place, which Pillow and OpenCV take for image data."""
    content = EVERY.get(kind) or with_thumbnail()
    left = len(content) - int(missing if missing >= 1 else missing * len(content))
    for end in (b'', bytes(len(content) - left)):
        for backend in BACKENDS:
            with pytest.raises(OSError, match=r'(?i)truncated'):
                decode(content[:left] + end, backend)


def with_thumbnail() -> bytes:
    """A JPEG with a whole JPEG in its header, which ends with the same marker."""
    content, small = JPEGS['4:2:0'], b'Exif\0\0' + encode(IMAGE.resize((20, 15)))
    return content[:2] + b'\xff\xe1' + struct.pack('>H', len(small) + 2) + small + content[2:]


def test_files_between_good_and_truncated(monkeypatch: MonkeyPatch) -> None:
    """A thumbnail, damage before the end marker, and what OpenCV cannot decode, are read as by Pillow."""
    content = JPEGS['4:2:0']
    damaged = content[: len(content) * 3 // 4] + END_OF_JPEG
    assert np.array_equal(decode(damaged), mmcv.imfrombytes(damaged, backend='pillow'))
    assert np.array_equal(decode(with_thumbnail()), decode(content))
    assert np.array_equal(decode(with_thumbnail() + b'\0'), decode(content))
    expected = decode(content)
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: None)
    for backend in BACKENDS:
        assert np.array_equal(decode(content, backend), expected)


def test_zeros_look_like_image_data_to_the_backends() -> None:
    """The reason for the search of the end marker."""
    content = JPEGS['4:2:0']
    zeroed = content[: len(content) // 2] + bytes(len(content) // 2)
    assert all(mmcv.imfrombytes(zeroed, backend=backend) is not None for backend in BACKENDS)
