"""Positions of units and tokens: full-image positions of sampled tokens, fixed sine-cosine embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from .units import enlarge


def sampled_positions(offsets: Tensor, tokens_per_unit: int) -> tuple[Tensor, Tensor]:
    """Full-image (row, column) of each token of the compact image.

    Worked example, one token per unit: the cell in compact row 3 with row offset 1 was taken from
    unit row ``2 * 3 + 1 = 7`` of the full image.

    Args:
        offsets (Tensor): (N, gh, gw) int64 in 0..3.
        tokens_per_unit (int): Tokens along a unit's side; 4 for stride-4 tokens.
    Returns:
        tuple[Tensor, Tensor]: Rows and columns, each (N, gh * t, gw * t) int64, on the full token grid.
    """
    t = tokens_per_unit
    inside = torch.arange(t, device=offsets.device)
    offsets = enlarge(offsets, t)  # (N, gh, gw) -> (N, gh * t, gw * t)
    height, width = offsets.shape[1:]
    row = torch.arange(height, device=offsets.device).div(t, rounding_mode='floor')
    column = torch.arange(width, device=offsets.device).div(t, rounding_mode='floor')
    rows = (2 * row[:, None] + offsets // 2) * t + inside.repeat(height // t)[:, None]
    columns = (2 * column + offsets % 2) * t + inside.repeat(width // t)
    return rows, columns


def sincos_position(height: int, width: int, embed_dims: int, device: torch.device | None = None) -> Tensor:
    """2-D sine-cosine embedding (MAE, arXiv 2111.06377): half the channels for the column, then half for the row.

    mmpretrain's ``build_2d_sincos_position_embedding`` puts the row first and cannot hold MAE's weights.

    Args:
        height (int): Grid rows.
        width (int): Grid columns.
        embed_dims (int): Channels D, a multiple of 4.
        device (torch.device, optional): Device of the result.
    Returns:
        Tensor: (height, width, D) float32; each half is [sin(p w), cos(p w)], w_i = 10000 ** (-i / (D / 4)).
    Raises:
        ValueError: If ``embed_dims`` is not a multiple of 4.
    """
    if embed_dims % 4:
        raise ValueError(f'embed_dims is {embed_dims}, but a 2-D sine-cosine embedding needs a multiple of 4')
    quarter = embed_dims // 4
    frequency = 10000 ** (-torch.arange(quarter, dtype=torch.float64, device=device) / quarter)

    def encode(position: Tensor) -> Tensor:
        angle = position.double()[..., None] * frequency
        return torch.cat((angle.sin(), angle.cos()), -1)

    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing='ij'
    )
    return torch.cat((encode(columns), encode(rows)), -1).float()
