"""Estimate the GPU memory of a training step of detectors or segmentors, without a GPU.

python tools/estimate_memory.py CONFIG [CONFIG ...] --shape 1400 1600 --images 2 --card 40
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mm_ummae.analysis import environment, estimate_training_memory, markdown_table, read_config, write_json
from mm_ummae.command_line import ToolParser, one_line_errors

RESERVE = 0.1  # share of a GPU for the CUDA context, workspaces and fragmentation
PARTS = ('weights', 'gradients', 'buckets', 'optimizer', 'activations', 'total')  # the last is the sum of the others


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file, host::path or mm_ummae::path')
    parser.add_argument(
        '--shape', nargs=2, type=int, default=[1400, 1600], help='height and width in pixels (default: 1400 1600)'
    )
    parser.add_argument('--images', type=int, default=2, help='images per GPU (default: %(default)s)')
    parser.add_argument('--card', type=float, default=40, help='memory of the GPU in GB (default: %(default)s)')
    parser.add_argument('--out', help='JSON file to write')
    parser.add_config_options()
    return parser.parse_args(arguments)


@one_line_errors
def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Estimate, print a table and write the JSON file; returns the estimates by config."""
    args = parse_args(arguments)
    if not args.card > 0:
        raise ValueError(f'--card is {args.card:g}, but it must be more than 0 GB')
    configs = {name: read_config(name, args.cfg_options) for name in args.configs}
    found = {name: estimate_training_memory(config, tuple(args.shape), args.images) for name, config in configs.items()}
    rows = []
    for name, estimate in found.items():
        sizes = [f'{estimate[part] / 1e9:.2f}' for part in PARTS]
        fits = 'yes' if estimate['total'] <= (1 - RESERVE) * args.card * 1e9 else 'no'
        rows.append([Path(name).stem, *sizes, fits])
    print(markdown_table(['GB', *PARTS, f'fits {args.card:g} GB'], rows))
    print(f'{args.images} images of {args.shape[0]} x {args.shape[1]} px; {RESERVE:.0%} of the GPU is kept free')
    if args.out:
        arguments = {key: value for key, value in vars(args).items() if key != 'out'}
        write_json(dict(environment=environment('cpu'), arguments=arguments, estimates=found), args.out)
    return found


if __name__ == '__main__':
    main()
