"""Export the backbone or the classifier of a config for deployment, and compare the file with it.

python tools/export_model.py CONFIG CHECKPOINT classifier.onnx --format onnx
"""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from torch import nn

from mm_ummae.checkpoints import load_pretrained, load_whole
from mm_ummae.command_line import ToolParser, one_line_errors
from mm_ummae.deployment import FORMATS, Deployed, export_network
from mm_ummae.registry import MODELS


def read_network(config: Config, checkpoint: str) -> nn.Module:
    """The classifier of a config, or the backbone of any other one, with the weights of a checkpoint.

    Args:
        config (Config): Of a classifier, a pre-training, a detector or a segmentor.
        checkpoint (str): Its checkpoint.
    Raises:
        ValueError: If the config has no backbone, or the checkpoint does not fit.
    """
    if 'backbone' not in config.get('model', {}):
        raise ValueError(f'the config {config.filename} has no model.backbone, which could be exported')
    settings = config.model.to_dict()
    settings['backbone'].pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmpretrain'):
        if config.model.get('type', '').rpartition('.')[2] == 'ImageClassifier':
            settings.setdefault('data_preprocessor', config.get('data_preprocessor'))
            model = MODELS.build(settings)
            load_whole(model, checkpoint)
            return model
        backbone = MODELS.build(settings['backbone'])
    load_pretrained(
        backbone,
        dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone'),
        getattr(backbone, 'PRETRAINING_ONLY', ()),
    )
    return backbone


def normalisation(config: Config) -> tuple[list[float], list[float], bool]:
    """Mean, standard deviation, and whether images are BGR before the preprocessor, of a config."""
    settings = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    mean, std = (list(settings.get(key, default)) for key, default in (('mean', 3 * [0.0]), ('std', 3 * [1.0])))
    return mean, std, bool(settings.get('to_rgb', settings.get('bgr_to_rgb', False)))


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Export a network and print what was compared.

    Args:
        arguments (list[str], optional): Command-line arguments. Default: those of the process.
    Returns:
        Path: The written file.
    """
    parser = ToolParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a classifier, which is exported whole, or of another model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('target', type=Path, help='file to write')
    parser.add_argument('--format', choices=FORMATS, default='onnx', help='default: %(default)s')
    parser.add_argument(
        '--img-size', type=int, nargs='+', metavar='PIXELS', help="side, or height and width (default: the backbone's)"
    )
    parser.add_argument('--batch', type=int, help='fixed number of images (default: any)')
    parser.add_argument('--dynamic-size', action='store_true', help='other image sizes too, if the network allows it')
    parser.add_argument('--normalize', action='store_true', help='take pixel values 0..255 and normalise inside')
    args = parser.parse_args(arguments)
    config = Config.fromfile(args.config)
    network = read_network(config, args.checkpoint)
    backbone = network.backbone if isinstance(network, ImageClassifier) else network
    size = args.img_size or getattr(backbone, 'img_size', None)
    if size is None:
        raise ValueError(f'{type(backbone).__name__} has no nominal size: give --img-size')
    size = [size] if isinstance(size, int) else list(size)
    if len(size) > 2:
        raise ValueError(f'--img-size takes one or two numbers, not {size}')
    mean, std, bgr = normalisation(config)
    deployed = Deployed(network, *((mean, std) if args.normalize else ()))
    size = (size[0], size[-1])
    differences = export_network(deployed, args.target, args.format, size, args.batch, args.dynamic_size)
    lines = [f'{args.target}: {type(network).__name__} as {args.format}, images (N, 3, {size[0]}, {size[1]}) float32']
    order = 'RGB' if bgr else 'as the config has it'
    scale = 'pixel values 0..255' if args.normalize else f'(pixel values - {mean}) / {std}'
    lines.append(f'images: {scale}, channels {order}')
    lines += [f'largest difference at {shape}: {value:.1e}' for shape, value in differences.items()]
    print('\n'.join(lines))
    return args.target


if __name__ == '__main__':
    main()
