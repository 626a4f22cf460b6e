"""DICOM files, written by pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def dicom(pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """Content of a file.

    Args:
        pixels (numpy.ndarray): (H, W), (frames, H, W), or of uint8 (H, W, 3), which is RGB.
        syntax (UID): Transfer syntax that the file claims; pixels are written as they are. Default: uncompressed.
        elements: Of the data set, in place of those that fit ``pixels``.
    Returns:
        bytes: Content.
    """
    colour = pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = UID('1.2.3')
    file.Rows, file.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    file.SamplesPerPixel = 3 if colour else 1
    file.PhotometricInterpretation = 'RGB' if colour else 'MONOCHROME2'
    if colour:
        file.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.BitsAllocated = file.BitsStored = 8 * pixels.dtype.itemsize
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == 'i')
    file.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    file['PixelData'].VR = 'OB' if file.BitsAllocated <= 8 else 'OW'
    if syntax.is_encapsulated:
        file['PixelData'].is_undefined_length = True
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
