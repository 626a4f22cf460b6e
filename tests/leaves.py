"""Moved to tests/configs/leaves.py."""

from tests.configs.leaves import *  # noqa: F403
from tests.configs.leaves import LEAVES

IDS = [path.stem for path in LEAVES]
