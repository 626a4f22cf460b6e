"""Resizing of absolute position embeddings."""

from __future__ import annotations

from math import isqrt

from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor


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

    An embedding with as many positions as that of the module is used unchanged, since a file does not store its rows
    and columns. The position of a class token is dropped if the module has none.

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
