"""Fixtures of all tests of the comparisons."""

from __future__ import annotations

from functools import cache

import pytest
from mmengine.config.utils import load

from tests.conftest import no_default_scope  # its module also limits the threads

__all__ = ['no_default_scope']
_load = cache(load)


@pytest.fixture(autouse=True)
def cached_metafiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine parses every metafile of a host for every config that comes from it: here once."""
    monkeypatch.setattr('mmengine.config.utils.load', _load)
