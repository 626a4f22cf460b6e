"""Measure FLOPs, latency, throughput and peak memory of configs.

    python tools/benchmark.py CONFIG [CONFIG ...] --shape 800 1280                        # inference
    python tools/benchmark.py CONFIG --measure step --dtype bfloat16 --batch 64
    python tools/benchmark.py CONFIG --measure loading --cfg-options train_dataloader.dataset.data_root=data/imagenet
    python tools/benchmark.py CONFIG --measure training --workers 8 --batch 64

--measure is one of
  inference  one random image through a whole detector, segmentor, classifier or pre-training model (default)
  step       loss, backward and AdamW on a batch of random images
  loading    the training pipeline on the config's data, images per second of one core
  training   steps that the data loader feeds, and the same steps without it

A config is a file, host::path (mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py), or mm_ummae::path for a config that
is installed with this package. Weights are random. Several configs are timed in turn, round by round, so that their
ratios hold on a machine that is also used otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mm_ummae.analysis import (
    DTYPES,
    Settings,
    environment,
    measure_inference,
    measure_loading,
    measure_steps,
    measure_training,
    read_config,
    results_table,
    write_json,
)
from mm_ummae.command_line import ToolParser, one_line_errors

SHAPES = dict(inference=(800, 1280), step=(256, 256))
BATCHES = dict(step=16, loading=32, training=16)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file, or host::path')
    parser.add_argument('--measure', choices=('inference', 'step', 'loading', 'training'), default='inference')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of random images in pixels (default: 800 1280 for inference, 256 256 for a step)',
    )
    parser.add_argument('--batch', type=int, help='files of a batch (default: 16; 32 for loading)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: the GPU if there is one')
    parser.add_argument('--threads', type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=1, help='rounds before those (default: %(default)s)')
    parser.add_argument(
        '--dtype', choices=tuple(DTYPES), default='float32', help='others: mixed precision (default: %(default)s)'
    )
    parser.add_argument('--compile', action='store_true', help='compile the loss with torch.compile')
    parser.add_argument('--workers', type=int, default=1, help='loader processes of training (default: %(default)s)')
    parser.add_argument(
        '--candidates',
        type=int,
        default=1000,
        help='boxes that a detector passes to non-maximum suppression in inference (default: %(default)s)',
    )
    parser.add_argument('--flops-only', action='store_true', help='of inference: count and do not time')
    parser.add_config_options()
    parser.add_argument('--out', help='JSON file to write')
    args = parser.parse_args(arguments)
    if args.threads is not None and args.threads < 1:
        raise ValueError(f'--threads is {args.threads}, but at least one is needed')
    if len(set(args.configs)) < len(args.configs):
        raise ValueError(f'configs is {args.configs}, but none may be given twice')
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    args.shape = tuple(args.shape or SHAPES.get(args.measure, ()))
    args.batch = BATCHES.get(args.measure) if args.batch is None else args.batch
    return args


@one_line_errors
def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table and write the JSON file; returns its content."""
    args = parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    configs = {_short(name): read_config(name, args.cfg_options) for name in args.configs}
    if len(configs) < len(args.configs):  # files of the same name
        configs = {name: read_config(name, args.cfg_options) for name in args.configs}
    rows = measure(configs, args)
    print(results_table(rows))
    arguments = {key: value for key, value in vars(args).items() if key != 'out'}
    report = dict(environment=environment(args.device), arguments=arguments, results=rows)
    if args.out:
        write_json(report, args.out)
    return report


def measure(configs: dict[str, Config], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the command line asks for."""
    settings = Settings(args.device, args.dtype, args.rounds, args.warmup)
    if args.measure == 'inference':
        options = dict(candidates=args.candidates, flops_only=args.flops_only)
        return measure_inference(configs, args.shape, settings, **options)
    if args.measure == 'step':
        return measure_steps(configs, args.shape, args.batch, settings, compiled=args.compile)
    if args.measure == 'loading':
        return measure_loading(configs, args.batch, settings=settings)
    steps = max(4, 4 * args.workers)
    return measure_training(configs, args.batch, settings, workers=args.workers, steps=steps, compiled=args.compile)


def _short(config: str) -> str:
    return Path(config.rpartition('::')[2]).stem


if __name__ == '__main__':
    main()
