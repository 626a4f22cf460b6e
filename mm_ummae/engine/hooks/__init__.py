"""Training hooks."""

from .checkpoint_keys_hook import CheckpointKeysHook
from .reconstruction_hook import ReconstructionHook

__all__ = ['CheckpointKeysHook', 'ReconstructionHook']
