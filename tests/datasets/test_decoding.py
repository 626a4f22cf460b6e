"""Decoding: pixels of the backend, and complete files only."""

from __future__ import annotations

import io
import struct

import cv2
import mmcv
import numpy as np
import pytest
import tifffile
from PIL import Image
from pytest import MonkeyPatch

from mm_ummae.datasets import image_kinds
from mm_ummae.datasets.decoding import BACKENDS, END_OF_JPEG, decode, raw_pixels
from mm_ummae.datasets.image_kinds import ImageKindError
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


DEEP = np.random.default_rng(0).integers(100, 4096, size=(40, 50)).astype(np.uint16)  # 12 bits


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    """Content of a TIFF."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """Content of a PNG; three channels are BGR."""
    return cv2.imencode('.png', pixels)[1].tobytes()


DEEP_FILES = {
    'PNG': png(DEEP),
    'colour PNG': png(np.repeat(DEEP[..., None], 3, 2)),
    'TIFF': tiff(DEEP),
    'compressed TIFF': tiff(DEEP, compression='zlib'),
    'big-endian TIFF': tiff(DEEP, byteorder='>'),
    'BigTIFF': tiff(DEEP, bigtiff=True),
    'signed TIFF': tiff(DEEP.astype(np.int16)),
    'float TIFF': tiff(DEEP.astype(np.float32)),
    'double TIFF': tiff(DEEP.astype(np.float64)),
    'PGM': b'P5 50 40 65535\n' + DEEP.astype('>u2').tobytes(),
}


@pytest.mark.parametrize('kind', DEEP_FILES)
def test_deep_images_are_scaled_as_asked_or_refused(kind: str) -> None:
    """Field case 04: clipping at 255 made them white."""
    content = DEEP_FILES[kind]
    with pytest.raises(
        ImageKindError, match=r'more than 8 bits per channel \(values 10\d to 40\d\d\).*set value_range='
    ):
        decode(content)
    pixels = decode(content, value_range=(0, 4095))
    assert pixels.shape == (40, 50, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.repeat(np.rint(DEEP[..., None] * (255 / 4095)).astype(np.uint8), 3, 2))
    assert np.array_equal(decode(content, channels=1, value_range=(0, 4095)), pixels[..., :1])
    cut = decode(content, value_range=(1000, 2000))
    assert ((cut == 0) == (DEEP[..., None] <= 1001)).all() and ((cut == 255) == (DEEP[..., None] >= 1999)).all()
    low, high = np.percentile(DEEP, (0.5, 99.5))
    spread = decode(content, value_range='percentile')[..., 0]
    assert np.array_equal(spread, np.rint(((DEEP - low) * 255 / (high - low)).clip(0, 255)).astype(np.uint8))


def test_values_that_are_not_finite_count_as_the_lower_end() -> None:
    pixels = DEEP.astype(np.float32)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    for value_range in ('percentile', (100, 4000)):
        decoded = decode(tiff(pixels), value_range=value_range)
        assert not decoded[0, :3].any() and decoded[1:].mean() > 100
    with pytest.raises(ImageKindError, match='has no finite value'):
        decode(tiff(np.full_like(pixels, np.nan)), value_range='percentile')
    assert not decode(tiff(np.full_like(pixels, 7)), value_range='percentile').any()


def test_channels_are_those_that_were_asked_for(monkeypatch: MonkeyPatch) -> None:
    """Field case 09: a fourth band was dropped in silence."""
    log: list[str] = []
    image_kinds.note.cache_clear()
    monkeypatch.setattr(image_kinds, 'print_log', lambda text, logger, level: log.append(text))
    bands = np.random.default_rng(1).integers(256, size=(40, 50, 5)).astype(np.uint8)
    for content in (tiff(bands, planarconfig='contig'), tiff(bands.transpose(2, 0, 1), planarconfig='separate')):
        assert np.array_equal(decode(content, channels=5), bands)
        assert np.array_equal(decode(content), bands[..., 2::-1])
        with pytest.raises(ImageKindError, match='has 5 channels, but channels is 4: set channels=5, or leave such'):
            decode(content, channels=4)
    text = 'an image has 5 channels, of which the first 3 are read; all of them need channels=5'
    assert sum(line.startswith(text) for line in log) == 1
    four = Image.fromarray(bands[..., :4], 'RGBA')
    for form in ('PNG', 'TIFF'):
        assert np.array_equal(decode(encode(four, form), channels=4), bands[..., :4])
        assert np.array_equal(decode(encode(four, form)), bands[..., 2::-1])
    pages = tiff(bands.transpose(2, 0, 1), photometric='minisblack')
    assert np.array_equal(decode(pages, channels=5), bands)
    assert np.array_equal(decode(pages), np.repeat(bands[..., :1], 3, 2))
    assert log[-1] == 'a TIFF has 5 pages, of which the first is read (logged once)'
    with pytest.raises(ImageKindError, match='has 1 channels, but channels is 4'):
        decode(pages, channels=4)


@pytest.mark.parametrize('kind', EVERY)
def test_one_channel_is_luma(kind: str) -> None:
    expected = decode(EVERY[kind]).astype(float) @ (0.114, 0.587, 0.299)
    pixels = decode(EVERY[kind], channels=1)
    assert pixels.shape == (*expected.shape, 1) and pixels.dtype == np.uint8
    assert np.abs(pixels[..., 0] - expected).mean() < 1, 'JPEG has it, rounded otherwise, before its colours'


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'compressed TIFF', 'float TIFF'])
def test_a_truncated_deep_file_is_rejected(kind: str) -> None:
    content = DEEP_FILES[kind]
    for length in (len(content) // 10, len(content) // 2, len(content) - 200, len(content) - 30):
        with pytest.raises(Exception, match=r'\S'):  # each decoder has its own
            decode(content[:length], value_range=(0, 4095))


def test_deep_colours_of_a_tiff_are_not_cut_to_8_bits() -> None:
    """Pillow would read the upper 8 of 16."""
    pixels, buffer = np.full((9, 9, 3), 1000, np.uint16), io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric='rgb')
    with pytest.raises(ImageKindError, match=r'more than 8 bits per channel \(values 1000 to 1000\)'):
        decode(buffer.getvalue())
    assert (decode(buffer.getvalue(), value_range=(0, 2000)) == 128).all()


@pytest.mark.parametrize('bits', [8, 16])
def test_compressions_that_tifffile_does_not_know_are_read_by_pillow(bits: int, monkeypatch: MonkeyPatch) -> None:
    """Unless Pillow would lose bits; then the message says what to install."""
    buffer, deep = io.BytesIO(), io.BytesIO()
    pixels = np.asarray(IMAGE.convert('L')).astype(f'uint{bits}')
    Image.fromarray(pixels).save(buffer, 'TIFF', compression='tiff_deflate')
    tifffile.imwrite(deep, np.full((9, 9, 3), 1000, np.uint16), photometric='rgb', compression='zlib')

    def missing(*args: object, **kwargs: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, 'decode', missing)
    assert np.array_equal(raw_pixels(buffer.getvalue())[..., 0], pixels)
    assert decode(buffer.getvalue(), value_range=(0, 255)).shape == (45, 61, 3)
    with pytest.raises(ImageKindError, match=r'cannot be decoded as it is \(.*LZW.*\): pip install imagecodecs'):
        decode(deep.getvalue(), value_range=(0, 2000))
