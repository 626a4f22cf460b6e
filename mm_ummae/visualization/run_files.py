"""What a training run leaves in its work folder: log, scalars, sheets, config, checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

ENVIRONMENT = re.compile(r'^ {4}([\w .]+): (.*)$')  # a line of MMEngine's environment
SHEET = re.compile(r'(.+)_(\d+)\.png')  # of LocalVisBackend


@dataclass
class RunFiles:
    """Content of a work folder; what is missing is empty or None.

    Args:
        work_dir (Path): The folder.
        losses (list[dict]): Logged lines of training, by iteration: ``step``, ``epoch``, ``loss``, ``lr``, ...
        learning (list[dict]): Lines of :class:`~mm_ummae.engine.LearningHook` by epoch, names without ``learning/``.
        sheets (dict[int, Path]): Reconstructions by epoch.
        config (Config, optional): Of the last start.
        checkpoint (Path, optional): The newest.
        environment (dict[str, str]): Versions that the log names.
        warnings (list[str]): Those of the logs, each once.
        starts (int): Number of times that the run was started.
    """

    work_dir: Path
    losses: list[dict[str, Any]] = field(default_factory=list)
    learning: list[dict[str, Any]] = field(default_factory=list)
    sheets: dict[int, Path] = field(default_factory=dict)
    config: Config | None = None
    checkpoint: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    starts: int = 0


def read_run(work_dir: str | Path) -> RunFiles:
    """Read a work folder.

    A run that was resumed has a folder for each start; of what two of them logged at the same place, the later counts.

    Args:
        work_dir (str | Path): The folder.
    Returns:
        RunFiles: Its content.
    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
    """
    work_dir = Path(work_dir)
    folders = sorted(path.parent for path in work_dir.glob('*/vis_data'))  # named by the time of the start
    if not folders:
        raise FileNotFoundError(f'{work_dir} holds no run: a work folder of training has folders */vis_data')
    found, losses, learning = RunFiles(work_dir, starts=len(folders)), {}, {}
    for folder in folders:
        for record in _records(folder / 'vis_data' / 'scalars.json'):
            if 'learning/rank' in record:
                learning[record['step']] = {name.removeprefix('learning/'): value for name, value in record.items()}
            elif 'loss' in record:
                losses[record['step']] = record
        for path in (folder / 'vis_data' / 'vis_image').glob('*.png'):
            name = SHEET.fullmatch(path.name)
            if name and name[1] == 'reconstruction':
                found.sheets[int(name[2])] = path
        for path in folder.glob('*.log'):
            text = path.read_text(errors='replace')
            found.environment |= _environment(text)
            found.warnings += _warnings(text)
        if (folder / 'vis_data' / 'config.py').is_file():
            found.config = Config.fromfile(folder / 'vis_data' / 'config.py')
    found.losses, found.learning = ([lines[step] for step in sorted(lines)] for lines in (losses, learning))
    found.sheets = dict(sorted(found.sheets.items()))
    found.warnings = list(dict.fromkeys(found.warnings))
    found.checkpoint = _checkpoint(work_dir)
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    """Lines of scalars.json; the last one of a run that was killed may be half written."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _environment(log: str) -> dict[str, str]:
    """Versions and devices below MMEngine's heading; lines about the compilation are left out."""
    part = log.partition('System environment:')[2].partition('-' * 20)[0]
    lines = [ENVIRONMENT.match(line) for line in part.splitlines()]
    return {line[1]: line[2] for line in lines if line and line[1] != 'PyTorch compiling details'}


def _warnings(log: str) -> list[str]:
    """Warnings without time and name, except those about MMEngine's own old names."""
    texts = [line.partition(' - WARNING - ')[2] for line in log.splitlines() if ' - WARNING - ' in line]
    return [text for text in texts if 'deprecated in future' not in text]


def _checkpoint(work_dir: Path) -> Path | None:
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        for path in (named, work_dir / named.name):  # the folder may have been moved
            if path.is_file():
                return path
    return max(work_dir.glob('*.pth'), key=lambda path: path.stat().st_mtime, default=None)
