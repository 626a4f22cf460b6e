"""Decoding of complete images: as fast as OpenCV, as strict as Pillow, and stricter for JPEGs that end in zeros."""

from __future__ import annotations

import io

import cv2
import mmcv
import numpy as np
from PIL import Image

END_OF_JPEG = b'\xff\xd9'
BACKENDS = ('pillow', 'cv2')


def decode(content: bytes, backend: str = 'pillow') -> np.ndarray:
    """Decode a complete image, or raise.

    OpenCV decodes a JPEG directly into the array that the next transform needs, but depending on version and call it
    fills the missing part of a truncated file with grey. Pillow rejects most of these, but needs one more copy. Both
    use libjpeg-turbo and give the same pixels, so OpenCV decodes the files on which they cannot differ: grey or
    three-channel JPEGs that end with the end-of-image marker (these two bytes never occur inside the image data).
    Everything else is decoded by Pillow, or for ``cv2`` checked by it: other formats, CMYK, and files that end with
    anything else. Of those, a JPEG without the marker after its header is rejected unseen: both would take zeros, as a
    crash leaves them in place of unwritten blocks, for image data.

    Damage between header and marker goes unnoticed, because libjpeg repairs it with no more than a warning.

    Args:
        content (bytes): Content of the file.
        backend (str): Whose pixels to return where they differ, ``pillow`` or ``cv2``. Default ``pillow``.
    Returns:
        numpy.ndarray: (H, W, 3) uint8 BGR, rotated according to its EXIF orientation.
    Raises:
        Exception: ``OSError``, ``SyntaxError`` and whatever else a decoder raises for a damaged file.
    """
    stream = io.BytesIO(content)
    with Image.open(stream) as image:
        jpeg = image.format in ('JPEG', 'MPO')
        if image.format == 'JPEG' and image.mode in ('RGB', 'L') and content.endswith(END_OF_JPEG):
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            if pixels is not None:
                return pixels
        # Pillow has read up to the image data; a thumbnail before it has markers of its own
        if jpeg and content.find(END_OF_JPEG, stream.tell()) < 0:
            raise OSError('image file is truncated (no end-of-image marker)')
        if backend == 'cv2':
            image.load()  # raises if it is truncated
            pixels = mmcv.imfrombytes(content, backend='cv2')
            if pixels is not None:
                return pixels
    return mmcv.imfrombytes(content, backend='pillow')
