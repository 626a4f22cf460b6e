"""Reconstruction of image files by a pre-training model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpretrain.structures import DataSample

from mm_ummae.datasets.image_files import load_batch, loader_of
from mm_ummae.masking import Mask
from mm_ummae.models import MaskedPixelModel


def reconstruct(
    model: MaskedPixelModel,
    images: Sequence[str | Path],
    image_size: int | None = None,
    seed: int = 0,
    mask: Mask | None = None,
    statistics: str = 'original',
) -> list[DataSample]:
    """Mask and reconstruct image files.

    Args:
        model (MaskedPixelModel): Model built by :func:`get_model`.
        images (Sequence[str | Path]): Image files.
        image_size (int, optional): Side in pixels to which images are resized and centre-cropped. Default: the image
            size of the backbone.
        seed (int): Random seed of the masks. Default 0.
        mask (Mask, optional): Use this mask instead of drawing one.
        statistics (str): See :meth:`MaskedPixelModel.predict`; ``visible`` shows a model with ``norm_pix`` without help
            from the ground truth. Default ``original``.
    Returns:
        list[DataSample]: See :meth:`MaskedPixelModel.predict`.
    Raises:
        ValueError: If ``images`` is empty or a file cannot be read; the message names it.
    """
    size = min(model.backbone.img_size) if image_size is None else image_size
    load = loader_of(getattr(model, '_config', {}))
    return model.reconstruct(load_batch(images, size, load), seed, mask, statistics)
