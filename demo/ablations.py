"""Ablations on the generated data: decoder positions, Secondary Masking, UM-MAE against SimMIM.

Each arm is a pre-training of the demo with a few settings changed, then the demo's classification and detection
from its encoder. All arms of a seed share initial encoder weights' seed, data and schedules.
"""

from __future__ import annotations

from ast import literal_eval
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain import get_model
from torch import Tensor, nn

from mm_ummae.analysis import time_interleaved
from mm_ummae.apis.inference import load_batch, load_model

from demo.probe import probe
from demo.report import ROWS, spread
from demo.tasks import PRETRAIN, PRETRAIN_SIMMIM, PROBED, TASKS
from demo.training import run_training


@dataclass(frozen=True)
class Arm:
    """One setting to compare.

    Attributes:
        name (str): For tables.
        config (str): File in ``configs/demo``.
        options (tuple[str, ...]): For ``--cfg-options``.
        equal_time (bool): Train as long as UM-MAE takes, instead of as many epochs.
        loss (str): What its reconstruction loss is; losses of one kind compare.
    """

    name: str
    config: str = PRETRAIN
    options: tuple[str, ...] = ()
    equal_time: bool = False
    loss: str = 'MSE, standardised units'


BASELINE = 'UM-MAE, SM 0.25, aligned'
L1 = 'L1, plain pixels'
ARMS = {
    'um-mae': Arm(BASELINE),
    'um-mae_published-positions': Arm(
        'UM-MAE, positions as published', options=('model.neck.published_positions=True',)
    ),
    'um-mae_sm-0': Arm('UM-MAE, SM 0', options=('model.secondary_ratio=0.0',)),
    'um-mae_sm-0.5': Arm('UM-MAE, SM 0.5', options=('model.secondary_ratio=0.5',)),
    'simmim_equal-epochs': Arm('SimMIM (random), equal epochs', PRETRAIN_SIMMIM, loss=L1),
    'simmim_equal-time': Arm('SimMIM (random), equal time', PRETRAIN_SIMMIM, equal_time=True, loss=L1),
}
FINE_TUNINGS = ('classification', 'Mask R-CNN')
METRICS = ('loss', 'linear', 'top1', 'box_ap')
TITLES = {'loss': 'reconstruction loss'} | {key: f'{title}, {unit}' for key, (title, unit) in ROWS.items()}


def seconds_per_step(configs: Path, batch_size: int = 64, repeats: int = 5) -> dict[str, float]:
    """Time one optimisation step of each algorithm, in turns, on one thread.

    Args:
        configs (Path): ``configs/demo``.
        batch_size (int): Images a step. Default 64, the demo's.
        repeats (int): Turns; the fastest counts, because other work can only slow a step. Default 5.
    Returns:
        dict[str, float]: Config file -> seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randn(batch_size, 3, 128, 128)
    steps = {}
    for name in (PRETRAIN, PRETRAIN_SIMMIM):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = get_model(Config.fromfile(configs / name), pretrained=False, device='cpu').train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        steps[name] = partial(_step, model, optimizer, images)
    seconds = time_interleaved(steps, repeats)
    torch.set_num_threads(threads)
    return {name: min(times) for name, times in seconds.items()}


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    optimizer.zero_grad()
    model(images, mode='loss')['loss'].backward()
    optimizer.step()


def pretrain_epochs(arm: Arm, epochs: int, seconds: dict[str, float]) -> int:
    """Epochs of an arm: ``epochs``, or as many whole ones as fit in UM-MAE's time, at least one."""
    return max(round(epochs * seconds[PRETRAIN] / seconds[arm.config]), 1) if arm.equal_time else epochs


@torch.no_grad()
def reconstruction_loss(config: Path, checkpoint: str, options: tuple[str, ...], pictures: Path) -> float:
    """Loss on images that training never saw, with masks that depend on the arm's masking only.

    Args:
        config (Path): Of the pre-training.
        checkpoint (str): Its checkpoint.
        options (tuple[str, ...]): The arm's, ``key=value``.
        images (Path): Folder of ``*.jpg``.
    Returns:
        float: Mean over the images.
    """
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({key: literal_eval(value) for key, value in (option.split('=') for option in options)})
    model = load_model(cfg, checkpoint, 'cpu')
    batch = load_batch(sorted(pictures.glob('*.jpg')), min(model.backbone.img_size))
    inputs = model.data_preprocessor(batch, training=False)['inputs']
    mask = model.draw_mask(len(inputs), tuple(inputs.shape[2:]), generator=torch.Generator().manual_seed(0))
    return float(model(inputs, mode='loss', mask=mask)['loss'])


