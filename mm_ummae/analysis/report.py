"""Reports: where measurements were made, tables and files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from mm_ummae.compatibility import HOSTS, installed_version
from mm_ummae.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def environment(device: str) -> dict[str, Any]:
    """Where measurements are made: hardware, versions, commit and time.

    Args:
        device (str): What runs the network.
    Returns:
        dict[str, Any]: For JSON.
    """
    found: dict[str, Any] = dict(
        date=datetime.now().astimezone().isoformat(timespec='seconds'),
        device=device,
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
    )
    if device == 'cuda':
        found |= dict(
            gpu=torch.cuda.get_device_name(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            tf32=dict(
                convolutions=torch.backends.cudnn.allow_tf32, matrix_products=torch.backends.cuda.matmul.allow_tf32
            ),
        )
    versions = {name: installed_version(distributions) for name, (distributions, *_) in HOSTS.items()}
    found['versions'] = dict(python=platform.python_version(), mm_ummae=__version__, **versions)
    found['commit'] = _commit()
    return found


def _cpu_name() -> str:
    """Name of the model where Linux tells it, else of the architecture."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Commit of this project's checkout, with ``-dirty`` if files differ from it; None where there is none."""
    if not (ROOT / '.git').exists():
        return None
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout that it does not trust
        return None


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text and the others are numbers."""
    lines = [titles, ['---', *['---:'] * (len(titles) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write_json(report: dict, path: str | Path) -> Path:
    """Write a report; folders are made."""
    text = json.dumps(report, indent=2) + '\n'
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
