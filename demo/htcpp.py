"""HTC++ against Mask R-CNN on the demo data, in equal time and from equal weights.

    python -m demo.htcpp [--seeds 0 1 2]

An iteration of HTC++ takes as long as several of Mask R-CNN, which is therefore trained for more iterations.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from mmengine.config import Config

from .chain import parse_args, pretrain, slug
from .make_data import make_demo_data
from .report import save_report, spread, write_json
from .screen import SCREEN, step
from .tasks import PRETRAIN, TASKS
from .timing import seconds_per_iteration
from .training import CONFIGS, run_test, run_training

DETECTION = TASKS['Mask R-CNN']
DETECTORS = {'HTC++': 'htcpp_um-swin-test_fpn_1xb8-200it_demo-128px.py', 'Mask R-CNN': DETECTION.config}
METRICS = {'box_ap': 'box AP', 'mask_ap': 'mask AP'}
WARMUP = 15  # iterations, in configs/_base_/schedules/demo_finetune.py


class LossSummary(NamedTuple):
    """Means of a loss over tenths of a training: the first, the highest of any, the last."""

    first: float
    highest: float
    last: float


def equal_time(iterations: int, data: Path, record: Path, force: bool) -> tuple[dict[str, int], dict[str, float]]:
    """Iterations of each detector that take as long as those of HTC++.

    Args:
        iterations (int): Of HTC++.
        data (Path): From :func:`make_demo_data`.
        record (Path): JSON file of the measurement. It is read if it exists: another measurement would give other
            iterations, and finished runs would not fit.
        force (bool): Measure again.
    Returns:
        tuple[dict[str, int], dict[str, float]]: Iterations, and seconds of one of each.
    """
    if force or not record.exists():
        configs = {name: Config.fromfile(CONFIGS / config) for name, config in DETECTORS.items()}
        for config in configs.values():
            config.merge_from_dict(DETECTION.data_options(data))
        write_json(record, seconds_per_iteration(configs))
    seconds = json.loads(record.read_text())
    return {name: round(iterations * seconds['HTC++'] / seconds[name]) for name in DETECTORS}, seconds


def run_detector(
    name: str, iterations: int, seed: int, folder: Path, data: Path, checkpoint: str, force: bool
) -> dict[str, Any]:
    """Train and evaluate a detector, HTC++ also with test-time augmentation.

    Args:
        name (str): Key of ``DETECTORS``.
        iterations (int): Of training.
        seed (int): Of new weights and of the order of the images.
        folder (Path): Folder of the run.
        data (Path): From :func:`make_demo_data`.
        checkpoint (str): Pre-trained weights of the backbone.
        force (bool): Re-run finished steps.
    Returns:
        dict[str, Any]: ``metrics`` and ``tta`` (key of ``METRICS`` -> percent), ``seconds``, ``iterations`` and
        ``scalars``, the file of the losses.
    """
    config = DETECTORS[name]
    options = {
        'randomness.seed': seed,
        'model.backbone.init_cfg.type': 'Pretrained',
        'model.backbone.init_cfg.checkpoint': checkpoint,
        'model.backbone.init_cfg.prefix': 'backbone',
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'param_scheduler.1.end': iterations,
        **DETECTION.data_options(data),
    }
    title = f'seed {seed}, {name}'
    run = run_training(title, config, folder, options, force, threads=1)
    result = dict(metrics=DETECTION.percent(run.metrics), seconds=run.seconds, iterations=iterations)
    if name == 'HTC++':  # its config has a tta_pipeline
        where = folder / 'tta'
        metrics = run_test(f'{title}, augmented test', config, run.checkpoint, where, options, ['--tta'], force)
        result['tta'] = DETECTION.percent(metrics)
    return result | dict(scalars=run.scalars)


def read_losses(scalars: str | Path) -> dict[str, list[float]]:
    """Losses of a training by name, from MMEngine's ``scalars.json``."""
    lines = [json.loads(line) for line in Path(scalars).read_text().splitlines()]
    lines = [line for line in lines if 'loss' in line]
    return {key: [line[key] for line in lines] for key in lines[0] if 'loss' in key}