def run_arm(
    slug: str, seed: int, epochs: int, folder: Path, data: Path, root: Path, tasks: tuple[str, ...] = FINE_TUNINGS
) -> dict[str, float]:
    """Pre-train, evaluate and fine-tune one arm; steps that finished before are kept.

    Args:
        slug (str): Key of ``ARMS``.
        seed (int): Of initial weights, order of the images and masks.
        epochs (int): Of this arm, see :func:`pretrain_epochs`.
        folder (Path): Where its runs go.
        data (Path): From :func:`make_demo_data`.
        root (Path): Of the repository.
        tasks (tuple[str, ...]): Keys of the demo's ``TASKS`` to fine-tune. Default: classification and Mask R-CNN.
    Returns:
        dict[str, float]: Those ``METRICS`` that were measured, and ``seconds`` of pre-training.
    """
    arm, train, configs = ARMS[slug], root / 'tools' / 'train.py', root / 'configs' / 'demo'
    title, common = f'[seed {seed}] {arm.name}', [f'randomness.seed={seed}']
    schedule = {
        'train_cfg.max_epochs': epochs,
        # A tenth is warm-up, as in the demo; MMEngine takes parts of an epoch here
        'param_scheduler.0.end': epochs / 10,
        'param_scheduler.1.begin': epochs / 10,
        'param_scheduler.1.T_max': epochs * 9 / 10,
        'param_scheduler.1.end': epochs,
        'default_hooks.checkpoint.interval': epochs,
        'train_dataloader.dataset.data_root': data / 'imagenet',
    }
    options = [*common, *arm.options, *(f'{key}={value}' for key, value in schedule.items())]
    run = run_training(f'{title}: pre-training', train, configs / arm.config, folder / 'pretrain', options, False, 1)
    result = {
        'seconds': run.seconds,
        'loss': reconstruction_loss(configs / arm.config, run.checkpoint, arm.options, data / 'coco' / 'val2017'),
        'linear': probe(PROBED, run.checkpoint, data / 'imagenet', seed)['linear'],
    }
    start = f'model.backbone.init_cfg.checkpoint={run.checkpoint}'
    for name in tasks:
        task = TASKS[name]
        options = [*common, start, *task.data_options(data)]
        work_dir = folder / name.lower().replace(' ', '-')
        tuned = run_training(f'{title}: {name}', train, configs / task.config, work_dir, options, False, 1)
        result |= task.percent(tuned.metrics)
    return result


def ablation_table(seeds: list[dict[str, dict[str, float]]], epochs: dict[str, int]) -> str:
    """Markdown tables: each arm over the seeds, and its difference from UM-MAE seed by seed; – is not measured.

    Args:
        seeds (list[dict[str, dict[str, float]]]): For each seed ``{arm: metrics}``.
        epochs (dict[str, int]): Pre-training epochs of each arm.
    """
    head = ' | '.join(TITLES[key] for key in METRICS)
    lines = [f'| pre-training | epochs | {head} |', '|---' * (len(METRICS) + 2) + '|']
    for slug, arm in ARMS.items():
        cells = [spread(_values(seeds, slug, key), 3 if key == 'loss' else 1) for key in METRICS]
        lines.append(f'| {arm.name} | {epochs[slug]} | {" | ".join(cells)} |')
    lines += ['', f'Difference from "{BASELINE}", seed by seed (losses of another kind do not compare):', '']
    lines += [f'| pre-training | {head} |', '|---' * (len(METRICS) + 1) + '|']
    for slug, arm in ARMS.items():
        if arm.name == BASELINE:
            continue
        cells = []
        for key in METRICS:
            comparable = key != 'loss' or arm.loss == ARMS['um-mae'].loss
            pairs = zip(_values(seeds, slug, key), _values(seeds, 'um-mae', key), strict=False) if comparable else ()
            cells.append(spread([ours - baseline for ours, baseline in pairs], 3 if key == 'loss' else 1, '+'))
        lines.append(f'| {arm.name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def save_ablation_plot(seeds: list[dict[str, dict[str, float]]], path: Path) -> Path:
    """One panel a metric, one row an arm: every seed as a dot, the mean as a bar.

    Args:
        seeds (list[dict[str, dict[str, float]]]): For each seed ``{arm: metrics}``.
        path (Path): PNG file to write.
    """
    figure = Figure(figsize=(13, 3.2), layout='tight')  # not pyplot's: no screen, no state
    axes = figure.subplots(1, len(METRICS), sharey=True)
    names = [arm.name for arm in ARMS.values()]
    for axis, key in zip(axes, METRICS, strict=True):
        for row, (slug, arm) in enumerate(ARMS.items()):
            if key == 'loss' and arm.loss != ARMS['um-mae'].loss:
                axis.text(0.5, row, 'another loss', transform=axis.get_yaxis_transform(), ha='center', va='center')
                continue
            values = _values(seeds, slug, key)
            if not values:
                continue
            axis.plot(
                values, [row] * len(values), 'o', color='tab:blue' if 'UM' in arm.name else 'tab:orange', alpha=0.6
            )
            axis.plot([mean(values)] * 2, [row - 0.3, row + 0.3], color='black')
        axis.set_title(TITLES[key], fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _values(seeds: list[dict[str, dict[str, float]]], slug: str, key: str) -> list[float]:
    """A metric in every seed, or nothing where it was not measured in all of them."""
    values = [seed.get(slug, {}).get(key) for seed in seeds]
    return [] if None in values else values
