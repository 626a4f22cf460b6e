"""Hours of pre-training on one GPU and on many, on paper, and what limits them: compute, all-reduce or loader.

    python tools/estimate_hours.py --seconds-per-image 0.0005 0.0015 0.002 \\
        --loader 100 --cores 12 --inside 450 --between 50 --out hours.json
    python tools/estimate_hours.py CONFIG --peak 989 --share 0.35 --loader 100 --cores 12 --inside 450 --between 50

This is arithmetic with the numbers that you give, and not a measurement; mm_ummae/benchmark/scaling.py tells how it is
done. Seconds per image are those of a whole step on one GPU, of each config in turn; without them the operations of a
step are counted and divided by a share of what the GPU is sold with.
"""

from __future__ import annotations

import argparse
from typing import Any

from mm_ummae.analysis import ROOT, environment, write_json
from benchmarks.scaling import TOTAL_BATCH, Machine, hours_table, pretraining_hours, read_workload, seconds_on_paper

CONFIGS = tuple(
    f'configs/ummae/ummae_{name}_in1k-256px.py'
    for name in (
        'swin-tiny_8xb128x4-amp-coslr-200e',
        'swin-base_8xb64x8-amp-coslr-800e',
        'swin-large_8xb64x8-amp-coslr-800e',
    )
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', help='of masked pre-training (default: UM-MAE of Swin-T, -B and -L)'
    )
    parser.add_argument('--gpus', nargs='+', type=int, default=[1, 8, 64], help='how many (default: 1 8 64)')
    parser.add_argument(
        '--seconds-per-image', nargs='+', type=float, metavar='S', help='of a step on one GPU, one for each config'
    )
    parser.add_argument('--peak', type=float, metavar='TFLOPS', help='what the GPU is sold with, in 10^12 a second')
    parser.add_argument('--share', type=float, help='of the peak that a step is assumed to reach, at most 1')
    parser.add_argument('--loader', type=float, required=True, help='images per second of a processor core')
    parser.add_argument('--cores', type=float, required=True, help='processor cores of a GPU')
    parser.add_argument('--inside', type=float, required=True, help='GB/s that a GPU sends inside its node')
    parser.add_argument('--between', type=float, required=True, help='GB/s that a GPU sends to another node')
    parser.add_argument('--node', type=int, default=8, help='GPUs of a node (default: %(default)s)')
    parser.add_argument('--out', help='JSON file to write')
    args = parser.parse_args(arguments)
    args.configs = args.configs or [str(ROOT / config) for config in CONFIGS]
    if (args.seconds_per_image is None) == (args.peak is None or args.share is None):
        raise ValueError('--seconds-per-image is needed, or else --peak and --share, and not all of them')
    if args.seconds_per_image and len(args.seconds_per_image) != len(args.configs):
        raise ValueError(
            f'--seconds-per-image has {len(args.seconds_per_image)} numbers, but there are {len(args.configs)} configs'
        )
    return args


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Estimate, print a table and write the JSON file; returns the rows."""
    args = parse_args(arguments)
    machine = Machine(args.loader, args.cores, args.inside * 1e9, args.between * 1e9, args.node)
    works = [read_workload(config) for config in args.configs]
    seconds = args.seconds_per_image or [seconds_on_paper(work, args.peak * 1e12, args.share) for work in works]
    rows = [
        pretraining_hours(work, machine, gpus, each)
        for work, each in zip(works, seconds, strict=True)
        for gpus in args.gpus
    ]
    print(hours_table(rows))
    print(
        f'\nOn paper, not measured. Steps of {TOTAL_BATCH} images; {args.loader:g} images/s of a core, {args.cores:g} '
        f'cores of a GPU; {args.inside:g} GB/s in a node of {args.node} GPUs, {args.between:g} GB/s between nodes'
    )
    for work, each in zip(works, seconds, strict=True):
        flops = (work.forward_flops + work.backward_flops) / 1e9
        print(f'{work.name}: {work.parameters / 1e6:.1f} M parameters, {flops:.1f} GFLOP and {each:.3g} s per image')
    if args.out:
        report = dict(
            environment=environment('cpu'),
            arguments={key: value for key, value in vars(args).items() if key not in ('configs', 'out')},
            workloads=[work._asdict() for work in works],
            rows=rows,
        )
        write_json(report, args.out)
    return rows


if __name__ == '__main__':
    main()
