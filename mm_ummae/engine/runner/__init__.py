"""Runners."""

from .resumable_runner import ResumableRunner
from .sharded_runner import ShardedRunner

__all__ = ['ResumableRunner', 'ShardedRunner']
