"""Time of a training crop from a scene of 10,000 x 10,000 px, and from its tiles of 512 px.

python -m benchmarks.large_images
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile
import torch
from PIL import Image

from mm_ummae.command_line import ToolParser
from mm_ummae.datasets import LoadCompleteImage, TorchRandomResizedCrop
from mm_ummae.datasets.image_files import list_images
from mm_ummae.datasets.tiling import tile_images

TILES = 100  # that are timed


def make_scene(side: int) -> np.ndarray:
    """Smooth noise of several scales, (side, side, 3) uint8."""
    rng, scene = np.random.default_rng(0), np.full((side, side, 3), 128, np.int16)
    for cell, contrast in ((1000, 60), (100, 40), (10, 20), (1, 4)):
        noise = rng.integers(-contrast, contrast + 1, (max(side // cell, 1), max(side // cell, 1), 3), dtype=np.int16)
        scene += cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR)
    return scene.clip(0, 255).astype(np.uint8)


def write_scenes(folder: Path, side: int) -> None:
    """Write a scene in a folder for each kind."""
    scene = make_scene(side)
    for kind in ('jpeg', 'tiff'):
        (folder / kind).mkdir()
    Image.fromarray(scene).save(folder / 'jpeg' / 'scene.jpg', quality=90)
    tifffile.imwrite(folder / 'tiff' / 'scene.tif', scene, photometric='rgb', tile=(256, 256), compression='zlib')


def crop_seconds(path: Path) -> float:
    """Processor time of a crop of 256 px, with reading."""
    started = time.process_time()
    image = LoadCompleteImage().transform(dict(img_path=str(path)))
    TorchRandomResizedCrop(256, flip_prob=0.5).transform(image)
    return time.process_time() - started


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a line for each kind of file."""
    parser = ToolParser(description=__doc__)
    parser.add_argument('--side', type=int, default=10_000, help='of the scene in pixels (default: %(default)s)')
    args = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root, args.side)
        for kind in ('jpeg', 'tiff'):
            (scene,) = (root / kind / name for name in list_images(root / kind))
            started = time.process_time()
            tile_images(root / kind, root / 'tiles' / kind)
            cutting = time.process_time() - started
            tiles = [root / 'tiles' / kind / name for name in list_images(root / 'tiles' / kind)]
            some = [tiles[index * len(tiles) // TILES] for index in range(TILES)]
            whole, tile = crop_seconds(scene), float(np.median([crop_seconds(path) for path in some]))
            size, sizes = scene.stat().st_size / 1e6, sum(path.stat().st_size for path in tiles) / 1e6
            print(
                f'{kind}: crop of the scene {whole:.2f} s, of a tile {tile * 1e3:.1f} ms, ratio {whole / tile:.0f}; '
                f'{len(tiles)} tiles cut in {cutting:.0f} s, {size:.0f} MB became {sizes:.0f} MB'
            )


if __name__ == '__main__':
    main()
