"""HTC++ against Mask R-CNN on the generated data: the same time, the same starting weights.

An iteration of HTC++ costs several of Mask R-CNN's, which therefore gets as many more of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mm_ummae.analysis import time_interleaved

from demo.report import spread
from demo.tasks import TASKS
from demo.training import run_test, run_training

HTCPP = 'configs/htc/htcpp_um-swin-test_fpn_1xb8-200it_demo-128px.py'
MASK_RCNN = f'configs/demo/{TASKS["Mask R-CNN"].config}'
DETECTORS = {'HTC++': HTCPP, 'Mask R-CNN': MASK_RCNN}
METRICS = {'box AP': 'coco/bbox_mAP', 'mask AP': 'coco/segm_mAP'}


@dataclass(frozen=True)
class Losses:
    """How a loss went.

    Attributes:
        first (float): Mean over the first tenth of what was logged.
        highest (float): Highest mean over any tenth.
        last (float): Mean over the last tenth.
    """

    first: float
    highest: float
    last: float


def seconds_per_iteration(configs: dict[str, Config], repeats: int = 5) -> dict[str, float]:
    """Time training iterations of several configs in turns, on one thread: data, forward, backward and step.

    Args:
        configs (dict[str, Config]): By name.
        repeats (int): Turns that count, after one that does not. Default 5.
    Returns:
        dict[str, float]: Median seconds of each. The data are loaded in this process.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = {}
    for name, cfg in configs.items():
        cfg = Config(cfg.to_dict())
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            cfg.model.backbone.init_cfg = None
            model = MODELS.build(cfg.model).train()
            batches = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
        steps[name] = partial(_step, model, torch.optim.AdamW(model.parameters(), lr=1e-4), batches)
    seconds = time_interleaved(steps, repeats)
    torch.set_num_threads(threads)
    return {name: median(times) for name, times in seconds.items()}


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[dict]) -> None:
    data = model.data_preprocessor(next(batches), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def schedule_options(cfg: Config, iterations: int) -> list[str]:
    """``--cfg-options`` that make a demo fine-tuning so long; the warm-up stays."""
    warmup = cfg.param_scheduler[0].end
    values = {
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'param_scheduler.1.T_max': iterations - warmup,
        'param_scheduler.1.end': iterations,
    }
    return [f'{key}={value}' for key, value in values.items()]


def run_detector(
    name: str, iterations: int, seed: int, folder: Path, data: Path, root: Path, start: str | None, again: bool
) -> dict:
    """Train one detector, evaluate it, and once more with test-time augmentation where its config has it.

    Args:
        name (str): Key of ``DETECTORS``.
        iterations (int): Of training.
        seed (int): Of new weights and of the order of the images.
        folder (Path): Where its run goes.
        data (Path): From :func:`make_demo_data`.
        root (Path): Of the repository.
        start (str, optional): Pre-trained weights of the backbone; None starts from scratch.
        again (bool): False keeps what finished before.
    Returns:
        dict: ``metrics`` and ``tta`` (row -> percent), ``seconds``, ``iterations``, ``scalars`` and ``checkpoint``.
    """
    config = root / DETECTORS[name]
    cfg = Config.fromfile(config)
    options = [f'randomness.seed={seed}', *TASKS['Mask R-CNN'].data_options(data), *schedule_options(cfg, iterations)]
    if start is None:
        options.append('model.backbone.init_cfg=None')
    else:
        init_cfg = dict(type='Pretrained', checkpoint=start, prefix='backbone')
        options += [f'model.backbone.init_cfg.{key}={value}' for key, value in init_cfg.items()]
    title = f'[seed {seed}] {name}'
    run = run_training(title, root / 'tools/train.py', config, folder, options, again, threads=1)
    result = dict(metrics=_percent(run.metrics), seconds=run.seconds, iterations=iterations)
    result |= dict(scalars=run.scalars, checkpoint=run.checkpoint)
    if 'tta_pipeline' in cfg:
        test = root / 'tools/test.py'
        where = folder / 'tta'
        metrics = run_test(f'{title}, augmented test', test, config, run.checkpoint, where, options, ['--tta'], again)
        result['tta'] = _percent(metrics)
    return result


def read_losses(scalars: str | Path) -> dict[str, list[float]]:
    """Every loss that MMEngine logged in training, by name."""
    lines = [json.loads(line) for line in Path(scalars).read_text().splitlines()]
    lines = [line for line in lines if 'loss' in line]
    return {key: [line[key] for line in lines] for key in lines[0] if 'loss' in key}


def summarise(values: Sequence[float]) -> Losses:
    """First, highest and last mean over a tenth of the values, at least one of them."""
    width = max(len(values) // 10, 1)
    means = [mean(values[i : i + width]) for i in range(len(values) - width + 1)]
    return Losses(means[0], max(means), means[-1])


def loss_table(losses: dict[str, list[float]]) -> str:
    """Markdown table of :func:`summarise`, and which losses are not below their height at the end, if any."""
    lines = ['| loss | first tenth | highest tenth | last tenth |', '|---|---:|---:|---:|']
    summaries = {name: summarise(values) for name, values in losses.items()}
    for name, found in summaries.items():
        lines.append(f'| {name} | {found.first:.3f} | {found.highest:.3f} | {found.last:.3f} |')
    risen = [name for name, found in summaries.items() if found.last >= found.highest]
    verdict = f'{", ".join(risen)} did not fall.' if risen else 'Each ends below its height.'
    return '\n'.join([*lines, '', verdict])


def save_losses(losses: dict[str, list[float]], path: Path) -> Path:
    """One small panel a loss.

    Args:
        losses (dict[str, list[float]]): Of :func:`read_losses`.
        path (Path): PNG file to write.
    """
    columns = 4
    rows = -(-len(losses) // columns)
    figure = Figure(figsize=(3 * columns, 2 * rows), layout='tight')  # not pyplot's: no screen, no state
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (name, values), axis in zip(losses.items(), axes, strict=False):  # in this order no axis is lost
        axis.plot(range(1, len(values) + 1), values)
        axis.set_ylim(bottom=0)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in list(axes):  # what is left
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def detector_table(seeds: list[dict[str, dict]]) -> str:
    """Markdown table of the detectors over the seeds, and in how many of them HTC++ is ahead.

    Args:
        seeds (list[dict[str, dict]]): For each seed ``{detector: result of run_detector}``.
    """
    lines = ['| detector | iterations | training and test, s | ' + ' | '.join(METRICS) + ' |']
    lines.append('|---' * (3 + len(METRICS)) + '|')
    for name in DETECTORS:
        runs = [seed[name] for seed in seeds]
        for kind, title in (('metrics', name), ('tta', f'{name}, augmented test')):
            if kind in runs[0]:
                cells = [spread([run[kind][metric] for run in runs]) for metric in METRICS]
                cost = f'{mean(run["seconds"] for run in runs):.0f}' if kind == 'metrics' else ''
                lines.append(f'| {title} | {runs[0]["iterations"]} | {cost} | {" | ".join(cells)} |')
    ahead = [
        f'{metric} in {sum(a > b for a, b in _pairs(seeds, metric))} of {len(seeds)} seeds, by '
        f'{spread([a - b for a, b in _pairs(seeds, metric)], sign="+")}'
        for metric in METRICS
    ]
    return '\n'.join([*lines, '', f'HTC++ is ahead of Mask R-CNN in {", in ".join(ahead)}.'])


def _pairs(seeds: list[dict[str, dict]], metric: str) -> list[tuple[float, float]]:
    return [tuple(seed[name]['metrics'][metric] for name in DETECTORS) for seed in seeds]


def _percent(metrics: dict[str, float]) -> dict[str, float]:
    return {row: 100 * metrics[key] for row, key in METRICS.items()}
