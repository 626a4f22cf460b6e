"""DICOM files, by pydicom: the values that they stand for, bright where the image is bright."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .image_kinds import ImageKindError, MissingCodecError, note

PREAMBLE, MAGIC = 128, b'DICM'
PIXELS = ('PixelData', 'FloatPixelData', 'DoubleFloatPixelData')
PACKAGE = "a DICOM file needs the package pydicom: pip install 'ummae[dicom]', or in a checkout pip install '.[dicom]'"


def is_dicom(content: bytes) -> bool:
    """Whether a file says that it is DICOM, whatever its name.

    Args:
        content (bytes): Content of the file.
    Returns:
        bool: Whether it does.
    """
    return content[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def read_dicom(content: bytes) -> np.ndarray:
    """Read an image.

    Slope and intercept (or the table) of the modality are applied, so that values of CT are Hounsfield units. Images in
    which the lowest value is white (MONOCHROME1) are inverted, colours become RGB. Windows are not applied: a range of
    values takes their place. Of several frames the first is read, which is logged.

    Args:
        content (bytes): Content of the file.
    Returns:
        numpy.ndarray: (H, W, 1) or, of colours, (H, W, 3), of the stored type or, if values were rescaled, float32.
    Raises:
        ImportError: If pydicom is missing.
        ImageKindError: If the file has no pixels.
        MissingCodecError: If its transfer syntax needs another package.
        Exception: Whatever pydicom raises for a damaged file.
    """
    try:
        import pydicom
        from pydicom import pixels as codec
    except ImportError as error:
        raise ImportError(PACKAGE) from error
    file = pydicom.dcmread(io.BytesIO(content))
    if not any(name in file for name in PIXELS):
        raise ImageKindError(f'is a DICOM file without pixels (modality {file.get("Modality", "unknown")}): remove it')
    syntax = file.file_meta.TransferSyntaxUID
    if not _can_decode(codec, syntax):
        raise MissingCodecError(
            f'is a DICOM file with the transfer syntax {syntax.name} ({syntax}), which pydicom cannot decode with the '
            "packages that are installed: pip install 'pylibjpeg[all]', or convert the file"
        )
    frames = int(file.get('NumberOfFrames') or 1)
    if frames > 1:
        note(f'a DICOM file has {frames} frames, of which the first is read')
    pixels = codec.pixel_array(file, index=0)  # (H, W) or, RGB, (H, W, 3)
    if file.PhotometricInterpretation == 'PALETTE COLOR':
        pixels = codec.apply_color_lut(pixels, file)
        return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)  # tables span all of their bits
    if pixels.ndim == 3:
        return pixels
    if file.BitsAllocated == 1:
        pixels = pixels.astype(bool)
    values = _rescale(codec, pixels, file)
    if file.PhotometricInterpretation == 'MONOCHROME1':
        values = _invert(codec, values, file)
    return values[..., None]


def _can_decode(codec: Any, syntax: Any) -> bool:
    if not syntax.is_encapsulated:
        return True
    try:
        return codec.get_decoder(syntax).is_available
    except NotImplementedError:  # videos
        return False


def _rescale(codec: Any, pixels: np.ndarray, file: Any) -> np.ndarray:
    """Apply the modality's slope and intercept, or table; without either the type stays."""
    plain = (float(file.get('RescaleSlope') or 1), float(file.get('RescaleIntercept') or 0)) == (1, 0)
    if plain and not file.get('ModalityLUTSequence'):
        return pixels
    return codec.apply_modality_lut(pixels, file).astype(np.float32)


def _invert(codec: Any, values: np.ndarray, file: Any) -> np.ndarray:
    """Reflect values in the middle of those that the stored bits can have, so that all images agree."""
    if values.dtype == bool:
        return ~values
    bits = file.BitsStored
    ends = np.array([0, 2**bits - 1]) - (2 ** (bits - 1) if file.PixelRepresentation else 0)
    low, high = np.sort(_rescale(codec, ends, file))
    # float64 holds all integers of up to 32 bits
    return (low + high - values.clip(low, high).astype(np.float64)).astype(values.dtype)
