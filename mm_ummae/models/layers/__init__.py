"""Layers shared by backbones, necks and heads."""

from .attention import LogPositionBias, PooledAttention, SelfAttention, WindowAttention, attend_in_windows, split_heads
from .blocks import (
    WITH_CP,
    DecoderBlock,
    FeedForward,
    PatchEmbed,
    PatchMerging,
    PVTBlock,
    SwinBlock,
    TokensToUnits,
    check_with_cp,
    encode_none,
    init_linear_as_mae,
    keep_traced_size,
    run_block,
)
from .channels import fit_channels
from .global_attention import GlobalAttention
from .positions import fit_positions, resize_positions
from .relative_position import PositionedBlock, RelativeAttention, TokenPositions, bucket_map, piecewise_index
from .window_grid import RelativePositions, WholeImagePositions, WindowGrid, compact_image_positions, look_up

__all__ = [
    'WITH_CP',
    'DecoderBlock',
    'FeedForward',
    'GlobalAttention',
    'LogPositionBias',
    'PVTBlock',
    'PatchEmbed',
    'PatchMerging',
    'PooledAttention',
    'PositionedBlock',
    'RelativeAttention',
    'RelativePositions',
    'SelfAttention',
    'SwinBlock',
    'TokenPositions',
    'TokensToUnits',
    'WholeImagePositions',
    'WindowAttention',
    'WindowGrid',
    'attend_in_windows',
    'bucket_map',
    'check_with_cp',
    'compact_image_positions',
    'encode_none',
    'fit_channels',
    'fit_positions',
    'init_linear_as_mae',
    'keep_traced_size',
    'look_up',
    'piecewise_index',
    'resize_positions',
    'run_block',
    'split_heads',
]
