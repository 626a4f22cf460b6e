"""Decoding of complete images: as fast as OpenCV, as strict as Pillow, and stricter for JPEGs that end in zeros."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from .dicom import is_dicom, read_dicom
from .image_kinds import ImageKindError, MissingCodecError, note

END_OF_JPEG = b'\xff\xd9'
BACKENDS = ('pillow', 'cv2')
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # how its files begin
PNG_DEPTH = 24  # byte of the header with the bits per channel
TIFF_DEPTHS = 258  # tag with the bits of each channel
TILING = 'tools/tile_images.py'
PERCENTILES = (0.5, 99.5)  # of an image, which ``percentile`` maps to 0 and 255
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601), as in Pillow and OpenCV

PAGES = 'a TIFF has {} pages, of which the first is read'

ValueRange = str | Sequence[float] | Sequence[Sequence[float]] | None


def decode(content: bytes, backend: str = 'pillow', channels: int = 3, value_range: ValueRange = None) -> np.ndarray:
    """Decode a complete image, or raise.

    OpenCV decodes a JPEG directly into the array that the next transform needs, but depending on version and call it
    fills the missing part of a truncated file with grey. Pillow rejects most of these, but needs one more copy. Both
    use libjpeg-turbo and give the same pixels, so OpenCV decodes the files on which they cannot differ: grey or
    three-channel JPEGs that end with the end-of-image marker (these two bytes never occur inside the image data).
    Everything else is decoded by Pillow, or for ``cv2`` checked by it: other formats, CMYK, and files that end with
    anything else. Of those, a JPEG without the marker after its header is rejected unseen: both would take zeros, as a
    crash leaves them in place of unwritten blocks, for image data.

    Damage between header and marker goes unnoticed, because libjpeg repairs it with no more than a warning.

    **Depth.** Values of more than 8 bits, integer or float, are mapped from ``value_range`` to 0..255 and rounded; what
    lies outside is clipped, and values that are not finite count as the lower end. Without a range they are refused,
    since neither the range of the type nor that of one image need be that of the data.

    **Channels.** Of three channels, grey is repeated, and of four and more the first three are read, which is logged
    once. Of one channel, colour becomes luma. Any other number must be that of the file. A TIFF may have any number of
    bands, in one page or, other than three, in a page each; of pages that are no bands, the first is read.

    **DICOM** is read by pydicom (:func:`~mm_ummae.datasets.dicom.read_dicom`).

    Args:
        content (bytes): Content of the file.
        backend (str): Whose pixels to return where they differ, ``pillow`` or ``cv2``. Default ``pillow``.
        channels (int): Channels C to return. Default 3.
        value_range (str | Sequence, optional): For images of more than 8 bits: values (low, high) that become 0 and
            255, a pair for each channel, or ``percentile``, those of 0.5 and 99.5 % of each image. Default: refused.
    Returns:
        numpy.ndarray: (H, W, C) uint8; three channels are BGR, others have the order of the file. Rotated according to
        its EXIF orientation.
    Raises:
        ImageKindError: If the depth needs a range, the file has another number of channels or too many pixels, or its
            compression needs a package that is missing.
        ImportError: If it is a DICOM file and pydicom is missing.
        Exception: ``OSError``, ``SyntaxError`` and whatever else a decoder raises for a damaged file.
    """
    if is_dicom(content):
        return _convert(read_dicom(content), channels, value_range)
    try:
        image = _open(content)
    except UnidentifiedImageError:  # Pillow knows no TIFF of five bands, or of two that are float
        if content[:4] in TIFF:
            return _convert(_read_tiff(content, channels), channels, value_range)
        raise
    with image:
        if image.format == 'JPEG' and image.mode in ('RGB', 'L') and content.endswith(END_OF_JPEG):
            flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels)
            pixels = None if flag is None else cv2.imdecode(np.frombuffer(content, np.uint8), flag)
            if pixels is not None:
                return pixels if pixels.ndim == 3 else pixels[..., None]
        deep = _is_deep(image, content)
        if image.format == 'TIFF' and (deep or channels not in (1, 3) or image.mode in ('RGBA', 'RGBX')):
            return _convert(_read_tiff(content, channels), channels, value_range)
        if image.format == 'TIFF' and image.n_frames > 1:
            note(PAGES.format(image.n_frames))
        if deep or channels != 3:
            image.load()  # raises if it is truncated
            return _convert(_read_any(image, content, deep), channels, value_range)
        if backend == 'cv2':
            image.load()  # raises if it is truncated
            pixels = mmcv.imfrombytes(content, backend='cv2')
            if pixels is not None:
                return pixels
    return mmcv.imfrombytes(content, backend='pillow')


def raw_pixels(content: bytes) -> np.ndarray:
    """The values of an image as its file has them.

    Args:
        content (bytes): Content of the file.
    Returns:
        numpy.ndarray: (H, W, B) of the file's type, or that of DICOM's values; three channels are RGB. Of several
        pages the first.
    Raises:
        Exception: ``OSError``, ``SyntaxError`` and whatever else a decoder raises for a damaged file.
    """
    if is_dicom(content):
        return read_dicom(content)
    if content[:4] in TIFF:
        return _read_tiff(content, channels=3)
    with _open(content) as image:
        image.load()
        return _read_any(image, content, _is_deep(image, content))


def check_value_range(value_range: ValueRange, channels: int) -> None:
    """Check a range of values.

    Args:
        value_range (str | Sequence, optional): See :func:`decode`.
        channels (int): Channels.
    Raises:
        ValueError: If it is neither a pair, nor a pair for each channel, nor ``percentile``.
    """
    if value_range is None or value_range == 'percentile':
        return
    try:
        low, high = np.asarray(value_range, float).reshape(-1, 2).T
    except (TypeError, ValueError):
        low = high = np.zeros(0)
    if isinstance(value_range, str) or len(low) not in (1, channels) or not (low < high).all():
        raise ValueError(
            f'value_range is {value_range!r}, but it must be None, percentile, (low, high) with low < high, or such a '
            f'pair for each of the {channels} channels'
        )


def _open(content: bytes) -> Image.Image:
    """Read the header; raises if a JPEG has no end."""
    stream = io.BytesIO(content)
    try:
        image = Image.open(stream)
    except Image.DecompressionBombError as error:
        raise ImageKindError(f'is larger than Pillow decodes ({error}): cut it into tiles by {TILING}') from error
    # Pillow has read up to the image data; a thumbnail before it has markers of its own
    ended = content.endswith(END_OF_JPEG) or content.find(END_OF_JPEG, stream.tell()) >= 0
    if image.format in ('JPEG', 'MPO') and not ended:
        raise OSError('image file is truncated (no end-of-image marker)')
    return image


def _is_deep(image: Image.Image, content: bytes) -> bool:
    """Whether the file has more than 8 bits per channel, also where Pillow would keep only 8 of them."""
    if image.format == 'TIFF':
        return image.mode.startswith(('I', 'F')) or max(image.tag_v2.get(TIFF_DEPTHS, (1,))) > 8
    return image.mode.startswith(('I', 'F')) or (image.format == 'PNG' and content[PNG_DEPTH] == 16)


def _read_any(image: Image.Image, content: bytes, deep: bool) -> np.ndarray:
    """An image of Pillow -> (H, W, B) of its own type, RGB."""
    if deep and image.format == 'PNG':  # of several channels Pillow keeps only the upper 8 bits
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 3:
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        if pixels is not None:
            return pixels if pixels.ndim == 3 else pixels[..., None]
    if image.mode in ('P', '1', 'CMYK', 'YCbCr', 'LAB', 'HSV'):
        image = image.convert('RGBA' if 'transparency' in image.info else 'RGB')
    pixels = np.asarray(ImageOps.exif_transpose(image))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_tiff(content: bytes, channels: int) -> np.ndarray:
    """A TIFF -> (H, W, B) of its own type, bands in the order of the file."""
    try:
        return _read_pages(content, channels)
    except MissingCodecError:  # Pillow has some of its own, but of deep colours it keeps only 8 bits
        with contextlib.suppress(UnidentifiedImageError), _open(content) as image:
            if image.mode.startswith(('I', 'F')) or not _is_deep(image, content):
                image.load()
                return _read_any(image, content, deep=False)
        raise


def _read_pages(content: bytes, channels: int) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [page for page in file.pages if page.shape[:2] == file.pages[0].shape[:2]]
        first = _page(pages[0])
        if first.shape[2] == 1 and len(pages) == channels != 3:
            return np.concatenate([_page(page) for page in pages], axis=2)
        if len(file.pages) > 1:
            note(PAGES.format(len(file.pages)))
    return first


def check_page(page: tifffile.TiffPage) -> None:
    """Check that a file has all data of a page; what lies behind its end would be filled with zeros.

    Args:
        page (tifffile.TiffPage): Page.
    Raises:
        OSError: If the file is truncated.
        MissingCodecError: If its compression needs the package imagecodecs.
    """
    end = max(offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    size = page.parent.filehandle.size
    if end > size:
        raise OSError(f'image file is truncated (its data end at byte {end}, the file at byte {size})')
    try:
        page.decode(None, 0)
    except ValueError as error:
        if 'imagecodecs' in str(error):
            raise MissingCodecError(f'cannot be decoded as it is ({error}): pip install imagecodecs') from error
        raise


def _page(page: tifffile.TiffPage) -> np.ndarray:
    """(H, W, B)."""
    check_page(page)
    pixels = page.asarray()
    if pixels.ndim == 2:
        return pixels[..., None]
    return np.moveaxis(pixels, 0, 2) if page.axes.startswith('S') else pixels


def _convert(pixels: np.ndarray, channels: int, value_range: ValueRange) -> np.ndarray:
    """(H, W, B) of any type, RGB -> (H, W, C) uint8, BGR if C is 3."""
    bands = pixels.shape[2]
    if bands != channels and channels not in (1, 3):
        raise ImageKindError(
            f'has {bands} channels, but channels is {channels}: set channels={bands}, or leave such files out'
        )
    if bands != channels:
        wanted = 3 if bands >= 3 else 1
        if bands > wanted:
            note(
                f'an image has {bands} channels, of which the first {wanted} are read; all of them need '
                f'channels={bands} of mm_ummae.LoadCompleteImage'
            )
        pixels = pixels[..., :wanted]
    pixels = _to_8_bit(pixels, value_range)
    if channels == 1 and pixels.shape[2] == 3:
        return np.rint(pixels @ np.array(LUMA, np.float32)).astype(np.uint8)[..., None]
    if channels == 3:
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., ::-1]
    return np.ascontiguousarray(pixels)


def _to_8_bit(pixels: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """(H, W, B) of any type -> (H, W, B) uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    pixels = pixels.astype(np.float64)
    finite = np.isfinite(pixels)
    if value_range is None:
        values = f'{pixels[finite].min():g} to {pixels[finite].max():g}' if finite.any() else 'none of them finite'
        raise ImageKindError(
            f'has more than 8 bits per channel (values {values}), but value_range is not set: set '
            "value_range=(low, high) of mm_ummae.LoadCompleteImage, the values that become 0 and 255, or 'percentile'"
        )
    if value_range == 'percentile':
        if not finite.any():
            raise ImageKindError('has no finite value')
        low, high = np.percentile(pixels[finite], PERCENTILES)
        high = max(high, np.nextafter(low, np.inf))  # an image of one value becomes black
    else:
        low, high = np.asarray(value_range, float).reshape(-1, 2).T
    scaled = (np.where(finite, pixels, low) - low) / (high - low) * 255
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)
