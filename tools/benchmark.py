"""Measure what networks cost: seconds, operations and memory of predictions and training steps, and loading of images.

    python tools/benchmark.py CONFIG [CONFIG ...] --shape 800 1280 --out benchmark.json      # predictions
    python tools/benchmark.py --set pretraining --measure step --dtype bfloat16              # UM-MAE and its rivals
    python tools/benchmark.py --set dense --measure step --shape 800 1280 --batch 1
    python tools/benchmark.py CONFIG --measure loading
    python tools/benchmark.py CONFIG --measure training                                      # loader and steps

Weights and images are made here: a config of this project or of a host (mmdet::...) is all that it takes. What is
compared is timed in turn, round by round, so that ratios hold on a machine that does other things too.

--measure is one of
  prediction   one image through a whole detector, segmentor or classifier (the default)
  forward, backward, step
               the loss of a batch; with gradients; with AdamW. Several may be given
  loading      the training pipelines on JPEG files, images per second of one core
  training     steps that a data loader feeds, images per second
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mm_ummae.analysis import DTYPES, benchmark, network_table, write_json
from mm_ummae.analysis.end_to_end import benchmark_end_to_end, end_to_end_table
from mm_ummae.analysis.loading import MMPRETRAIN_MAE, benchmark_loading, loading_table
from mm_ummae.analysis.networks import Entry
from benchmarks.plot import save_training_plot
from benchmarks.profile import profile_networks, profile_table
from mm_ummae.analysis.training import COMPARISON, MEASURES, SETS, benchmark_training, target_table, targets, training_table

# By what is measured, where the command line says nothing
SHAPES = dict(prediction=(800, 1280), loading=(256, 256), training=(256, 256))
BATCHES = dict(loading=32, training=16)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config file, or mmdet::path of a host')
    parser.add_argument('--set', choices=tuple(SETS), help='networks to compare, instead of configs')
    parser.add_argument(
        '--measure',
        nargs='+',
        choices=('prediction', *MEASURES, 'loading', 'training'),
        default=['prediction'],
        help='what (default: prediction)',
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the images in pixels (default: 800 1280 for predictions, else 256 256)',
    )
    parser.add_argument('--batch', type=int, help='images of a step (default: 16; 32 for loading)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: the GPU if there is one')
    parser.add_argument('--threads', type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument('--rounds', type=int, default=5, help='times that each is timed (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=1, help='rounds before those (default: %(default)s)')
    parser.add_argument(
        '--dtype', choices=tuple(DTYPES), default='float32', help='others: mixed precision (default: %(default)s)'
    )
    parser.add_argument('--compile', action='store_true', help='compile the losses with torch.compile')
    parser.add_argument('--no-memory', action='store_true', help='leave the memory of steps out')
    parser.add_argument('--profile', action='store_true', help='also tell where the time of steps goes')
    parser.add_argument('--workers', type=int, default=1, help='loader processes of training (default: %(default)s)')
    parser.add_argument(
        '--candidates',
        type=int,
        default=1000,
        help='boxes that a detector passes on to non-maximum suppression in predictions (default: %(default)s)',
    )
    parser.add_argument('--flops-only', action='store_true', help='of predictions, count and do not time')
    parser.add_argument('--out', default='benchmark.json', help='file to write (default: %(default)s)')
    parser.add_argument('--add', action='store_true', help='to the runs that are in the file')
    parser.add_argument('--plot', help='PNG file to draw steps in, all of the file')
    args = parser.parse_args(arguments)
    if args.threads is not None and args.threads < 1:
        raise ValueError(f'--threads is {args.threads}, but at least one is needed')
    if bool(args.configs) == bool(args.set):
        raise ValueError(f'configs are {args.configs} and --set is {args.set}, but one of both is needed')
    if args.measure[0] in ('loading', 'training') and args.shape and args.shape[0] != args.shape[1]:
        raise ValueError(f'--shape is {args.shape}, but crops of pre-training are square')
    if len(args.measure) > 1 and not set(args.measure) <= set(MEASURES):
        raise ValueError(f'--measure is {" ".join(args.measure)}, but only {", ".join(MEASURES)} go together')
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    args.shape = tuple(args.shape or SHAPES.get(args.measure[0], (256, 256)))
    args.batch = BATCHES.get(args.measure[0], 16) if args.batch is None else args.batch
    return args


def main(arguments: list[str] | None = None) -> dict:
    """Measure, print the tables and write everything; returns what was measured."""
    args = parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    kinds: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], str]]] = dict(
        prediction=measure_predictions, loading=measure_loading, training=measure_training
    )
    report, text = kinds.get(args.measure[0], measure_steps)(args)
    report = dict(measure=args.measure, **report)
    print(text)
    path = Path(args.out)
    runs = json.loads(path.read_text())['runs'] if args.add and path.exists() else []
    runs.append(report)
    write_json(dict(runs=runs) if args.add else report, path)
    if args.plot:
        save_training_plot([run for run in runs if 'step' in run['measure']], Path(args.plot))
    print(f'\neverything is in {path}')
    return report


def entries(args: argparse.Namespace) -> tuple[Entry, ...]:
    """What the command line names."""
    if args.set:
        return SETS[args.set]
    return tuple(map(Entry.of, args.configs))


def measure_predictions(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """One image at a time."""
    report = benchmark(
        SETS[args.set] if args.set else args.configs,
        args.shape,
        device=args.device,
        dtype=args.dtype,
        rounds=args.rounds,
        warmup=args.warmup,
        candidates=args.candidates,
        flops_only=args.flops_only,
    )
    return report, network_table(report['networks'])


def measure_steps(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Training steps, or parts of them."""
    report = benchmark_training(
        entries(args),
        args.shape,
        args.batch,
        measures=args.measure,
        device=args.device,
        dtype=args.dtype,
        compiled=args.compile,
        rounds=args.rounds,
        warmup=args.warmup,
        memory=not args.no_memory,
    )
    tables = [training_table(report)]
    if entries(args) == COMPARISON and 'step' in args.measure:
        tables.append(target_table(targets(report)))
    if args.profile:
        options = dict(shape=args.shape, batch=args.batch, device=args.device, dtype=args.dtype)
        report['profiles'] = profile_networks(entries(args), options)
        tables.append(profile_table(report['profiles']))
    return report, '\n\n'.join(tables)


def measure_loading(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Images per second of a core; MMPretrain's MAE first, to compare with."""
    configs = [MMPRETRAIN_MAE, *(entry.config for entry in entries(args) if entry.config != MMPRETRAIN_MAE)]
    report = benchmark_loading(configs, [args.shape[0]], batch_size=args.batch, rounds=args.rounds, warmup=args.warmup)
    return report, loading_table(report)


def measure_training(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Steps that a data loader feeds."""
    report = benchmark_end_to_end(
        entries(args),
        args.shape[0],
        args.batch,
        workers=args.workers,
        device=args.device,
        dtype=args.dtype,
        compiled=args.compile,
        rounds=args.rounds,
        warmup=args.warmup,
    )
    return report, end_to_end_table(report)


if __name__ == '__main__':
    main()
