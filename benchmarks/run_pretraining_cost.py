"""Measure what a step of pre-training costs: MAE, LoMaR and UM-MAE at several image sizes.

    python tools/benchmark_pretraining.py --device cuda --dtype float16 --batch 64 --profile 448 --out work_dirs/cost

Weights and images are random and nothing is read. The methods are timed in turn, round by round, so that their ratios
hold on a machine that does other things too. Written are pretraining_cost.json and pretraining_cost.png; with --add
what the folder has stays in both, so that sizes or encoders can be measured one after the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from mm_ummae.analysis import DTYPES, write_json
from benchmarks.pretraining_cost import ARCHS, DEFAULT_METHODS, METHODS, SIZES, cost_profile_table, cost_table, pretraining_cost, save_cost_plot


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=tuple(METHODS),
        default=list(DEFAULT_METHODS),
        help=f'mae-2022 holds all scores of an attention in memory (default: {" ".join(DEFAULT_METHODS)})',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=int,
        default=list(SIZES),
        help=f'sides of the images in pixels (default: {" ".join(map(str, SIZES))})',
    )
    parser.add_argument('--arch', choices=tuple(ARCHS), default='base', help='of plain ViTs (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=2, help='images of a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='times that each is timed (default: %(default)s)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: the GPU if there is one')
    parser.add_argument(
        '--dtype', choices=tuple(DTYPES), default='float32', help='others: mixed precision (default: %(default)s)'
    )
    parser.add_argument('--threads', type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument('--profile', type=int, metavar='SIZE', help='also tell where the time goes at this size')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/pretraining_cost'), help='folder to write to')
    parser.add_argument('--add', action='store_true', help='to the runs that are in the folder')
    args = parser.parse_args(arguments)
    if args.threads is not None and args.threads < 1:
        raise ValueError(f'--threads is {args.threads}, but at least one is needed')
    return args


def main(arguments: list[str] | None = None) -> dict:
    """Measure, print the tables and write everything; returns this run."""
    args = parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = args.out / 'pretraining_cost.json'
    runs = json.loads(out.read_text())['runs'] if args.add else []
    report = pretraining_cost(
        args.methods,
        args.sizes,
        arch=args.arch,
        batch=args.batch,
        rounds=args.rounds,
        device=args.device or ('cuda' if torch.cuda.is_available() else 'cpu'),
        dtype=args.dtype,
        profile=args.profile,
    )
    print(cost_table(report))
    if args.profile is not None:
        print(f'\n{cost_profile_table(report)}')
    runs.append(report)
    write_json(dict(runs=runs), out)
    save_cost_plot(runs, out.with_suffix('.png'))
    print(f'\neverything is in {args.out}')
    return report


if __name__ == '__main__':
    main()
