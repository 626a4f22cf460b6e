"""Measure detectors, segmentors and classifiers: parameters, multiply-adds, pictures per second and memory.

    python tools/benchmark.py CONFIG [CONFIG ...] --shape 800 1280 --out benchmark.json

Weights are random and nothing is read: a config of this project or of a host (mmdet::...) is all that it takes. Several
networks are timed in turn, round by round, so that their ratios hold on a machine that does other things too.
"""

from __future__ import annotations

import argparse

import torch

from mm_ummae.benchmark import DTYPES, benchmark, network_table, write_json


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file, or mmdet::path of a host')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        default=[800, 1280],
        metavar=('HEIGHT', 'WIDTH'),
        help='of the picture in pixels (default: 800 1280)',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: the GPU if there is one')
    parser.add_argument('--threads', type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument('--rounds', type=int, default=5, help='times that each is timed (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=1, help='rounds before those (default: %(default)s)')
    parser.add_argument(
        '--dtype', choices=tuple(DTYPES), default='float32', help='others: mixed precision (default: %(default)s)'
    )
    parser.add_argument(
        '--candidates',
        type=int,
        default=1000,
        help='boxes that a detector passes on to non-maximum suppression (default: %(default)s)',
    )
    parser.add_argument('--flops-only', action='store_true', help='count and do not time')
    parser.add_argument('--out', default='benchmark.json', help='file to write (default: %(default)s)')
    args = parser.parse_args(arguments)
    if args.threads is not None and args.threads < 1:
        raise ValueError(f'--threads is {args.threads}, but at least one is needed')
    return args


def main(arguments: list[str] | None = None) -> dict:
    """Measure, print the table and write everything; returns what was written."""
    args = parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    report = benchmark(
        args.configs,
        tuple(args.shape),
        device=args.device or ('cuda' if torch.cuda.is_available() else 'cpu'),
        dtype=args.dtype,
        rounds=args.rounds,
        warmup=args.warmup,
        candidates=args.candidates,
        flops_only=args.flops_only,
    )
    out = write_json(report, args.out)
    print(f'{network_table(report["networks"])}\n\neverything is in {out}')
    return report


if __name__ == '__main__':
    main()
