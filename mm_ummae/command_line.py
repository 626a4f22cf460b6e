"""Command lines of the tools: values of config options, and failures in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from mmengine.config import DictAction

from mm_ummae.checkpoints import CheckpointError
from mm_ummae.datasets.damaged import DataError

Result = TypeVar('Result')
# Errors whose message says what to do; others are mistakes in a program, which need their traceback
EXPECTED = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    CheckpointError,
    DataError,
)


class ToolParser(argparse.ArgumentParser):
    """Parser with ``--debug``, which every tool has (see :func:`one_line_errors`)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def add_config_options(self) -> None:
        """Add ``--cfg-options``."""
        self.add_argument(
            '--cfg-options',
            nargs='+',
            action=ConfigOptions,
            default={},
            metavar='KEY=VALUE',
            help='override config values: a.b.c=value',
        )


class ConfigOptions(DictAction):
    """MMEngine's ``--cfg-options``, which removes the spaces of values, for values that have some.

    A value with spaces is text unless it is in brackets (a list or tuple, as MMEngine reads it). So is a value in
    quotation marks of its own, also with commas: ``'data_root="/data/a, b"'``.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        text = val.strip()
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
        if quoted:
            return text[1:-1]
        if ' ' in text and text[:1] not in ('(', '['):
            return text
        return DictAction._parse_iterable(val)


def one_line_errors(main: Callable[[list[str]], Result]) -> Callable[[list[str] | None], Result]:
    """Turn the errors of a tool that say what to do into one line on standard error, and exit status 1.

    With ``--debug`` the traceback is shown.

    Args:
        main (Callable[[list[str]], Result]): Function of the tool, which takes the words of the command line.
    Returns:
        Callable[[list[str] | None], Result]: The same; without an argument it takes the command line of the process.
    """

    @wraps(main)
    def run(arguments: list[str] | None = None) -> Result:
        words = sys.argv[1:] if arguments is None else list(arguments)
        try:
            return main(words)
        except EXPECTED as error:
            if '--debug' in words:
                raise
            raise SystemExit(f'error: {error}') from error

    return run
