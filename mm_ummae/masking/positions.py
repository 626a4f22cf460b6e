"""Fixed sine-cosine positions of units and tokens (MAE, arXiv 2111.06377)."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_position(height: int, width: int, embed_dims: int, device: torch.device | None = None) -> Tensor:
    """2-D sine-cosine embedding: half the channels for the column, then half for the row.

    mmpretrain's ``build_2d_sincos_position_embedding`` puts the row first and cannot hold MAE's weights.

    Args:
        height (int): Grid rows.
        width (int): Grid columns.
        embed_dims (int): Channels D, a multiple of 4.
        device (torch.device, optional): Where to make it.
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
