"""An image with smooth and sharp parts, and its files."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image


def photograph(width: int, height: int) -> np.ndarray:
    """Smooth noise with edges, (height, width, 3) uint8."""
    noise = np.random.default_rng(0).integers(256, size=(27, 27, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 5)
    return pixels


def encode(image: Image.Image, form: str = 'JPEG', orientation: int = 1, **options: Any) -> bytes:
    """Content of a file; ``orientation`` is that of EXIF."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


IMAGE = Image.fromarray(photograph(61, 45))
JPEGS = {
    '4:4:4': encode(IMAGE, subsampling='4:4:4'),
    '4:2:0': encode(IMAGE, subsampling='4:2:0'),
    'low quality': encode(IMAGE, quality=10, subsampling='4:2:2'),
    'progressive': encode(IMAGE, progressive=True),
    'restart markers': encode(IMAGE, restart_marker_blocks=2),
    'grey': encode(IMAGE.convert('L')),
    **{f'orientation {number}': encode(IMAGE, orientation=number) for number in range(1, 9)},
}
OTHERS = {
    'CMYK': encode(IMAGE.convert('CMYK')),
    'PNG': encode(IMAGE, 'PNG', orientation=6),
    'PNG with alpha': encode(IMAGE.convert('RGBA'), 'PNG'),
    'PNG with a palette': encode(IMAGE.convert('P'), 'PNG'),
    'WebP': encode(IMAGE, 'WEBP', orientation=6),
    'TIFF': encode(IMAGE, 'TIFF'),
    'bytes after the end': JPEGS['4:2:0'] + b'\0\0\n',
}
