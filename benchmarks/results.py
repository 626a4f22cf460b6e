"""Stored results: JSON files of runs, each with environment, commit and arguments."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from mm_ummae.analysis import DTYPES, write_json


def add_run(path: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Append a run to a file of runs, which is made if there is none; returns all its runs."""
    runs = json.loads(path.read_text())['runs'] if path.exists() else []
    runs.append(run)
    write_json(dict(runs=runs), path)
    return runs


def add_arguments(parser: argparse.ArgumentParser, batch: int | None, rounds: int) -> None:
    """Options that the comparisons share."""
    parser.add_argument(
        '--batch',
        type=int,
        default=batch,
        help=f'images of a batch (default: {batch or "16; 32 for loading, 1 for detectors"})',
    )
    parser.add_argument('--rounds', type=int, default=rounds, help='timed rounds (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=1, help='rounds before those (default: %(default)s)')
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=('cpu', 'cuda'), default=default, help='default: the GPU if there is one')
    parser.add_argument('--dtype', choices=tuple(DTYPES), default='float32', help='others: mixed precision')
    parser.add_argument('--threads', type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument('--out', type=Path, help='JSON file to append the run to')
    parser.add_argument('--plot', type=Path, help='PNG file to draw; with --out all runs of the file')
