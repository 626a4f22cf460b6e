"""First two transforms of a pre-training pipeline: decoding, and random crop with flip."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.datasets.transforms import RandomResizedCrop
from PIL import Image
from torch.nn.functional import interpolate

from mm_ummae.registry import TRANSFORMS

END_OF_JPEG = b'\xff\xd9'


@TRANSFORMS.register_module()
class LoadCompleteImage(BaseTransform):
    """Load a complete image or raise: as fast as OpenCV, as strict as Pillow.

    OpenCV decodes a JPEG directly into the array that the next transform needs, but depending on version and call it
    fills the missing part of a truncated file with grey. Pillow rejects such a file, but needs one more copy. Both use
    libjpeg-turbo and give the same pixels, so OpenCV decodes the files on which they cannot differ: grey or
    three-channel JPEGs that end with the end-of-image marker (these two bytes never occur inside the image data).
    Everything else goes to Pillow: other formats, CMYK, and files that end with anything else.

    Damage between header and marker goes unnoticed, because libjpeg repairs it with no more than a warning.

    Args:
        backend_args (dict, optional): Arguments of MMEngine's file backend. Default: the backend that suits the path.

    Reads ``img_path``. Writes ``img``, (H, W, 3) uint8 BGR, rotated according to its EXIF orientation, and
    ``img_shape`` and ``ori_shape``, (H, W).
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Load ``img_path``; a damaged file raises whatever Pillow raises (``OSError`` and others)."""
        image = _decode(fileio.get(results['img_path'], backend_args=self.backend_args))
        shape = image.shape[:2]
        return results | dict(img=image, img_shape=shape, ori_shape=shape)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args})'


def _decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as header:
        plain = header.format == 'JPEG' and header.mode in ('RGB', 'L')
    if plain and content.endswith(END_OF_JPEG):
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return image
    return mmcv.imfrombytes(content, backend='pillow')


@TRANSFORMS.register_module()
class TorchRandomResizedCrop(RandomResizedCrop):
    """MMPretrain's random resized crop and flip with PyTorch's resize, which is several times as fast as Pillow's.

    Crop boxes and flips equal those of MMPretrain's ``RandomResizedCrop`` and ``RandomFlip`` for the same seed. PyTorch
    resizes uint8 images like Pillow up to version 12: the filter widens with the reduction and runs along the rows,
    then along the columns, with rounding in between. Pillow 13 starts with the columns where that is cheaper, which
    differs slightly where the first pass clips.

    Args:
        scale (int | Sequence[int]): Side of the output in pixels, or (height, width).
        flip_prob (float): Probability of a horizontal flip, in [0, 1]. Default 0.
        interpolation (str): ``bicubic`` or ``bilinear``. Default ``bicubic``.
        kwargs: Other arguments of MMPretrain's ``RandomResizedCrop``: area and aspect ratio of the box, attempts.

    Raises:
        ValueError: If ``flip_prob`` is out of range or ``interpolation`` is unknown.

    Reads ``img``, (H, W, 3) uint8, without modifying it. Writes a new ``img``, (height, width, 3) uint8, stored channel
    by channel so that ``PackInputs`` needs no copy, and ``img_shape``, ``flip`` and ``flip_direction``.
    """

    def __init__(
        self, scale: int | Sequence[int], flip_prob: float = 0.0, interpolation: str = 'bicubic', **kwargs
    ) -> None:
        if not 0 <= flip_prob <= 1:
            raise ValueError(f'flip_prob is {flip_prob}, but it must be in [0, 1]')
        if interpolation not in ('bicubic', 'bilinear'):
            raise ValueError(f'interpolation is {interpolation!r}, but it must be bicubic or bilinear')
        super().__init__(scale, interpolation=interpolation, backend='torch', **kwargs)
        self.flip_prob = flip_prob

    def transform(self, results: dict) -> dict:
        """Draw a box and a flip, crop, resize."""
        top, left, height, width = self.rand_crop_params(results['img'])
        flip = bool(np.random.random() < self.flip_prob)
        crop = np.ascontiguousarray(results['img'][top : top + height, left : left + width])
        # (h, w, 3) -> (1, 3, h, w), channels last in memory -> (1, 3, H, W), channels first in memory
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
        pixels = interpolate(pixels, tuple(self.scale), mode=self.interpolation, antialias=True)
        if flip:
            pixels = pixels.flip(3)
        image = pixels[0].permute(1, 2, 0).numpy()  # (H, W, 3)
        direction = 'horizontal' if flip else None
        return results | dict(img=image, img_shape=image.shape[:2], flip=flip, flip_direction=direction)

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}, flip_prob={self.flip_prob})'
