"""Run one training as a user would, in a process of its own, and read what MMEngine logged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

# MMEngine's line: [epoch][iteration/all] ... eta: 0:04:39 ... loss: 0.7985
PROGRESS = re.compile(r'\((train|val)\).*?\[ *(\d+)/(\d+)\].*?eta: ([\d:]+)(?:.*?loss: ([\d.]+))?')
EPOCH = re.compile(r'\(train\) +\[(\d+)\]\[')


@dataclass
class TrainingResult:
    """What a run left.

    Attributes:
        seconds (float): Wall time of the whole process, start-up and evaluation included.
        peak_memory_gb (float): Largest resident memory of the training process.
        metrics (dict[str, float]): Last value of every number in ``scalars.json``.
        checkpoint (str): Newest checkpoint.
        scalars (str): ``scalars.json`` of the run.
    """

    seconds: float
    peak_memory_gb: float
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str = ''
    scalars: str = ''


class Screen:
    """One line that is rewritten on a terminal, and now and then a new one elsewhere.

    Several may be open at once, in threads: on a terminal they share the line.

    Args:
        title (str): Start of each line.
        every (float): Seconds between lines where the output is no terminal.
    """

    _open: ClassVar[dict[str, str]] = {}

    def __init__(self, title: str, every: float = 20.0) -> None:
        self.title, self.every = title, every
        self.start = self.last = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def show(self, text: str) -> None:
        """Show the newest state."""
        now = time.monotonic()
        if self.terminal:
            self._open[self.title] = text
            line = '  |  '.join(f'{title}  {state}' for title, state in list(self._open.items()))
            # A line that wraps could not be rewritten
            print(f'\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}', end='', flush=True)
        elif now - self.last >= self.every:
            self.last = now
            print(f'{self.title}  {text}', flush=True)

    def close(self, text: str) -> None:
        """Show the end; it stays."""
        self._open.pop(self.title, None)
        end = f'{self.title}  {text}  ({time.monotonic() - self.start:.0f} s)'
        print(f'\r\x1b[K{end}' if self.terminal else end, flush=True)


def run_training(
    title: str,
    script: Path,
    config: Path,
    work_dir: Path,
    options: Sequence[str] = (),
    again: bool = True,
    threads: int | None = None,
) -> TrainingResult:
    """Train with ``tools/train.py`` in a child process, showing progress.

    Args:
        title (str): For the screen.
        script (Path): ``tools/train.py``.
        config (Path): Config file.
        work_dir (Path): Folder of the run. ``output.txt`` in it gets all the process printed.
        options (Sequence[str]): For ``--cfg-options``.
        again (bool): False returns the result of an earlier run with the same options, if it finished. Default True.
        threads (int, optional): CPU threads of the process. Default: PyTorch's choice.
    Returns:
        TrainingResult: Times, memory and metrics.
    Raises:
        RuntimeError: If the process fails; its last lines are in the message.
    """
    command = [sys.executable, str(script), str(config), '--work-dir', str(work_dir)]
    command += ['--cfg-options', *options] if options else []
    record = work_dir / 'result.json'
    stored = None if again else _stored(title, record, command)
    if stored is not None:
        return TrainingResult(**stored['result'])
    work_dir.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    seconds, peak = _run(command, work_dir / 'output.txt', Screen(title), threads)
    runs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    scalars = runs[-1]
    metrics: dict[str, float] = {}
    for line in scalars.read_text().splitlines():
        metrics.update({key: value for key, value in json.loads(line).items() if isinstance(value, (int, float))})
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    result = TrainingResult(seconds, peak, metrics, checkpoint, str(scalars))
    record.write_text(json.dumps(dict(command=command, result=asdict(result)), indent=2))
    return result


def run_test(
    title: str,
    script: Path,
    config: Path,
    checkpoint: str,
    work_dir: Path,
    options: Sequence[str] = (),
    flags: Sequence[str] = (),
    again: bool = True,
) -> dict[str, float]:
    """Evaluate with ``tools/test.py`` in a child process, on one thread.

    Args:
        title (str): For the screen.
        script (Path): ``tools/test.py``.
        config (Path): Config file.
        checkpoint (str): What to evaluate.
        work_dir (Path): Folder of the run. ``output.txt`` in it gets all the process printed.
        options (Sequence[str]): For ``--cfg-options``.
        flags (Sequence[str]): Other words of the command line, ``--tta`` say.
        again (bool): False returns the metrics of an earlier run with the same options, if it finished. Default True.
    Returns:
        dict[str, float]: The metrics.
    Raises:
        RuntimeError: If the process fails; its last lines are in the message.
    """
    command = [sys.executable, str(script), str(config), checkpoint, '--work-dir', str(work_dir), *flags]
    command += ['--cfg-options', *options] if options else []
    record = work_dir / 'result.json'
    stored = None if again else _stored(title, record, command)
    if stored is not None:
        return stored['metrics']
    work_dir.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    _run(command, work_dir / 'output.txt', Screen(title), 1)
    newest = max(work_dir.glob('*/*.json'))  # named by time; MMEngine writes the metrics of a test there
    metrics = json.loads(newest.read_text())
    record.write_text(json.dumps(dict(command=command, metrics=metrics), indent=2))
    return metrics


def _stored(title: str, record: Path, command: list[str]) -> dict | None:
    """What an earlier run of the same command left, if it finished."""
    stored = json.loads(record.read_text()) if record.exists() else None
    if stored is None or stored['command'] != command:
        return None
    Screen(title).close('done before')
    return stored


def _run(command: list[str], log: Path, screen: Screen, threads: int | None) -> tuple[float, float]:
    start, epoch = time.monotonic(), ''
    env = os.environ | ({} if threads is None else {'OMP_NUM_THREADS': str(threads)})
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        try:
            for line in process.stdout:
                file.write(line)
                found = EPOCH.search(line)
                epoch = f'epoch {found[1]} ' if found else epoch
                found = PROGRESS.search(line)
                if found:
                    mode, step, steps, eta, loss = found.groups()
                    state = f'{epoch}iteration {step}/{steps}, loss {loss}' if mode == 'train' else 'evaluating'
                    screen.show(f'{state}, {eta} to go')
            # wait4 also tells what this one child used, which a plain wait does not.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:  # an interrupt must not leave the child behind
                process.kill()
                process.wait()
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        raise RuntimeError(f'{" ".join(command)} failed with status {process.returncode}; all is in {log}\n{tail}')
    screen.close('done')
    return time.monotonic() - start, usage.ru_maxrss / 2**20  # ru_maxrss is in KiB
