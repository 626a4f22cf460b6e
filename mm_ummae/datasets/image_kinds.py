"""Images that are intact, but not as they were asked for, and notes on what is read of others."""

from __future__ import annotations

import logging
from functools import cache

from mmengine.logging import print_log


class ImageKindError(ValueError):
    """An intact image of a kind that was not asked for or that needs a further package; the message says what to do.

    That is its depth, its number of channels, its size or its compression.
    """


class MissingCodecError(ImageKindError):
    """A compression that needs a package which is not installed."""


@cache
def note(text: str) -> None:
    """Log once in a process.

    Args:
        text (str): Text.
    """
    print_log(f'{text} (logged once)', logger='current', level=logging.WARNING)
