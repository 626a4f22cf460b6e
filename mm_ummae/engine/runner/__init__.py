"""Runners."""

from .sharded_runner import ShardedRunner

__all__ = ['ShardedRunner']
