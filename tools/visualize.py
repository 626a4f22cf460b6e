"""Write a sheet of reconstructions: original, sampled, secondary-masked, prediction, prediction pasted in.

For LoMaR it shows local windows instead, one per column: the input of the encoder above its reconstruction.

With several checkpoints or mask seeds, each has a column with the input of the encoder and the prediction pasted in:

    python tools/visualize.py CONFIG CHECKPOINT IMAGES --compare CONFIG_2 CHECKPOINT_2 --seeds 0 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.device import get_device

from mm_ummae.apis import get_model, reconstruct
from mm_ummae.command_line import ToolParser, one_line_errors
from mm_ummae.datasets.image_files import find_images
from mm_ummae.models import MaskedPixelModel
from mm_ummae.models.selfsup.masked_pixel_model import STATISTICS
from mm_ummae.visualization import check_sheet_path, comparison_sheet, reconstruction_sheet, save_sheet


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ValueError: If titles or seeds do not name each column once.
    """
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the pre-training run')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('images', help='an image, or a folder of images')
    parser.add_argument('--out', default='reconstruction.png', help='file to write (default: %(default)s)')
    parser.add_argument(
        '--compare',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='reconstruct with this checkpoint as well; may be repeated',
    )
    parser.add_argument(
        '--seeds',
        '--seed',
        nargs='+',
        type=int,
        default=[0],
        help='random seeds of the masks; the same for every checkpoint of one masking (default: 0)',
    )
    parser.add_argument('--titles', nargs='+', help='names of the checkpoints (default: model, folder and file)')
    parser.add_argument('--limit', type=int, default=6, help='largest number of images (default: %(default)s)')
    parser.add_argument('--image-size', type=int, help='side in pixels (default: that of each encoder)')
    parser.add_argument(
        '--statistics',
        choices=STATISTICS,
        default=STATISTICS[0],
        help='with norm_pix, mean and contrast of hidden units: those of the original, or the average of the visible '
        'units, which is all that the network knows (default: %(default)s)',
    )
    parser.add_argument('--device', help='default: the GPU, or the CPU if there is none')
    args = parser.parse_args(arguments)
    runs = 1 + len(args.compare)
    if args.titles and len(args.titles) != runs:
        raise ValueError(f'--titles has {len(args.titles)} names, but there are {runs} checkpoints')
    if len(set(args.titles or ())) < len(args.titles or ()) or len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f'--titles {args.titles} and --seeds {args.seeds} must not repeat: each names a column')
    return args


def load_model(config: str, checkpoint: str, device: str | None) -> MaskedPixelModel:
    """Build a pre-training model with all weights of a checkpoint.

    Raises:
        ValueError: If the config is not one of a pre-training.
    """
    model = get_model(config, pretrained=checkpoint, device=device or get_device())
    if not isinstance(model, MaskedPixelModel):
        raise ValueError(f'the model of {config} is {type(model).__name__}, but only pre-training models reconstruct')
    return model


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Reconstruct and write the sheet."""
    args = parse_args(arguments)
    check_sheet_path(args.out)
    images = find_images(args.images, args.limit)
    columns = {}
    for i, (config, checkpoint) in enumerate([(args.config, args.checkpoint), *args.compare]):
        model = load_model(config, checkpoint, args.device)
        path = Path(checkpoint)
        default = f'{type(model).__name__}, {type(model.backbone).__name__}\n{path.absolute().parent.name}/{path.stem}'
        name = args.titles[i] if args.titles else default
        for seed in args.seeds:
            title = f'{name}\nmask seed {seed}'
            if title in columns:  # two runs may have folders and files of the same names
                title = f'{name} ({i + 1})\nmask seed {seed}'
            columns[title] = reconstruct(model, images, args.image_size, seed, statistics=args.statistics)
    if len(columns) == 1:
        (samples,) = columns.values()
        sheet = reconstruction_sheet(samples, args.titles[0] if args.titles else Path(args.checkpoint).name)
    else:
        sheet = comparison_sheet(columns)
    out = save_sheet(sheet, args.out)
    print(f'{sum(map(len, columns.values()))} reconstructions in {out}')
    return out


if __name__ == '__main__':
    main()
