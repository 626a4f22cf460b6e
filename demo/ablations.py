"""Ablations on the demo data: decoder positions, Secondary Masking, UM-MAE against SimMIM.

    python -m demo.ablations [--seeds 0 1 2] [--arms ...] [--tasks ...]

Each arm is a pre-training of the demo with a few settings changed, followed by the demo's classification and detection
from its encoder. The arms of a seed share data, schedules and the seed of the initial weights. About half an hour per
seed on one core; finished steps are kept, so that another call continues.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from .chain import parse_args, slug
from .make_data import make_demo_data
from .report import ROWS, machine, spread, write_json
from .screen import SCREEN, keep_log_off, step
from .tasks import PRETRAIN, PRETRAIN_SIMMIM, PROBED, TASKS
from .timing import seconds_per_iteration
from .training import CONFIGS, run_training

with redirect_stdout(io.StringIO()):  # hosts print notes when they are imported
    from mm_ummae.apis import get_model
    from mm_ummae.datasets.image_files import load_batch

    from .probe import probe


@dataclass(frozen=True)
class Arm:
    """A setting to compare.

    Attributes:
        name (str): For tables.
        config (str): File in ``configs/demo``.
        options (Mapping[str, Any]): Changes of the config.
        equal_time (bool): Train as long as UM-MAE takes, instead of as many epochs.
    """

    name: str
    config: str = PRETRAIN
    options: Mapping[str, Any] = field(default_factory=dict)
    equal_time: bool = False


BASELINE = 'um-mae'
ARMS = {
    BASELINE: Arm('UM-MAE, SM 0.25, aligned'),
    'um-mae_published-positions': Arm(
        'UM-MAE, positions as published', options={'model.neck.published_positions': True}
    ),
    'um-mae_sm-0': Arm('UM-MAE, SM 0', options={'model.secondary_ratio': 0.0}),
    'um-mae_sm-0.5': Arm('UM-MAE, SM 0.5', options={'model.secondary_ratio': 0.5}),
    'simmim_equal-epochs': Arm('SimMIM (random), equal epochs', PRETRAIN_SIMMIM),
    'simmim_equal-time': Arm('SimMIM (random), equal time', PRETRAIN_SIMMIM, equal_time=True),
}
FINE_TUNINGS = ('classification', 'Mask R-CNN')
METRICS = {'loss': 'reconstruction loss'} | {
    key: f'{ROWS[key][0]}, {ROWS[key][1]}' for key in ('linear', 'top1', 'box_ap')
}

Seeds = Sequence[Mapping[str, Mapping[str, float]]]
"""For each seed ``{arm: {metric: value}}``."""


def pretrain_epochs(arm: Arm, epochs: int, seconds: Mapping[str, float]) -> int:
    """Epochs of an arm: ``epochs``, or the whole ones, at least one, that fit in the time of UM-MAE.

    Args:
        arm (Arm): The arm.
        epochs (int): Epochs of UM-MAE.
        seconds (Mapping[str, float]): Config file -> seconds of an iteration.
    """
    return max(round(epochs * seconds[PRETRAIN] / seconds[arm.config]), 1) if arm.equal_time else epochs


@torch.no_grad()
def reconstruction_loss(arm: Arm, checkpoint: str, images: Path) -> float:
    """Loss on images that training never saw, with masks that depend on the arm's kind of masking only.

    Args:
        arm (Arm): The arm.
        checkpoint (str): Checkpoint of its pre-training.
        images (Path): Folder of ``*.jpg``.
    Returns:
        float: Mean over the images.
    """
    config = Config.fromfile(CONFIGS / arm.config)
    config.merge_from_dict(dict(arm.options))
    model = get_model(config, pretrained=checkpoint)
    batch = load_batch(sorted(images.glob('*.jpg')), min(model.backbone.img_size))
    inputs = model.data_preprocessor(batch, training=False)['inputs']
    mask = model.draw_mask(len(inputs), tuple(inputs.shape[2:]), generator=torch.Generator().manual_seed(0))
    return float(model(inputs, mode='loss', mask=mask)['loss'])


def run_arm(
    key: str, seed: int, epochs: int, folder: Path, data: Path, tasks: Sequence[str] = FINE_TUNINGS
) -> dict[str, float]:
    """Pre-train, evaluate and fine-tune an arm; finished steps are kept.

    Args:
        key (str): Key of ``ARMS``.
        seed (int): Of initial weights, order of the images and masks.
        epochs (int): Of the pre-training, see :func:`pretrain_epochs`.
        folder (Path): Folder of its runs.
        data (Path): From :func:`make_demo_data`.
        tasks (Sequence[str]): Keys of ``TASKS`` to fine-tune. Default: classification and Mask R-CNN.
    Returns:
        dict[str, float]: The measured ones of ``METRICS``, and ``seconds`` of pre-training.
    """
    arm, title, common = ARMS[key], f'seed {seed}, {ARMS[key].name}', {'randomness.seed': seed}
    options = {
        **common,
        **arm.options,
        'train_dataloader.dataset.data_root': data / 'imagenet',
        'train_cfg.max_epochs': epochs,
        # A tenth is warm-up, as in the demo; MMEngine accepts fractions of an epoch here
        'param_scheduler.0.end': epochs / 10,
        'param_scheduler.1.begin': epochs / 10,
        'param_scheduler.1.end': epochs,
        'default_hooks.checkpoint.interval': epochs,
    }
    run = run_training(f'{title}, pre-training', arm.config, folder / 'pretrain', options, threads=1)
    with step(f'{title}, reconstruction loss and frozen features'):
        result = dict(
            seconds=run.seconds,
            loss=reconstruction_loss(arm, run.checkpoint, data / 'coco' / 'val2017'),
            linear=probe(PROBED, run.checkpoint, data / 'imagenet', seed)['linear'],
        )
    for name in tasks:
        task = TASKS[name]
        options = {**common, 'model.backbone.init_cfg.checkpoint': run.checkpoint, **task.data_options(data)}
        tuned = run_training(f'{title}, {name}', task.config, folder / slug(name), options, threads=1)
        result |= task.percent(tuned.metrics)
    return result


def ablation_tables(seeds: Seeds, epochs: Mapping[str, int]) -> str:
    """Markdown tables of the arms and of their differences from UM-MAE, seed by seed; – stands for not measured.

    Args:
        seeds (Seeds): Metrics.
        epochs (Mapping[str, int]): Pre-training epochs of each arm.
    """
    head = ' | '.join(METRICS.values())
    lines = [f'| pre-training | epochs | {head} |', '|---' * (len(METRICS) + 2) + '|']
    for key, arm in ARMS.items():
        cells = [_spread(metric, _values(seeds, key, metric)) for metric in METRICS]
        lines.append(f'| {arm.name} | {epochs[key]} | {" | ".join(cells)} |')
    lines += ['', f'Difference from "{ARMS[BASELINE].name}", seed by seed (losses of another kind do not compare):', '']
    lines += [f'| pre-training | {head} |', '|---' * (len(METRICS) + 1) + '|']
    for key, arm in ARMS.items():
        if key != BASELINE:
            cells = [_spread(metric, _differences(seeds, key, metric), '+') for metric in METRICS]
            lines.append(f'| {arm.name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def save_ablation_plot(seeds: Seeds, path: Path) -> Path:
    """One panel for each metric, one row for each arm: every seed as a dot, the mean as a bar."""
    figure = Figure(figsize=(13, 3.2), layout='tight')  # unlike pyplot's, without a display or state
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for row, (key, arm) in enumerate(ARMS.items()):
            values = _values(seeds, key, metric)
            if not _comparable(arm, metric):
                axis.text(0.5, row, 'another loss', transform=axis.get_yaxis_transform(), ha='center', va='center')
            elif values:
                colour = 'tab:blue' if arm.config == PRETRAIN else 'tab:orange'
                axis.plot(values, [row] * len(values), 'o', color=colour, alpha=0.6)
                axis.plot([mean(values)] * 2, [row - 0.3, row + 0.3], color='black')
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(ARMS)), [arm.name for arm in ARMS.values()], fontsize=8)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _comparable(arm: Arm, metric: str) -> bool:
    """Reconstruction losses compare within one algorithm: an MSE of standardised units, an L1 of plain pixels."""
    return metric != 'loss' or arm.config == ARMS[BASELINE].config


def _values(seeds: Seeds, key: str, metric: str) -> list[float]:
    """A metric in every seed; empty if one is missing, because a mean over fewer seeds would not compare."""
    values = [seed.get(key, {}).get(metric) for seed in seeds]
    return [] if None in values else values


def _differences(seeds: Seeds, key: str, metric: str) -> list[float]:
    values, baseline = _values(seeds, key, metric), _values(seeds, BASELINE, metric)
    if not (values and baseline and _comparable(ARMS[key], metric)):
        return []
    return [value - base for value, base in zip(values, baseline, strict=True)]


def _spread(metric: str, values: Sequence[float], sign: str = '') -> str:
    return spread(values, 3 if metric == 'loss' else 1, sign)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing; write and print tables, plot and numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--epochs', type=int, default=10, help='of pre-training (default: %(default)s)')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS), help='default: all')
    parser.add_argument('--tasks', nargs='*', choices=FINE_TUNINGS, default=FINE_TUNINGS, help='default: both')
    args = parse_args(parser, 'work_dirs/ablations', arguments)
    if args.epochs < 1:
        raise ValueError(f'--epochs is {args.epochs}, but it must be at least 1')
    # The measurements of earlier calls are kept: arms and tasks can be run one after the other
    record = args.out / 'ablations.json'
    results = json.loads(record.read_text()) if record.exists() else dict(seeds={})
    keep_log_off()
    with SCREEN:
        with step('data'):
            data = make_demo_data(args.data)
        if 'seconds_per_iteration' not in results:
            with step('timing'):
                results['seconds_per_iteration'] = _time_pretraining(data)
        seconds = results['seconds_per_iteration']
        epochs = results['epochs'] = {key: pretrain_epochs(arm, args.epochs, seconds) for key, arm in ARMS.items()}
        environment = machine()
        for seed in args.seeds:
            for key in args.arms:
                measured = run_arm(key, seed, epochs[key], args.out / f'seed{seed}' / key, data, args.tasks)
                results['seeds'].setdefault(str(seed), {}).setdefault(key, {}).update(measured)
                write_json(record, results | dict(environment=environment))
    seeds = list(results['seeds'].values())
    text = ablation_tables(seeds, epochs)
    (args.out / 'ablations.md').write_text(text + '\n')
    save_ablation_plot(seeds, args.out / 'ablations.png')
    print(f'\n{text}\n\nresults in {args.out}')


def _time_pretraining(data: Path) -> dict[str, float]:
    configs = {name: Config.fromfile(CONFIGS / name) for name in (PRETRAIN, PRETRAIN_SIMMIM)}
    for config in configs.values():
        config.merge_from_dict({'train_dataloader.dataset.data_root': str(data / 'imagenet')})
    return seconds_per_iteration(configs)


if __name__ == '__main__':
    main()
