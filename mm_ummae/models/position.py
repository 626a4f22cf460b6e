"""Position embedding: MAE's fixed sine-cosine values (arXiv 2111.06377), and resizing."""

from __future__ import annotations

from math import isqrt

import torch
from mmpretrain.models.utils import resize_pos_embed
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


def resize_positions(
    positions: Tensor, source: tuple[int, int], target: tuple[int, int], extra_tokens: int = 0
) -> Tensor:
    """Resize a position embedding bicubically (``align_corners=False``), in float32.

    Args:
        positions (Tensor): (1, extra_tokens + rows * columns, C), extra tokens first.
        source (tuple[int, int]): Its rows and columns.
        target (tuple[int, int]): Rows and columns wanted.
        extra_tokens (int): Tokens without a place, such as a class token; they stay as they are. Default 0.
    Returns:
        Tensor: (1, extra_tokens + target rows * columns, C).
    """
    return resize_pos_embed(positions, source, target, mode='bicubic', num_extra_tokens=extra_tokens)


def fit_positions(state: dict[str, Tensor], grid: tuple[int, int], extra_tokens: int) -> dict[str, Tensor]:
    """Resize ``pos_embed`` of a checkpoint to the grid of the module that takes it.

    One with as many positions as the module's is taken as it is: a file does not tell its rows from its columns. That
    of a class token is left out if the module has none.

    Args:
        state (dict[str, Tensor]): Parameters of a backbone; unchanged.
        grid (tuple[int, int]): Rows and columns of the module's embedding.
        extra_tokens (int): Tokens without a place at its start.
    Returns:
        dict[str, Tensor]: The parameters with ``pos_embed`` (1, extra_tokens + rows * columns, C).
    Raises:
        ValueError: If it must be resized and is not that of a square image.
    """
    positions = state.get('pos_embed')
    if positions is not None and positions.dim() == 3 and not extra_tokens and 'cls_token' in state:
        positions = positions[:, 1:]
        state = {**state, 'pos_embed': positions}
    if positions is None or positions.dim() != 3 or positions.shape[1] == extra_tokens + grid[0] * grid[1]:
        return state
    side = isqrt(max(positions.shape[1] - extra_tokens, 0))
    if side * side + extra_tokens != positions.shape[1]:
        raise ValueError(
            f'pos_embed of the checkpoint has shape {tuple(positions.shape)}, which is no square grid after '
            f'{extra_tokens} extra tokens, so it cannot be resized to {grid[0]}x{grid[1]} tokens'
        )
    return {**state, 'pos_embed': resize_positions(positions, (side, side), grid, extra_tokens)}
