"""Checkpoints: safe files, conversion between the published parameter names and ours, strict loading."""

from . import mmengine_loaders  # registers them
from .conversion import convert_checkpoint, to_ours, to_published
from .export import export_checkpoint
from .files import CheckpointError, find_state, read_checkpoint, write_checkpoint
from .loading import compare_state, load_pretrained, load_whole, read_state_dict, start_from_checkpoint

__all__ = [
    'CheckpointError',
    'compare_state',
    'convert_checkpoint',
    'export_checkpoint',
    'find_state',
    'load_pretrained',
    'load_whole',
    'mmengine_loaders',
    'read_checkpoint',
    'read_state_dict',
    'start_from_checkpoint',
    'to_ours',
    'to_published',
    'write_checkpoint',
]
