"""Command line of whole tasks on own images.

python -m mm_ummae pretrain --data FOLDER --out FOLDER
python -m mm_ummae finetune --task detection --data COCO.json --start FOLDER --out FOLDER
python -m mm_ummae predict --data FOLDER --checkpoint MODEL --out FOLDER
python -m mm_ummae embed --data FOLDER --checkpoint CHECKPOINT --out features.npz
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from .command_line import ToolParser, one_line_errors


@one_line_errors
def main(arguments: list[str] | None = None) -> Any:
    """Run a command; returns what its function does."""
    parser = argparse.ArgumentParser(
        'python -m mm_ummae', description='Pre-training and fine-tuning on your own images.'
    )
    commands = parser.add_subparsers(dest='command', required=True, parser_class=ToolParser)
    _add_pretrain(commands.add_parser('pretrain', help='pre-train on a folder of images without labels'))
    _add_finetune(commands.add_parser('finetune', help='fine-tune a detector, a segmentor or a classifier'))
    _add_predict(commands.add_parser('predict', help='predictions of a fine-tuned model, as files and pictures'))
    _add_embed(commands.add_parser('embed', help='features of images as a file'))
    values = vars(parser.parse_args(arguments))
    run: Callable[..., Any] = values.pop('run')
    for name in ('command', 'debug'):
        values.pop(name, None)
    return run(**values)


def _add_pretrain(parser: ToolParser) -> None:
    from .commands import MODELS

    parser.add_argument('--data', required=True, help='folder of images, or a text file with a path per line')
    parser.add_argument(
        '--model', default='um-swin-tiny', help=f'{", ".join(MODELS)}, or a config (default: %(default)s)'
    )
    parser.add_argument('--start', help='weights to continue from')
    _add_training(parser)
    parser.add_argument('--batch', type=int, help='images of an update (default: by their number)')
    parser.add_argument(
        '--image-size',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='of the crops: side, or height and width (default: that of the recipe)',
    )
    parser.add_argument('--channels', type=int, help='of the images (default: 3, or bands that all files have)')
    parser.add_argument('--mean', type=float, nargs='+', help='of each channel, 0..255 (default: from the data)')
    parser.add_argument('--std', type=float, nargs='+', help='of each channel (default: from the data)')
    parser.add_argument('--labelled', help='folder with a subfolder for each class, for probes during the run')
    parser.set_defaults(run=_pretrain)


def _add_training(parser: ToolParser) -> None:
    parser.add_argument('--out', required=True, help='folder of the run')
    parser.add_argument('--epochs', type=int, help='passes over the images (default: by their number)')
    parser.add_argument('--lr', type=float, help='learning rate (default: by the batch)')
    parser.add_argument('--workers', type=int, help='loader processes (default: the cores but one, 8 at most)')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument(
        '--value-range',
        nargs='+',
        metavar='VALUE',
        help='of images of more than 8 bits: the values that become 0 and 255, or percentile (default: from the data)',
    )


def _add_finetune(parser: ToolParser) -> None:
    from .commands import TASKS

    parser.add_argument('--task', required=True, choices=TASKS)
    parser.add_argument(
        '--data', required=True, help='COCO file, folder of images and label maps, or folder with one for each class'
    )
    parser.add_argument(
        '--start', help='folder of a pre-training, or weights of the backbone (default: random weights)'
    )
    parser.add_argument('--model', help='network, as of pretrain (default: that of --start)')
    parser.add_argument('--val', help='COCO file of validation (default: a share of the images)')
    parser.add_argument('--test', help='COCO file of tests (default: validation)')
    parser.add_argument('--images', help='folder of images, where another one is meant than is found')
    parser.add_argument('--masks', help='folder of label maps, likewise')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='for the values of label maps, in their order')
    parser.add_argument(
        '--val-share', type=float, default=0.2, help='of images without a validation set (default: %(default)s)'
    )
    _add_training(parser)
    parser.add_argument('--batch', type=int, help='images of an update (default: that of the recipe)')
    parser.add_argument('--image-size', type=int, help='in pixels (default: that of the recipe)')
    parser.add_argument('--channels', type=int, help='of the images (default: those of the pre-training)')
    parser.set_defaults(run=_finetune)


def _add_predict(parser: ToolParser) -> None:
    parser.add_argument('--data', required=True, help='folder of images, or an image')
    parser.add_argument('--checkpoint', required=True, help='folder of a fine-tuning, or a checkpoint of it')
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument('--config', help='default: config.py beside the checkpoint')
    parser.add_argument('--score', type=float, default=0.3, help='smallest score of objects (default: %(default)s)')
    parser.add_argument('--draw', type=int, default=100, help='largest number of pictures (default: %(default)s)')
    parser.add_argument('--device', help='default: the GPU, or the CPU if there is none')
    parser.set_defaults(run=_predict)


def _add_embed(parser: ToolParser) -> None:
    parser.add_argument('--data', required=True, help='folder of images, or a text file with a path per line')
    parser.add_argument('--checkpoint', required=True, help='folder of a pre-training, or a checkpoint of it')
    parser.add_argument('--out', required=True, help='file to write, .npz')
    parser.add_argument('--config', help='of the pre-training (default: config.py beside the checkpoint)')
    parser.add_argument('--image-size', type=int, help='side in pixels (default: that of the backbone)')
    parser.add_argument('--device', help='default: the GPU, or the CPU if there is none')
    parser.set_defaults(run=_embed)


def _embed(**options: Any) -> Any:
    from .commands import embed

    out = embed(**options)
    print(f'features: {out}')
    return out


def _finetune(value_range: list[str] | None, **options: Any) -> Any:
    from .commands import finetune

    result = finetune(value_range=_range(value_range), **options)
    lines = [f'{name}: {value:.4g}' for name, value in result.metrics.items()]
    _print(*lines, f'model:  {result.checkpoint}', f'config: {result.config}')
    return result


def _predict(**options: Any) -> Any:
    from .commands import predict

    out = predict(**options)
    print(f'predictions: {out}')
    return out


def _print(*lines: str) -> None:
    """Print on the first of the processes of torchrun."""
    if os.environ.get('RANK', '0') == '0':
        print('\n'.join(lines))


def _range(words: list[str] | None) -> str | list[float] | None:
    if not words:
        return None
    return words[0] if words == ['percentile'] else [float(each) for each in words]


def _pretrain(value_range: list[str] | None, **options: Any) -> Any:
    from .commands import pretrain

    result = pretrain(value_range=_range(value_range), **options)
    _print(f'backbone: {result.backbone}', f'config:   {result.config}', f'report:   {result.report}')
    return result


if __name__ == '__main__':
    main()
