"""Images of measured training steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure


def save_training_plot(reports: Sequence[dict[str, Any]], path: Path) -> Path:
    """Seconds and memory of steps as bars, a row of panels for each report.

    Args:
        reports (Sequence[dict[str, Any]]): Of :func:`~mm_ummae.analysis.training.benchmark_training`, with steps.
        path (Path): PNG file to write.
    Raises:
        ValueError: If there is no report.
    """
    if not reports:
        raise ValueError('reports is empty, but there must be a report with steps to draw')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(10, 0.8 + sum(0.7 + 0.4 * len(report['networks']) for report in reports)), layout='tight')
    heights = [1 + len(report['networks']) for report in reports]
    for row, report in zip(
        figure.subplots(len(reports), 2, squeeze=False, height_ratios=heights), reports, strict=True
    ):
        _draw(report, *row)
    figure.savefig(path, dpi=110)
    return path


def _draw(report: dict[str, Any], times: Any, memory: Any) -> None:
    networks, arguments = report['networks'][::-1], report['arguments']  # bars begin at the bottom
    names = [network['name'] for network in networks]
    seconds = [median(network['seconds']['step']) for network in networks]
    ends = [(min(network['seconds']['step']), max(network['seconds']['step'])) for network in networks]
    spread = [
        [middle - low for middle, (low, _) in zip(seconds, ends, strict=True)],
        [high - middle for middle, (_, high) in zip(seconds, ends, strict=True)],
    ]
    settings = f'{arguments["device"]}, {arguments["dtype"]}, batch {arguments["batch"]}'
    times.barh(names, seconds, xerr=spread, color='C0', ecolor='0.3')
    times.set_title(f'seconds of a step ({settings})', fontsize=10)
    memory.barh(names, [(network['memory'] or 0) / 1e9 for network in networks], color='C1')
    memory.set_title(f'GB ({settings})', fontsize=10)
    memory.set_yticks([])
    for axis in (times, memory):
        axis.grid(axis='x', alpha=0.3)
