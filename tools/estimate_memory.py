"""Estimate the GPU memory that training a detector takes, without a GPU.

python tools/estimate_memory.py CONFIG [CONFIG ...] --shape 1400 1600 --images 2 --card 40
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction

from mm_ummae.benchmark import environment, markdown_table, write_json
from mm_ummae.memory import estimate_training_memory

RESERVE = 0.1  # of a card, for the CUDA context, workspaces and fragmentation


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='configs of detectors')
    parser.add_argument(
        '--shape', nargs=2, type=int, default=[1400, 1600], help='height and width in pixels (default: 1400 1600)'
    )
    parser.add_argument('--images', type=int, default=2, help='on one GPU (default: %(default)s)')
    parser.add_argument('--card', type=float, default=40, help='memory of the GPU in GB (default: %(default)s)')
    parser.add_argument('--out', help='JSON file to write')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values: key=value, or a.b.c=value',
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, int]]:
    """Estimate, print a table and write the JSON file; returns bytes by config."""
    args = parse_args(arguments)
    found = {}
    for name in args.configs:
        cfg = Config.fromfile(name)
        cfg.merge_from_dict(args.cfg_options or {})
        found[name] = estimate_training_memory(cfg, tuple(args.shape), args.images)
    parts = list(next(iter(found.values())))
    usable = (1 - RESERVE) * args.card
    rows = []
    for name, sizes in found.items():
        total = sum(sizes.values()) / 1e9
        verdict = 'yes' if total <= usable else 'no'
        rows.append([Path(name).stem, *(f'{sizes[part] / 1e9:.2f}' for part in parts), f'{total:.1f}', verdict])
    titles = ['GB', *(part.replace('_', ' ') for part in parts), 'total', f'fits {args.card:g} GB']
    print(markdown_table(titles, rows))
    print(f'{args.images} pictures of {args.shape[0]} x {args.shape[1]} px; a tenth of the card is kept free')
    if args.out:
        arguments = {key: value for key, value in vars(args).items() if key != 'out'}
        write_json(dict(environment=environment('cpu'), arguments=arguments, bytes=found), args.out)
    return found


if __name__ == '__main__':
    main()
