"""Reconstruct pictures with a pre-trained checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from mmpretrain import get_model
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from torch import nn

from mm_ummae.models.masked_pixel_model import Mask
from mm_ummae.models.pretrained import load_whole

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')  # of pictures in a folder, in small or capital letters


def load_model(config: str | Path | Config, checkpoint: str, device: str | None = None) -> nn.Module:
    """Build a pre-training model and load all of its weights.

    Args:
        config (str | Path | Config): Config of the run.
        checkpoint (str): Its checkpoint.
        device (str, optional): Default: the GPU if there is one.
    Returns:
        nn.Module: The model in eval mode; its config is ``model._config``.
    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint does not fit the config's model; the names are listed.
    """
    config = Config.fromfile(config) if isinstance(config, (str, Path)) else config
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = get_model(config, pretrained=False, device=device)
    load_whole(model, str(checkpoint))
    return model.eval()


def reconstruct(
    model: nn.Module,
    images: Sequence[str | Path],
    image_size: int | None = None,
    seed: int = 0,
    mask: Mask | None = None,
) -> list[DataSample]:
    """Mask and reconstruct picture files.

    Args:
        model (nn.Module): From :func:`load_model`.
        images (Sequence[str | Path]): Files.
        image_size (int, optional): Side in pixels to resize and centre-crop to. Default: that of the encoder.
        seed (int): Of the masks: the same seed gives the same masks. Default 0.
        mask (Mask, optional): Use this mask instead of drawing one.
    Returns:
        list[DataSample]: See :meth:`MaskedPixelModel.predict`.
    Raises:
        ValueError: If there is no picture or one cannot be read; it is named.
    """
    if image_size is None:
        image_size = nominal_size(model.backbone)
    return reconstruct_batch(model, load_batch(images, image_size), seed, mask)


def reconstruct_batch(model: nn.Module, batch: dict, seed: int = 0, mask: Mask | None = None) -> list[DataSample]:
    """Mask and reconstruct pictures that were loaded before.

    Neither gradients nor the global random streams are touched; the caller sets eval mode.

    Args:
        model (nn.Module): A pre-training algorithm, not wrapped.
        batch (dict): From :func:`load_batch`.
        seed (int): Of the masks: the same seed gives the same masks, on every device. Default 0.
        mask (Mask, optional): Use this mask instead of drawing one.
    Returns:
        list[DataSample]: See :meth:`MaskedPixelModel.predict`.
    """
    with torch.no_grad():
        data = model.data_preprocessor(dict(batch), training=False)
        inputs = data['inputs']
        if mask is None:
            # Drawn on the CPU, so that a seed gives the same masks on every device
            mask = model.draw_mask(len(inputs), tuple(inputs.shape[2:]), generator=torch.Generator().manual_seed(seed))
        return model(inputs, data['data_samples'], mode='predict', mask=mask.to(inputs.device))


def load_batch(images: Sequence[str | Path], image_size: int) -> dict:
    """Load pictures as a test-time pipeline does: short side to ``image_size``, then the square in the centre.

    Args:
        images (Sequence[str | Path]): Files.
        image_size (int): Side in pixels.
    Returns:
        dict: ``inputs``, (N, 3, side, side) uint8 BGR, and ``data_samples``, for a data preprocessor.
    Raises:
        ValueError: If there is no picture or one cannot be read, which is named, or the side is not positive.
    """
    if not images:
        raise ValueError('images is empty, but there must be at least one picture')
    if image_size < 1:
        raise ValueError(f'image_size is {image_size}, but a side must be positive')
    steps = (dict(type='LoadImageFromFile', imdecode_backend='pillow'), *centre_crop_steps(image_size))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    return default_collate([_load(pipeline, path) for path in images])


def centre_crop_steps(image_size: int) -> tuple[dict, ...]:
    """Transforms of a loaded picture at test time: short side to ``image_size``, then the square in the centre."""
    return (
        dict(type='ResizeEdge', scale=image_size, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=image_size),
        dict(type='PackInputs'),
    )


def nominal_size(backbone: nn.Module) -> int:
    """Side in pixels of the pictures that a backbone is meant for; the smaller one if they differ."""
    return min(backbone.img_size)


def find_images(path: str | Path, limit: int) -> list[Path]:
    """The picture itself, or the first ``limit`` pictures below a folder, in order of their names.

    Args:
        path (str | Path): File or folder; subfolders are searched.
        limit (int): Largest number of pictures of a folder.
    Returns:
        list[Path]: Files, not opened yet.
    Raises:
        FileNotFoundError: If the path does not exist or the folder holds no picture.
        ValueError: If the limit is not positive.
    """
    if limit < 1:
        raise ValueError(f'limit is {limit}, but at least one picture is needed')
    path = Path(path)
    if path.is_file():
        return [path]
    images = sorted(file for file in path.rglob('*') if file.suffix.lower() in SUFFIXES)[:limit]
    if not images:
        raise FileNotFoundError(f'{path} is no picture and no folder with pictures ({", ".join(SUFFIXES)})')
    return images


def _load(pipeline: Compose, path: str | Path) -> dict:
    try:
        return pipeline(dict(img_path=str(path)))
    except Exception as error:  # decoders raise many kinds
        raise ValueError(f'the picture {path} cannot be read: {type(error).__name__}: {error}') from error