def summarise(values: Sequence[float]) -> LossSummary:
    """Summary of a loss; a tenth has at least one value."""
    width = max(len(values) // 10, 1)
    means = [mean(values[i : i + width]) for i in range(len(values) - width + 1)]
    return LossSummary(means[0], max(means), means[-1])


def loss_table(losses: Mapping[str, Sequence[float]]) -> str:
    """Markdown table of the summaries, and the names of losses that are at their highest at the end."""
    summaries = {name: summarise(values) for name, values in losses.items()}
    rows = [f'| {name} | {" | ".join(f"{value:.3f}" for value in found)} |' for name, found in summaries.items()]
    risen = [name for name, found in summaries.items() if found.last >= found.highest]
    verdict = (
        f'At their highest at the end: {", ".join(risen)}.' if risen else 'Each loss ends below its highest tenth.'
    )
    return '\n'.join(
        ['| loss | first tenth | highest tenth | last tenth |', '|---|---:|---:|---:|', *rows, '', verdict]
    )


def save_loss_panels(losses: Mapping[str, Sequence[float]], path: Path) -> Path:
    """Plot each loss in a panel of its own."""
    columns = 4
    rows = -(-len(losses) // columns)
    figure = Figure(figsize=(3 * columns, 2 * rows), layout='tight')  # unlike pyplot's, without a display or state
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (name, values), axis in zip(losses.items(), axes, strict=False):  # in this order no axis is lost
        axis.plot(range(1, len(values) + 1), values)
        axis.set_ylim(bottom=0)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes:  # the remaining ones
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def detector_table(seeds: Sequence[Mapping[str, dict]]) -> str:
    """Markdown table of the detectors over the seeds, and how often and by how much HTC++ is ahead.

    Args:
        seeds (Sequence[Mapping[str, dict]]): For each seed ``{detector: result of run_detector}``.
    """
    lines = [
        f'| detector | iterations | training and test, s | {" | ".join(METRICS.values())} |',
        '|---|---|---|---|---|',
    ]
    for name in DETECTORS:
        runs = [seed[name] for seed in seeds]
        for kind, title in (('metrics', name), ('tta', f'{name}, augmented test')):
            if kind in runs[0]:
                cells = ' | '.join(spread([run[kind][key] for run in runs]) for key in METRICS)
                cost = f'{mean(run["seconds"] for run in runs):.0f}' if kind == 'metrics' else ''
                lines.append(f'| {title} | {runs[0]["iterations"]} | {cost} | {cells} |')
    ahead = []
    for key, metric in METRICS.items():
        leads = [seed['HTC++']['metrics'][key] - seed['Mask R-CNN']['metrics'][key] for seed in seeds]
        wins = sum(lead > 0 for lead in leads)
        ahead.append(f'{metric} in {wins} of {len(seeds)} seeds, by {spread(leads, sign="+")}')
    return '\n'.join([*lines, '', f'HTC++ is ahead of Mask R-CNN in {", in ".join(ahead)}.'])


def main(arguments: list[str] | None = None) -> None:
    """Train both detectors, compare them, write and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='a run of both detectors each (default: 0)')
    parser.add_argument('--iterations', type=int, default=200, help='of HTC++ (default: %(default)s)')
    parser.add_argument(
        '--checkpoint',
        help='weights to start from, with {seed} in the name for one file per seed (default: pre-train as in the demo)',
    )
    parser.add_argument('--resume', action='store_true', help='keep finished steps instead of re-running them')
    args = parse_args(parser, 'work_dirs/demo-htcpp', arguments)
    if args.iterations <= WARMUP:
        raise ValueError(f'--iterations is {args.iterations}, but it must be above {WARMUP}, the length of the warm-up')
    force, start = not args.resume, time.monotonic()
    with SCREEN:
        with step('data'):
            data = make_demo_data(args.data)
        with step('timing'):
            iterations, seconds = equal_time(args.iterations, data, args.out / 'timing.json', force)
        seeds = []
        for seed in args.seeds:
            folder = args.out / f'seed{seed}'
            if args.checkpoint:
                checkpoint = str(Path(args.checkpoint.format(seed=seed)).resolve())
            else:
                checkpoint = pretrain(PRETRAIN, seed, folder / 'pretrain', data, force=force).checkpoint
            seeds.append(
                {
                    name: run_detector(name, count, seed, folder / slug(name), data, checkpoint, force)
                    for name, count in iterations.items()
                }
            )
    losses = read_losses(seeds[0]['HTC++']['scalars'])
    plot = save_loss_panels(losses, args.out / 'losses.png')
    text = f'{detector_table(seeds)}\n\nLosses of HTC++, seed {args.seeds[0]} (`{plot}`):\n\n{loss_table(losses)}'
    save_report(text, dict(seconds_per_iteration=seconds, seeds=seeds), args.out)
    print(f'\n{text}\n\nreport in {args.out}, {(time.monotonic() - start) / 60:.1f} minutes in total')


if __name__ == '__main__':
    main()
