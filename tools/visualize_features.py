"""Write a sheet of feature maps: for each stage of a pyramid the first three principal components as colours.

The config is that of a pre-training, a classifier, a detector or a segmentor; only its backbone is built.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from mm_ummae.command_line import ToolParser, one_line_errors
from mm_ummae.datasets.image_files import find_images, loader_of
from mm_ummae.visualization import check_sheet_path, feature_sheet, load_backbone, save_sheet


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Compute the maps and write the sheet."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config with a model.backbone that has stages: UMSwin, UMPVT')
    parser.add_argument('checkpoint', help='its checkpoint, or that of the pre-training it starts from')
    parser.add_argument('images', help='an image, or a folder of images')
    parser.add_argument('--out', default='features.png', help='file to write (default: %(default)s)')
    parser.add_argument('--limit', type=int, default=6, help='largest number of images (default: %(default)s)')
    parser.add_argument('--image-size', type=int, help='side in pixels (default: that of the backbone)')
    parser.add_argument('--device', help='default: the GPU, or the CPU if there is none')
    args = parser.parse_args(arguments)
    check_sheet_path(args.out)
    images = find_images(args.images, args.limit)
    backbone, preprocessor = load_backbone(args.config, args.checkpoint, args.device)
    size = min(backbone.img_size) if args.image_size is None else args.image_size
    load = loader_of(Config.fromfile(args.config))
    sheet = feature_sheet(backbone, preprocessor, images, size, Path(args.checkpoint).name, load)
    out = save_sheet(sheet, args.out)
    print(f'feature maps of {len(images)} images in {out}')
    return out


if __name__ == '__main__':
    main()
