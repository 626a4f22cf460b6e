"""Training hooks."""

from .checkpoint_hook import SafeCheckpointHook
from .checkpoint_keys_hook import CheckpointKeysHook
from .damaged_files_hook import DamagedFilesHook
from .finite_loss_hook import FiniteLossHook
from .interruption_hook import InterruptionHook
from .learning_hook import LearningHook
from .reconstruction_hook import ReconstructionHook
from .run_state_hook import RunStateHook

__all__ = [
    'CheckpointKeysHook',
    'DamagedFilesHook',
    'FiniteLossHook',
    'InterruptionHook',
    'LearningHook',
    'ReconstructionHook',
    'RunStateHook',
    'SafeCheckpointHook',
]
