"""Plots of results: bars of training steps, and the cost of pre-training over the image size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def step_figure(runs: Sequence[dict[str, Any]]) -> Figure:
    """Time and peak memory of steps as bars, a row of panels for each run.

    Args:
        runs (Sequence[dict[str, Any]]): Of ``python -m benchmarks.compare step``.
    """
    heights = [1 + len(run['networks']) for run in runs]
    figure = Figure(figsize=(10, 0.8 + sum(0.3 + 0.4 * height for height in heights)), layout='tight')
    rows = figure.subplots(len(runs), 2, squeeze=False, height_ratios=heights)
    for (times, memory), run in zip(rows, runs, strict=True):
        networks, arguments = run['networks'][::-1], run['arguments']  # bars begin at the bottom
        names = [network['name'] for network in networks]
        seconds = [median(network['seconds']) for network in networks]
        lower = [middle - min(network['seconds']) for middle, network in zip(seconds, networks, strict=True)]
        upper = [max(network['seconds']) - middle for middle, network in zip(seconds, networks, strict=True)]
        settings = f'{arguments["device"]}, {arguments["dtype"]}, batch {arguments["batch"]}'
        times.barh(names, seconds, xerr=[lower, upper], color='C0', ecolor='0.3')
        times.set_title(f'step time, seconds ({settings})', fontsize=10)
        memory.barh(names, [(network['memory'] or 0) / 1e9 for network in networks], color='C1')
        memory.set_title(f'peak memory, GB ({settings})', fontsize=10)
        memory.set_yticks([])
        for axis in (times, memory):
            axis.grid(axis='x', alpha=0.3)
    return figure


def cost_figure(runs: Sequence[dict[str, Any]]) -> Figure:
    """Seconds per image and peak memory of a step over the image size, one line for each method.

    Runs with the same encoder, batch, device and precision share two panels. What did not fit into memory is missing
    from its line.

    Args:
        runs (Sequence[dict[str, Any]]): Of ``python -m benchmarks.pretraining_cost``.
    """
    groups: dict[tuple, dict[str, list[tuple[int, float, float]]]] = {}
    for run in runs:
        lines = groups.setdefault(tuple(run['arguments'][key] for key in ('arch', 'batch', 'device', 'dtype')), {})
        for row in run['rows']:
            line = lines.setdefault(row['name'], [])
            if row['error'] is None:
                line.append((row['size'], median(taken_seconds(run, row)), row['memory'] / 1e9))
    names = list(dict.fromkeys(name for lines in groups.values() for name in lines))
    figure = Figure(figsize=(10, 3.6 * len(groups)), layout='tight')
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for axes, ((arch, batch, device, dtype), lines) in zip(panels, groups.items(), strict=True):
        settings = f'ViT {arch}, {device}, {dtype}'
        titles = f'seconds per image ({settings})', f'peak memory, GB, batch {batch} ({settings})'
        for i, (axis, title) in enumerate(zip(axes, titles, strict=True), 1):
            for name, line in lines.items():
                x, y = ([point[j] for point in sorted(line)] for j in (0, i))
                axis.plot(x, y, 'o-', color=f'C{names.index(name)}', label=name)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel('image size, pixels')
            axis.set_xticks(sorted({point[0] for line in lines.values() for point in line}))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    return figure


def taken_seconds(run: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """Seconds per image, one value a round: CPU time where a single thread does all the work, else wall time.

    CPU time leaves out when other processes had the core.
    """
    alone = (run['environment']['device'], run['environment']['threads']) == ('cpu', 1)
    return row['cpu_seconds' if alone else 'seconds']
