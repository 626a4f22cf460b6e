"""The first two steps of a pre-training pipeline: a decoded image, and a crop of it."""

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
    """Load an image, all of it or not at all: OpenCV's speed with Pillow's care.

    OpenCV decodes a JPEG straight into the array that the next step needs, but some ways to call it paint grey what
    is missing of a truncated file. Pillow refuses such a file, but needs a copy more. Both have libjpeg-turbo inside
    and give the same pixels, so OpenCV decodes what cannot differ: a JPEG, grey or of three colours, that ends with
    the mark of its end (in the data of an image those two bytes never follow each other). All else is left to Pillow
    and its verdict: other formats, CMYK, files that end with something else.

    Damage between the header and that mark is not noticed, as libjpeg repairs it with a warning, whoever calls it.

    Args:
        backend_args (dict, optional): Of MMEngine's file backend. Default: chosen by the path.

    Reads ``img_path``; writes ``img``, (H, W, 3) uint8 BGR, turned as its EXIF orientation says, and ``img_shape`` and
    ``ori_shape``, (H, W).
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Load ``img_path``; raises what Pillow raises (``OSError`` and others) for a file that is damaged."""
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
    """MMPretrain's random crop and flip, resized by PyTorch: several times as fast as by Pillow.

    Boxes and flips are those of MMPretrain's ``RandomResizedCrop`` and ``RandomFlip`` with the same seed. PyTorch
    resizes bytes as Pillow up to 12 does: the filter grows with the reduction, runs along the rows, then along the
    columns, and rounds in between. Pillow 13 begins with the columns where that is cheaper, which differs a little
    where the first pass clips.

    Args:
        scale (int | Sequence[int]): Side of the result in pixels, or height and width.
        flip_prob (float): Probability of a horizontal flip, in [0, 1]. Default 0.
        interpolation (str): ``bicubic`` or ``bilinear``. Default ``bicubic``.
        kwargs: Of MMPretrain's ``RandomResizedCrop``: area and aspect ratio of the box, and attempts.

    Raises:
        ValueError: If the probability or the interpolation is out of range.

    Reads ``img``, (H, W, 3) uint8, and leaves its pixels alone. Writes a new ``img``, (height, width, 3) uint8, which
    is in memory one colour after the other, so that packing it is no copy; and ``img_shape``, ``flip`` and
    ``flip_direction``.
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
        """Draw a box and whether to flip; resize what is in the box."""
        top, left, height, width = self.rand_crop_params(results['img'])
        flip = bool(np.random.random() < self.flip_prob)
        crop = np.ascontiguousarray(results['img'][top : top + height, left : left + width])
        # (h, w, 3) -> (1, 3, h, w), the channels last in memory -> (1, 3, H, W), the channels first in memory
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
        pixels = interpolate(pixels, tuple(self.scale), mode=self.interpolation, antialias=True)
        if flip:
            pixels = pixels.flip(3)
        image = pixels[0].permute(1, 2, 0).numpy()  # (H, W, 3)
        direction = 'horizontal' if flip else None
        return results | dict(img=image, img_shape=image.shape[:2], flip=flip, flip_direction=direction)

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}, flip_prob={self.flip_prob})'
