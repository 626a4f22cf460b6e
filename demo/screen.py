"""Progress of a demo's steps: animated on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_console = Console()
SCREEN = Progress(
    SpinnerColumn(),
    TextColumn('{task.description}: {task.fields[state]}', markup=False),
    TimeElapsedColumn(),
    console=_console,
    transient=True,
    disable=not _console.is_terminal,
)
"""Entered by the main function of a demo; steps in several threads have a line each."""


@contextmanager
def step(title: str, interval: float = 20.0) -> Iterator[Callable[[str], None]]:
    """Show a step while it runs, and print a line with its duration when it has finished.

    Args:
        title (str): Name of the step.
        interval (float): Seconds between two lines where the output is not a terminal. Default 20.
    Yields:
        Callable[[str], None]: Shows the current state.
    """
    start = printed = time.monotonic()
    task = SCREEN.add_task(title, state='…')

    def show(state: str) -> None:
        nonlocal printed
        SCREEN.update(task, state=state)
        if SCREEN.disable and time.monotonic() - printed >= interval:
            printed = time.monotonic()
            say(f'{title}: {state}')

    try:
        yield show
    finally:
        SCREEN.remove_task(task)
    say(f'{title}: done in {time.monotonic() - start:.0f} s')


def say(text: str) -> None:
    """Print a line, above those of running steps."""
    _console.print(text, markup=False, highlight=False, soft_wrap=True)


def keep_log_off() -> None:
    """Keep MMEngine's log of the networks that this process builds off the screen, but for warnings."""
    if not MMLogger.check_instance_created('demo'):
        MMLogger.get_instance('demo', log_level='WARNING')
