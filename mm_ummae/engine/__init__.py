"""Hooks; importing this package registers them."""

from .checkpoint_keys_hook import CheckpointKeysHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .reconstruction_hook import ReconstructionHook

__all__ = ['CheckpointKeysHook', 'LayerDecayOptimWrapperConstructor', 'ReconstructionHook']
