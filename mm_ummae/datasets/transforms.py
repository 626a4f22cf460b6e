"""First transforms of a pipeline: strict loading, and random crop with flip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.datasets.transforms import RandomResizedCrop
from torch.nn.functional import interpolate

from mm_ummae.registry import TRANSFORMS

from .decoding import BACKENDS, ValueRange, check_value_range, decode
from .reading import read_file


@TRANSFORMS.register_module()
class LoadCompleteImage(BaseTransform):
    """Load a complete image or raise, in pipelines of MMPretrain, MMDetection and MMSegmentation.

    A read that fails for the moment is tried again (:func:`~mm_ummae.datasets.reading.read_file`), and a truncated or
    otherwise damaged file is rejected (:func:`~mm_ummae.datasets.decoding.decode`). The pixels of an intact file are
    those of the hosts' ``LoadImageFromFile`` with the same ``imdecode_backend``.

    Args:
        imdecode_backend (str): ``pillow``, as in MMPretrain's recipes, or ``cv2``, as in MMDetection's and
            MMSegmentation's. They differ only in formats other than JPEG with one or three channels, such as CMYK.
            Default ``pillow``.
        backend_args (dict, optional): Arguments of MMEngine's file backend. Default: the backend that suits the path.
        channels (int): Channels C of the image. Default 3.
        value_range (str | Sequence, optional): For images of more than 8 bits: values (low, high) that become 0 and
            255, a pair for each channel, or ``percentile``, those of 0.5 and 99.5 % of each image. Default: such
            images are refused.

    Raises:
        ValueError: If ``imdecode_backend`` is unknown, or ``channels`` or ``value_range`` is invalid.

    Reads ``img_path``. Writes ``img``, (H, W, C) uint8, of three channels BGR, rotated according to its EXIF
    orientation, and ``img_shape`` and ``ori_shape``, (H, W).
    """

    def __init__(
        self,
        imdecode_backend: str = 'pillow',
        backend_args: dict | None = None,
        channels: int = 3,
        value_range: ValueRange = None,
    ) -> None:
        if imdecode_backend not in BACKENDS:
            raise ValueError(f'imdecode_backend is {imdecode_backend!r}, but it must be {" or ".join(BACKENDS)}')
        if channels < 1:
            raise ValueError(f'channels is {channels}, but an image has at least one')
        check_value_range(value_range, channels)
        self.imdecode_backend = imdecode_backend
        self.backend_args = backend_args
        self.channels, self.value_range = channels, value_range

    def transform(self, results: dict) -> dict:
        """Load ``img_path``.

        Raises:
            UnreadableFileError: If the file cannot be read.
            ImageKindError: If its depth or number of channels was not asked for.
            Exception: If it is damaged, whatever its decoder raises (``OSError`` and others).
        """
        content = read_file(results['img_path'], self.backend_args)
        image = decode(content, self.imdecode_backend, self.channels, self.value_range)
        shape = image.shape[:2]
        return results | dict(img=image, img_shape=shape, ori_shape=shape)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(imdecode_backend={self.imdecode_backend!r}, backend_args={self.backend_args}, '
            f'channels={self.channels}, value_range={self.value_range!r})'
        )


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
