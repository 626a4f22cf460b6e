"""Generated photographs: JPEG files, and configs that load them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config, ConfigDict
from PIL import Image, ImageDraw

IMAGE_SIZE = (500, 375)  # width and height in pixels, the most frequent ones of ImageNet
SEED = 0


def write_images(folder: str | Path, count: int, quality: int) -> list[Path]:
    """Write JPEG files with content like a photograph's: noise of all scales, weaker the finer it is, and edges.

    Args:
        folder (str | Path): Folder to write to; it is made.
        count (int): Number of files.
        quality (int): Of Pillow's JPEG writer, 1 to 95, with 4:2:0 subsampling as in cameras.
    Returns:
        list[Path]: The files; the same arguments and library versions give the same ones.
    """
    rng = np.random.default_rng(SEED)
    paths = [Path(folder) / f'{number:05d}.JPEG' for number in range(count)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        _draw_image(rng).save(path, quality=quality, subsampling='4:2:0')
    return paths


def _draw_image(rng: np.random.Generator) -> Image.Image:
    width, height = IMAGE_SIZE
    pixels = np.full((height, width, 3), 128, np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):  # along the width
        noise = rng.normal(size=(3 * cells // 4 + 1, cells + 1, 3)).astype(np.float32)
        noise = noise.mean(axis=2, keepdims=True) + 0.3 * noise  # colours vary less than brightness
        pixels += 70 * (2 / cells) ** 0.75 * cv2.resize(noise, IMAGE_SIZE, interpolation=cv2.INTER_CUBIC)
    pixels += rng.normal(scale=4, size=(height, width, 1))  # noise of the sensor
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = (int(rng.integers(limit)) for limit in (width, height, 70))
        colour = tuple(rng.integers(256, size=3).tolist())
        draw.ellipse((x - radius, y - radius // 2, x + radius, y + radius // 2), fill=colour)
        ends = rng.integers((width, height), size=(2, 2)).flatten().tolist()
        draw.line(ends, fill=colour, width=1 + radius // 16)
    return image


def on_images(config: Config, folder: str | Path, image_size: int) -> Config:
    """Replace the training data of a pre-training config by a folder of images without labels.

    Args:
        config (Config): With MMPretrain's transforms or ours; it is changed. ``PretrainImages`` keeps its settings, any
            other dataset becomes MMPretrain's ``CustomDataset``.
        folder (str | Path): The images.
        image_size (int): Side of the random crops in pixels.
    Returns:
        Config: The same.
    """
    dataset = config.train_dataloader.dataset
    for step in dataset.pipeline:
        if step.type.endswith('RandomResizedCrop'):
            step.scale = image_size
    if dataset.type != 'mm_ummae.PretrainImages':
        dataset = ConfigDict(type='CustomDataset', with_label=False, pipeline=dataset.pipeline)
    dataset.update(data_root=str(folder), data_prefix='')
    config.train_dataloader.dataset = dataset
    config.train_dataloader.collate_fn = dict(type='default_collate')
    return config
