"""Reconstruction of image files with a pre-trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpretrain.structures import DataSample

from mm_ummae.datasets.image_files import load_batch
from mm_ummae.masking import Mask
from mm_ummae.models import MaskedPixelModel


def reconstruct(
    model: MaskedPixelModel,
    images: Sequence[str | Path],
    image_size: int | None = None,
    seed: int = 0,
    mask: Mask | None = None,
) -> list[DataSample]:
    """Mask and reconstruct image files.

    Args:
        model (MaskedPixelModel): From :func:`get_model`.
        images (Sequence[str | Path]): Files.
        image_size (int, optional): Side in pixels to resize and centre-crop to. Default: that of the encoder.
        seed (int): Of the masks: the same seed gives the same masks. Default 0.
        mask (Mask, optional): Use this mask instead of drawing one.
    Returns:
        list[DataSample]: See :meth:`MaskedPixelModel.predict`.
    Raises:
        ValueError: If there is no image or one cannot be read; it is named.
    """
    size = min(model.backbone.img_size) if image_size is None else image_size
    return model.reconstruct(load_batch(images, size), seed, mask)
