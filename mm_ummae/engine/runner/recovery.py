"""Choice of the checkpoint that a run resumes from: the newest one that is whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from mm_ummae.checkpoints.files import read_checkpoint
from mm_ummae.engine.hooks.checkpoint_hook import POINTER
from mm_ummae.engine.hooks.finite_loss_hook import non_finite

PATTERNS = ('epoch_*.pth', 'iter_*.pth', 'interrupted_iter_*.pth')


def find_checkpoints(folders: Sequence[Path]) -> list[Path]:
    """Checkpoints of a run in its folders, newest first; the one that ``last_checkpoint`` names comes first of all."""
    files = [path for folder in folders for pattern in PATTERNS for path in folder.glob(pattern)]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, _number(path)), reverse=True)
    pointer = folders[0] / POINTER
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if named:
        # The folder may have been moved or copied since
        here = folders[0] / Path(named).name
        first = here if here.exists() else Path(named)
        files = [first, *(path for path in files if path != first and path.name != first.name)]
    return files


def choose_checkpoint(folders: Sequence[Path]) -> str | None:
    """Path of the newest checkpoint that can be resumed from; the main process chooses for all.

    Args:
        folders (Sequence[Path]): Work folder, and others that hold checkpoints of the run.
    Returns:
        str | None: The path; None if there is no checkpoint at all.
    Raises:
        ValueError: If there are checkpoints, but none is whole.
    """
    answer: list = [None, None]
    if is_main_process():
        for part in [path for folder in folders for path in folder.glob('.*.part')]:
            part.unlink()
            _warn(f'removed {part}, which a killed run did not finish')
        try:
            answer[0] = _choose(folders)
        except ValueError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1]:
        raise ValueError(answer[1])
    return answer[0]


def _choose(folders: Sequence[Path]) -> str | None:
    pointer, candidates = folders[0] / POINTER, find_checkpoints(folders)
    if candidates and not (pointer.is_file() and pointer.read_text().strip()):
        state = 'is empty' if pointer.is_file() else 'is missing'
        _warn(f'{pointer} {state}: the newest checkpoint is looked for in {folders[0]}')
    problems = []
    for path in candidates:
        problem = _problem(path)
        if not problem:
            if problems:
                _warn(f'resuming from {path}, the newest checkpoint that is whole')
            return str(path)
        problems.append(problem)
        _warn(f'not resumed: {problem}')
    if problems:
        raise ValueError(
            f'{folders[0]} holds {len(problems)} checkpoints, but none can be resumed from: {"; ".join(problems)}. '
            'Restore one of them, or start anew in another work_dir (--work-dir)'
        )
    return None


def _problem(path: Path) -> str:
    """Why a file cannot be resumed from, or ''."""
    try:
        content = read_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    if not isinstance(content, dict) or 'optimizer' not in content or 'iter' not in (content.get('meta') or {}):
        return f'the checkpoint {path} holds no run, but weights only'
    bad = non_finite(content['state_dict'])
    return f'the checkpoint {path} holds {len(bad)} tensors that are not finite, such as {bad[0]}' if bad else ''


def _number(path: Path) -> int:
    digits = path.stem.rpartition('_')[2]
    return int(digits) if digits.isdigit() else -1


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
