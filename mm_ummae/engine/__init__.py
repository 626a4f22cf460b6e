"""Hooks, optimizer wrapper constructors and runners; importing this package registers them."""

from .hooks import (
    CheckpointKeysHook,
    DamagedFilesHook,
    FiniteLossHook,
    InterruptionHook,
    LearningHook,
    ReconstructionHook,
    RunStateHook,
    SafeCheckpointHook,
)
from .optimizers import LayerDecayOptimWrapperConstructor
from .runner import ResumableRunner, ShardedRunner

__all__ = [
    'CheckpointKeysHook',
    'DamagedFilesHook',
    'FiniteLossHook',
    'InterruptionHook',
    'LayerDecayOptimWrapperConstructor',
    'LearningHook',
    'ReconstructionHook',
    'ResumableRunner',
    'RunStateHook',
    'SafeCheckpointHook',
    'ShardedRunner',
]
