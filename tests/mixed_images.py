"""A folder of images as people have them: kinds, sizes and names mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from demo.scenes import crop_photograph


def make_mixed_images(folder: Path, count: int, side: int = 96) -> Path:
    """Write ``count`` images below ``folder``: nested, with unicode names, L, RGB, RGBA, 16 bits, TIFF of four bands.

    Args:
        folder (Path): Folder to make.
        count (int): Images.
        side (int): Smallest side in pixels; others are up to a half larger. Default 96.
    Returns:
        Path: The folder.
    """
    rng = np.random.default_rng(0)
    for index in range(count):
        photograph = crop_photograph(rng, index % 10, 'train', side + side // 2)[0]
        height, width = rng.integers(side, side + side // 2 + 1, size=2)
        name, write = list(KINDS.items())[index % len(KINDS)]
        path = folder / ('été' if index % 3 else 'deep/er folder') / f'{index:03d} bild-{name}'
        path.parent.mkdir(parents=True, exist_ok=True)
        write(photograph[:height, :width], path)
    (folder / 'notes.txt').write_text('no image')
    return folder


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(2)


def _save(mode: str) -> Callable[[np.ndarray, Path], None]:
    return lambda pixels, path: Image.fromarray(pixels).convert(mode).save(path)


KINDS: dict[str, Callable[[np.ndarray, Path], None]] = {
    'rgb.jpg': _save('RGB'),
    'grey.JPG': _save('L'),
    'alpha.png': _save('RGBA'),
    'deep.png': lambda pixels, path: Image.fromarray((_grey(pixels) * 16).astype(np.uint16)).save(path),
    'bands.tif': lambda pixels, path: tifffile.imwrite(
        path, np.dstack((pixels, pixels[..., :1])), photometric='rgb', extrasamples=['unspecified']
    ),
    'small.webp': _save('RGB'),
}
