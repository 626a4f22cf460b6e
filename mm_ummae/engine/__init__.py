"""Hooks; importing this package registers them."""

from .checkpoint_keys_hook import CheckpointKeysHook

__all__ = ['CheckpointKeysHook']
