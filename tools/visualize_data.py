"""Write a sheet of training samples: images of the data set, each beside outputs of the training pipeline.

Boxes and masks are drawn on the images; where a detector also learns from a semantic map, the map has a row of its
own. For configs of MMDetection and MMSegmentation; no checkpoint is needed:

    python tools/visualize_data.py CONFIG --out samples.png --cfg-options train_dataloader.dataset.data_root=FOLDER/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from mm_ummae.command_line import ToolParser, one_line_errors
from mm_ummae.visualization import check_sheet_path, save_sheet
from mm_ummae.visualization.data import data_sheet


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Draw the samples and write the sheet."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a detector or segmentor')
    parser.add_argument('--out', default='samples.png', help='file to write (default: %(default)s)')
    parser.add_argument('--images', type=int, default=3, help='number of images, picked at random (default: 3)')
    parser.add_argument('--samples', type=int, default=4, help='outputs of the pipeline per image (default: 4)')
    parser.add_argument('--seed', type=int, default=0, help='random seed of images and outputs (default: 0)')
    parser.add_config_options()
    args = parser.parse_args(arguments)
    check_sheet_path(args.out)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    sheet = data_sheet(cfg, args.images, args.samples, args.seed, title=Path(args.config).stem)
    out = save_sheet(sheet, args.out)
    print(f'{args.samples} samples of each image in {out}')
    return out


if __name__ == '__main__':
    main()
