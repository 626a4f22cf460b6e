"""Self-attention: plain, in windows with a log-spaced position bias (Swin), and to pooled keys (PVT).

All of it runs on PyTorch's ``scaled_dot_product_attention``. ``T`` is the number of tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from .window_grid import WindowGrid


def check_heads(embed_dims: int, num_heads: int) -> int:
    """Return ``num_heads`` if it divides ``embed_dims``.

    Raises:
        ValueError: If it does not.
    """
    if embed_dims % num_heads:
        raise ValueError(f'num_heads is {num_heads}, but it must divide embed_dims, which is {embed_dims}')
    return num_heads


class SelfAttention(BaseModule):
    """Multi-head self-attention, with the parameter names of MMPretrain's ``MultiheadAttention``.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads; must divide ``embed_dims``.

    Raises:
        ValueError: If it does not.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = check_heads(embed_dims, num_heads)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = F.scaled_dot_product_attention(*split_heads(self.qkv(x), 3, self.num_heads))
        return self.proj(x.transpose(1, 2).flatten(2))


class LogPositionBias(BaseModule):
    """Position bias from a small MLP on log-spaced (row, column) differences (UM-MAE, appendix).

    The MLP runs on the few distinct differences of a window, and the bias of each pair of tokens is looked up.

    Args:
        num_heads (int): Attention heads.
        hidden_dims (int): Width of the MLP.
    """

    def __init__(self, num_heads: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, num_heads)

    def forward(self, difference: Tensor) -> Tensor:
        """Bias at (..., 2) differences, key minus query in tokens of the full image -> (..., heads)."""
        # Always in float32: differences are exact there, and half precision would blur large ones.
        with torch.autocast(difference.device.type, enabled=False):
            difference = difference.float()
            spaced = difference.sign() * difference.abs().log1p()
            return self.fc2(F.relu(self.fc1(spaced.to(self.fc1.weight.dtype))))


class WindowAttention(BaseModule):
    """Multi-head self-attention inside windows, with log-spaced position bias.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads; must divide ``embed_dims``.
        position_dims (int): Width of the position MLP.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int, position_dims: int) -> None:
        super().__init__()
        self.num_heads = check_heads(embed_dims, num_heads)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.position_bias = LogPositionBias(num_heads, position_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """Attend inside each window: (B, T, C) -> (B, T, C), B = images * windows."""
        query, key, value = split_heads(self.qkv(x), 3, self.num_heads)  # (B, heads, T, d) each
        return self.proj(attend_in_windows(query, key, value, self.position_bias(grid.positions.points), grid))


class PooledAttention(BaseModule):
    """Multi-head self-attention with spatial reduction: keys and values from an average-pooled map (PVT).

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads; must divide ``embed_dims``.

    Raises:
        ValueError: If it does not.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = check_heads(embed_dims, num_heads)
        self.q = nn.Linear(embed_dims, embed_dims)
        self.reduction = nn.Linear(embed_dims, embed_dims)  # a 1x1 convolution of the pooled map
        self.norm = nn.LayerNorm(embed_dims)  # eps 1e-5, as published
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, ratio: int) -> Tensor:
        """Attend from each token to the pooled ones.

        Args:
            x (Tensor): (N, h, w, C).
            ratio (int): Side of the pooling kernel in tokens; at the edge the mean is over the tokens inside the map.
        Returns:
            Tensor: (N, h, w, C).
        """
        keys = x
        if ratio > 1:
            keys = F.avg_pool2d(x.permute(0, 3, 1, 2), ratio, ratio, ceil_mode=True, count_include_pad=False)
            keys = keys.permute(0, 2, 3, 1)
        keys = self.norm(self.reduction(keys.flatten(1, 2)))  # (N, ceil(h / ratio) * ceil(w / ratio), C)
        (query,) = split_heads(self.q(x.flatten(1, 2)), 1, self.num_heads)  # (N, heads, h * w, C / heads)
        attended = F.scaled_dot_product_attention(query, *split_heads(self.kv(keys), 2, self.num_heads))
        return self.proj(attended.transpose(1, 2).reshape(x.shape))


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values of one projection, at once: (B, T, parts * C) -> parts x (B, heads, T, C / heads)."""
    # Taken one by one, the gradient of each would be a tensor of all of them, zero except for its part
    return x.unflatten(2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend_in_windows(
    query: Tensor, key: Tensor, value: Tensor, point_bias: Tensor, grid: WindowGrid, **options: float | None
) -> Tensor:
    """Scaled dot-product attention inside windows, with a bias that depends on positions.

    Args:
        query (Tensor): (B, heads, T, d), B = images * windows.
        key (Tensor): As ``query``.
        value (Tensor): As ``query``.
        point_bias (Tensor): (P, heads), bias at ``grid.positions.points``.
        grid (WindowGrid): The windows.
        options: ``scale`` and ``dropout_p`` of PyTorch's ``scaled_dot_product_attention``.
    Returns:
        Tensor: (B, T, heads * d).
    """
    _, heads, tokens, width = query.shape
    bias = grid.positions.expand_bias(point_bias)  # (K, heads, T, T)
    bias = grid.spread(bias.to(query.dtype))  # (G, heads, T, T); cast before, there are fewer kinds than windows
    # Windows become heads, so that a bias that all images share is held once and not once per image:
    # (B, heads, T, d) -> (B / G, G * heads, T, d) and (G, heads, T, T) -> (1, G * heads, T, T)
    query, key, value = (part.reshape(-1, len(bias) * heads, tokens, width) for part in (query, key, value))
    x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.flatten(0, 1)[None], **options)
    return x.reshape(-1, heads, tokens, width).transpose(1, 2).flatten(2)
