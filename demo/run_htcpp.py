"""HTC++ on the generated data: train it, look at its losses, compare it with a Mask R-CNN that trains as long.

Both start from the same weights: those of --checkpoint, or of a pre-training of the demo that is made first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from mmengine.config import Config

from demo.detectors import DETECTORS, detector_table, loss_table, read_losses, run_detector, save_losses, seconds_per_iteration
from demo.tasks import PRETRAIN, TASKS
from demo.training import Screen, run_training
from demo.make_data import make_demo_data

ROOT = Path(__file__).resolve().parents[1]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='one run of both detectors each (default: 0)')
    parser.add_argument('--iterations', type=int, default=200, help='of HTC++ (default: %(default)s)')
    parser.add_argument('--checkpoint', help='weights to start from; with {seed} in it, one file a seed')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo-htcpp'), help='folder (default: %(default)s)')
    parser.add_argument(
        '--data', type=Path, default=Path('data/demo'), help='folder of the data (default: %(default)s)'
    )
    parser.add_argument('--resume', action='store_true', help='keep trainings that finished before')
    args = parser.parse_args(arguments)
    if args.iterations < 20:
        raise ValueError(f'--iterations is {args.iterations}, but the warm-up alone takes 15: it must be at least 20')
    return args


def pretrain(seed: int, folder: Path, data: Path, again: bool) -> str:
    """The demo's pre-training; returns its checkpoint."""
    options = [f'randomness.seed={seed}', f'train_dataloader.dataset.data_root={data / "imagenet"}']
    config = ROOT / 'configs/demo' / PRETRAIN
    return run_training(
        f'[seed {seed}] pre-training', ROOT / 'tools/train.py', config, folder, options, again
    ).checkpoint


def equal_time(iterations: int, data: Path, record: Path, again: bool) -> tuple[dict[str, int], dict[str, float]]:
    """Iterations of each detector in the time that HTC++ needs for its own, and the seconds of one of each.

    They are written to ``record``. Unless they are measured ``again`` what is there counts: another measurement would
    give other iterations, and no training that finished would fit.
    """
    if again or not record.exists():
        configs = {name: Config.fromfile(ROOT / config) for name, config in DETECTORS.items()}
        for cfg in configs.values():
            options = (option.split('=', 1) for option in TASKS['Mask R-CNN'].data_options(data))
            cfg.merge_from_dict(dict(options))
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(seconds_per_iteration(configs)))
    seconds = json.loads(record.read_text())
    return {name: round(iterations * seconds['HTC++'] / seconds[name]) for name in DETECTORS}, seconds


def main(arguments: list[str] | None = None) -> None:
    """Train and compare."""
    args = parse_args(arguments)
    start = time.monotonic()
    out = args.out.resolve()
    data = make_demo_data(args.data)
    screen = Screen('timing')
    iterations, seconds = equal_time(args.iterations, data, out / 'timing.json', not args.resume)
    screen.close(', '.join(f'{name} {seconds[name]:.2f} s an iteration' for name in DETECTORS))
    seeds = []
    for seed in args.seeds:
        folder = out / f'seed{seed}'
        if args.checkpoint:
            weights = str(Path(args.checkpoint.format(seed=seed)).resolve())
        else:
            weights = pretrain(seed, folder / 'pretrain', data, not args.resume)
        slugs = {name: name.lower().replace(' ', '-').replace('+', 'p') for name in DETECTORS}
        seeds.append(
            {
                name: run_detector(name, count, seed, folder / slugs[name], data, ROOT, weights, not args.resume)
                for name, count in iterations.items()
            }
        )
    losses = read_losses(seeds[0]['HTC++']['scalars'])
    picture = save_losses(losses, out / 'losses.png')
    text = f'{detector_table(seeds)}\n\nLosses of HTC++, seed {args.seeds[0]}:\n\n{loss_table(losses)}\n'
    (out / 'report.md').write_text(text)
    (out / 'report.json').write_text(json.dumps(dict(seconds_per_iteration=seconds, seeds=seeds), indent=2))
    print(f'\n{text}\n* losses: `{picture}`\n* this report: `{out / "report.md"}`')
    print(f'{(time.monotonic() - start) / 60:.1f} minutes in all')


if __name__ == '__main__':
    main()
