"""Image files outside a data set: finding them, and loading a batch as a test pipeline does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcv.transforms import Compose
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from mmpretrain.registry import TRANSFORMS

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')  # of images in a folder, in small or capital letters


def find_images(path: str | Path, limit: int) -> list[Path]:
    """The image itself, or the first ``limit`` images below a folder, in order of their names.

    Args:
        path (str | Path): File or folder; subfolders are searched.
        limit (int): Largest number of images of a folder.
    Returns:
        list[Path]: Files, not opened yet.
    Raises:
        FileNotFoundError: If the path does not exist or the folder holds no image.
        ValueError: If the limit is not positive.
    """
    if limit < 1:
        raise ValueError(f'limit is {limit}, but at least one image is needed')
    path = Path(path)
    if path.is_file():
        return [path]
    images = sorted(file for file in path.rglob('*') if file.suffix.lower() in SUFFIXES)[:limit]
    if not images:
        raise FileNotFoundError(f'{path} is no image and no folder with images ({", ".join(SUFFIXES)})')
    return images


def load_batch(images: Sequence[str | Path], image_size: int) -> dict:
    """Load images as a test-time pipeline does: short side to ``image_size``, then the square in the centre.

    Args:
        images (Sequence[str | Path]): Files.
        image_size (int): Side in pixels.
    Returns:
        dict: ``inputs``, (N, 3, side, side) uint8 BGR, and ``data_samples``, for a data preprocessor.
    Raises:
        ValueError: If there is no image or one cannot be read, which is named, or the side is not positive.
    """
    if not images:
        raise ValueError('images is empty, but there must be at least one image')
    if image_size < 1:
        raise ValueError(f'image_size is {image_size}, but a side must be positive')
    steps = (dict(type='LoadImageFromFile', imdecode_backend='pillow'), *centre_crop_steps(image_size))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    return default_collate([_load(pipeline, path) for path in images])


def centre_crop_steps(image_size: int) -> tuple[dict, ...]:
    """Transforms of a loaded image at test time: short side to ``image_size``, then the square in the centre."""
    return (
        dict(type='ResizeEdge', scale=image_size, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=image_size),
        dict(type='PackInputs'),
    )


def _load(pipeline: Compose, path: str | Path) -> dict:
    try:
        return pipeline(dict(img_path=str(path)))
    except Exception as error:  # decoders raise many kinds
        raise ValueError(f'the image {path} cannot be read: {type(error).__name__}: {error}') from error
