"""Environment, tables and JSON files of measurements."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.utils.dl_utils import collect_env

from mm_ummae.compatibility import HOSTS, installed_version
from mm_ummae.version import __version__

# Of MMEngine's environment: neither the hardware nor a version
LEFT_OUT = ('numpy_random_seed', 'PyTorch compiling details', 'CUDA_HOME')


def spread(values: Sequence[float]) -> str:
    """Median with the smallest and the largest value."""
    middle, smallest, largest = (
        f'{value:.0f}' if value >= 100 else f'{value:.3g}' for value in (median(values), min(values), max(values))
    )
    return f'{middle} ({smallest} to {largest})'


def _multiply_adds(row: dict[str, Any]) -> str:
    counts = row['multiply_adds']
    total = sum(counts.values())
    return f'{total / 1e9:.1f} ({", ".join(f"{100 * count / total:.0f} % {name}" for name, count in counts.items())})'


# Columns of results: title -> key of a row, and text
COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    'parameters (M)': ('parameters', lambda row: f'{row["parameters"] / 1e6:.1f}'),
    'multiply-adds (G)': ('multiply_adds', _multiply_adds),
    'GFLOPs per image': ('flops', lambda row: f'{row["flops"]["step"] / row["batch"] / 1e9:.1f}'),
    'seconds': ('seconds', lambda row: spread(row['seconds'])),
    'images/s': ('images_per_second', lambda row: spread(row['images_per_second'])),
    'images/s without loader': (
        'images_per_second_without_loader',
        lambda row: spread(row['images_per_second_without_loader']),
    ),
    'peak memory (GB)': ('memory', lambda row: '–' if row['memory'] is None else f'{row["memory"] / 1e9:.2f}'),
}


def environment(device: str) -> dict[str, Any]:
    """Hardware, versions and time of a measurement: MMEngine's ``collect_env`` with CPU, threads, versions, commit.

    Args:
        device (str): Device of the network, ``cpu`` or ``cuda``.
    Returns:
        dict[str, Any]: For JSON.
    """
    versions = {name: installed_version(distributions) for name, (distributions, *_) in HOSTS.items()}
    return dict(
        date=datetime.now().astimezone().isoformat(timespec='seconds'),
        device=device,
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        versions=dict(python=platform.python_version(), mm_ummae=__version__, **versions),
        system={key: value for key, value in collect_env().items() if key not in LEFT_OUT},
        commit=commit(Path(__file__).resolve().parents[2]),
    )


def commit(root: Path) -> str | None:
    """Commit of a checkout, with ``-dirty`` if files differ from it; None where the package is not in a checkout."""
    if not (root / '.git').exists():  # an environment may lie in the repository of something else
        return None
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    """Model name from Linux, elsewhere the architecture."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose other columns are numbers."""
    lines = [titles, ['---', *['---:'] * (len(titles) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Measured rows as a Markdown table, with a column for each quantity that the first row has.

    Of values by round it shows the median, with the smallest and the largest.
    """
    columns = {title: text for title, (key, text) in COLUMNS.items() if key in rows[0]}
    return markdown_table(
        ['name', *columns], [[row['name'], *(text(row) for text in columns.values())] for row in rows]
    )


def write_json(report: dict, path: str | Path) -> None:
    """Write a report; missing folders are made."""
    text = json.dumps(report, indent=2) + '\n'
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
