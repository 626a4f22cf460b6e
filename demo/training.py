"""Training and test runs as child processes; each keeps its log and its result in its folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import write_json
from .screen import say, step

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
CONFIGS = ROOT / 'configs' / 'demo'

# Line of MMEngine's log: Epoch(train) [epoch][iteration/iterations] ... eta: 0:04:39 ... loss: 0.7985
PROGRESS = re.compile(
    r'\((?P<mode>train|val|test)\) +(?:\[(?P<epoch>\d+)\])?\[ *(?P<done>\d+)/(?P<all>\d+)\]'
    r'.*?eta: (?P<eta>[\d:]+)(?:.*?loss: (?P<loss>[\d.]+))?'
)


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        seconds (float): Wall time of the process, start-up and evaluation included.
        peak_memory_gb (float): Peak resident memory of the process.
        metrics (dict[str, float]): Last value of every number in ``scalars.json``.
        checkpoint (str): Last checkpoint.
        scalars (str): Path of ``scalars.json``.
    """

    seconds: float
    peak_memory_gb: float
    metrics: dict[str, float]
    checkpoint: str = ''
    scalars: str = ''


def run_training(
    title: str,
    config: str,
    work_dir: Path,
    options: Mapping[str, Any],
    force: bool = False,
    threads: int | None = None,
) -> TrainingResult:
    """Train with ``tools/train.py``.

    Args:
        title (str): Name of the step on the screen.
        config (str): File in ``configs/demo``.
        work_dir (Path): Folder of the run; ``output.txt`` in it is the log of the process.
        options (Mapping[str, Any]): Config key -> value, for ``--cfg-options``.
        force (bool): Re-run a finished run. Default False: its result is read if the command was the same.
        threads (int, optional): CPU threads of the process. Default: PyTorch's choice.
    Returns:
        TrainingResult: Time, memory, metrics and files.
    Raises:
        RuntimeError: If the process fails; the message has its last lines.
    """
    command = [str(TOOLS / 'train.py'), str(CONFIGS / config), '--work-dir', str(work_dir), *_cfg_options(options)]
    return TrainingResult(**_run_once(title, command, work_dir, _training_files, force, threads))


def run_command(
    title: str, data: Path, folder: Path, model: str, options: Sequence[str] = (), threads: int | None = None
) -> TrainingResult:
    """Pre-train with ``python -m mm_ummae pretrain``; a finished run is kept.

    Args:
        title (str): See :func:`run_training`.
        data (Path): Folder of images.
        folder (Path): Gets ``output.txt``, the log of the process, and the files of the command in ``run``.
        model (str): See ``mm_ummae.pretrain``.
        options (Sequence[str]): Further words of the command line. Default: none, so that the rules choose.
        threads (int, optional): See :func:`run_training`.
    Returns:
        TrainingResult: Its checkpoint is the backbone alone.
    Raises:
        RuntimeError: If the process fails; the message has its last lines.
    """
    words = ['-m', 'mm_ummae', 'pretrain', '--data', str(data), '--out', str(folder / 'run'), '--model', model]
    return TrainingResult(**_run_once(title, [*words, *options], folder, _command_files, False, threads))


def run_test(
    title: str,
    config: str,
    checkpoint: str,
    work_dir: Path,
    options: Mapping[str, Any],
    flags: Sequence[str] = (),
    force: bool = False,
) -> dict[str, float]:
    """Evaluate with ``tools/test.py``, on one thread.

    Args:
        title (str): Name of the step on the screen.
        config (str): File in ``configs/demo``.
        checkpoint (str): Checkpoint to evaluate.
        work_dir (Path): See :func:`run_training`.
        options (Mapping[str, Any]): See :func:`run_training`.
        flags (Sequence[str]): Other arguments, such as ``--tta``.
        force (bool): See :func:`run_training`.
    Returns:
        dict[str, float]: Metrics.
    Raises:
        RuntimeError: If the process fails; the message has its last lines.
    """
    command = [str(TOOLS / 'test.py'), str(CONFIGS / config), checkpoint, '--work-dir', str(work_dir), *flags]
    return _run_once(title, [*command, *_cfg_options(options)], work_dir, _test_files, force, threads=1)['metrics']


def _cfg_options(options: Mapping[str, Any]) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())] if options else []


def _training_files(work_dir: Path) -> dict[str, Any]:
    scalars = max(work_dir.glob('*/vis_data/scalars.json'))  # folders are named by time: an earlier run left its own
    metrics: dict[str, float] = {}
    for line in scalars.read_text().splitlines():
        metrics.update({key: value for key, value in json.loads(line).items() if isinstance(value, int | float)})
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    return dict(metrics=metrics, checkpoint=checkpoint, scalars=str(scalars))


def _command_files(folder: Path) -> dict[str, Any]:
    out = folder / 'run'
    return _training_files(out / 'run') | dict(checkpoint=str(out / 'backbone.pth'))


def _test_files(work_dir: Path) -> dict[str, Any]:
    return dict(metrics=json.loads(max(work_dir.glob('*/*.json')).read_text()))


def _run_once(
    title: str,
    command: list[str],
    work_dir: Path,
    read: Callable[[Path], dict[str, Any]],
    force: bool,
    threads: int | None,
) -> dict[str, Any]:
    """Run a command unless it has finished in this folder before; its result is in ``result.json``."""
    record = work_dir / 'result.json'
    if record.exists() and not force:
        stored = json.loads(record.read_text())
        if stored['command'] == command:
            say(f'{title}: finished before')
            return stored['result']
    work_dir.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    seconds, peak_memory_gb = _run(title, [sys.executable, *command], work_dir / 'output.txt', threads)
    result = dict(seconds=seconds, peak_memory_gb=peak_memory_gb, **read(work_dir))
    write_json(record, dict(command=command, result=result))
    return result


def _run(title: str, command: list[str], log: Path, threads: int | None) -> tuple[float, float]:
    """Seconds and peak memory in GiB of a process."""
    start, peak = time.monotonic(), 0
    env = os.environ | ({} if threads is None else {'OMP_NUM_THREADS': str(threads)})
    with step(title) as show, log.open('w') as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        try:
            for line in process.stdout:
                file.write(line)
                peak = max(peak, _peak_memory(process.pid))
                found = PROGRESS.search(line)
                if found:
                    show(_state(**found.groupdict()))
            process.wait()
        finally:  # without effect on a process that has ended; an interrupt must not leave it running
            process.kill()
            process.wait()
        if process.returncode:
            file.flush()
            tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
            raise RuntimeError(
                f'{" ".join(command)} failed with status {process.returncode}; the whole log is {log}\n{tail}'
            )
    return time.monotonic() - start, peak / 2**20


def _peak_memory(pid: int) -> int:
    """Peak resident memory of a running process in KiB, so far; 0 once it has ended.

    The resource usage that ``wait4`` returns would not do: it is at least that of this process at the fork.
    """
    found = re.search(r'VmHWM:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())
    return int(found[1]) if found else 0


def _state(mode: str, epoch: str | None, done: str, all: str, eta: str, loss: str | None) -> str:
    text = f'epoch {epoch}, ' if epoch else ''
    if mode == 'train':
        return f'{text}iteration {done}/{all}, loss {loss}, {eta} left'
    return f'{text}evaluation {done}/{all}, {eta} left'
