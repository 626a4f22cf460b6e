"""Cut the large images of a folder into tiles, so that a training crop need not decode a whole scene.

Bands and depth are kept, images not larger than a tile are copied, and the same command goes on after a break:

    python tools/tile_images.py --data FOLDER --out FOLDER --tile 512 --workers 8
"""

from __future__ import annotations

import argparse

from mm_ummae.command_line import ToolParser, one_line_errors
from mm_ummae.datasets.scenes import FORMATS
from mm_ummae.datasets.tiling import Tiling, tile_images


@one_line_errors
def main(arguments: list[str] | None = None) -> Tiling:
    """Cut the images; returns numbers of images and tiles."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of images, at any depth')
    parser.add_argument('--out', required=True, help='folder of the tiles: new, or that of an interrupted call')
    parser.add_argument('--tile', type=int, default=512, help='side of a tile in pixels (default: %(default)s)')
    parser.add_argument('--overlap', type=int, default=0, help='pixels that neighbours share (default: %(default)s)')
    parser.add_argument(
        '--format',
        dest='image_format',
        default='png',
        help=f'of grey and RGB tiles of 8 bits: {" or ".join(FORMATS)}; all others are TIFF (default: %(default)s)',
    )
    parser.add_argument('--quality', type=int, default=95, help='of JPEG, 1 to 100 (default: %(default)s)')
    parser.add_argument(
        '--empty',
        type=float,
        metavar='SHARE',
        help='leave out tiles of which at least this share of the pixels, above 0.5, has one value (default: keep all)',
    )
    parser.add_argument('--workers', type=int, default=1, help='processes (default: %(default)s)')
    options = vars(parser.parse_args(arguments))
    options.pop('debug')
    return tile_images(**options)


if __name__ == '__main__':
    main()
