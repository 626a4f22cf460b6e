"""Hooks, optimizer wrapper constructors and runners; importing this package registers them."""

from .hooks import CheckpointKeysHook, ReconstructionHook
from .optimizers import LayerDecayOptimWrapperConstructor
from .runner import ShardedRunner

__all__ = ['CheckpointKeysHook', 'LayerDecayOptimWrapperConstructor', 'ReconstructionHook', 'ShardedRunner']
