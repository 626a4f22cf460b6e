"""Write a sheet of reconstructions: original, sampled, secondary-masked, prediction, prediction pasted in."""

from __future__ import annotations

import argparse
from pathlib import Path

from mm_ummae.inference import load_model, reconstruct
from mm_ummae.visualization import save_reconstruction_sheet

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


def find_images(path: str | Path, limit: int) -> list[Path]:
    """The picture itself, or the first ``limit`` pictures below a folder, in order of their names.

    Raises:
        FileNotFoundError: If the path does not exist or the folder holds no picture.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    images = sorted(file for file in path.rglob('*') if file.suffix.lower() in SUFFIXES)[:limit]
    if not images:
        raise FileNotFoundError(f'{path} is no picture and no folder with pictures ({", ".join(SUFFIXES)})')
    return images


def main(arguments: list[str] | None = None) -> Path:
    """Reconstruct and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the pre-training run')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('images', help='a picture, or a folder of pictures')
    parser.add_argument('--out', default='reconstruction.png', help='PNG to write (default: %(default)s)')
    parser.add_argument('--limit', type=int, default=6, help='pictures of a folder (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    parser.add_argument('--image-size', type=int, help="side in pixels (default: the encoder's)")
    parser.add_argument('--device', help='default: the GPU if there is one')
    args = parser.parse_args(arguments)
    model = load_model(args.config, args.checkpoint, args.device)
    samples = reconstruct(model, find_images(args.images, args.limit), args.image_size, args.seed)
    sheet = save_reconstruction_sheet(samples, args.out, Path(args.checkpoint).name)
    print(f'{len(samples)} reconstructions in {sheet}')
    return sheet


if __name__ == '__main__':
    main()
