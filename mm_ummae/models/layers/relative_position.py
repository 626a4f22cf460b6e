"""Contextual relative positions on keys, product method (iRPE, arXiv 2107.14222), as LoMaR uses them.

Attention adds ``r[i, j] = q_i . T[:, bucket(i, j)]`` to its logits. T is a table with one vector for each of 50
buckets, shared by the heads of a layer, and the query is not scaled. The row and the column difference of two patches
give the bucket, so the same table serves local windows and images of any size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.backbones.vit_sam import window_partition, window_unpartition
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from .attention import split_heads
from .blocks import FeedForward

# The published piecewise index: differences up to ALPHA keep their value, larger ones grow as a logarithm that would
# reach BETA at GAMMA, and the result is clipped to +-REACH
ALPHA, BETA, GAMMA = 1.9, 3.8, 15.2
REACH = int(BETA)
SIDE = 2 * REACH + 1
CLASS_BUCKET = SIDE**2  # of every pair with the class token
NUM_BUCKETS = SIDE**2 + 1
# Up to this many tokens, a product with the table laid out by pairs is as fast as a gather on a CPU, and its backward
# needs no scattered additions, which a GPU serialises where pairs share a bucket. Beyond it the layout grows with the
# square of the tokens.
MATMUL_TOKENS = 64


def piecewise_index(difference: Tensor) -> Tensor:
    """Index of a coordinate difference, in -3..3.

    Args:
        difference (Tensor): Integers, query minus key.
    Returns:
        Tensor: int64 of the same shape.
    """
    distance = difference.abs().double()
    # The logarithm of a distance of 0 is not used
    growth = torch.log(distance.clamp(min=1) / ALPHA) / math.log(GAMMA / ALPHA)
    far = (ALPHA + growth * (BETA - ALPHA)).round().clamp(max=BETA)
    return (difference.sign() * torch.where(distance <= ALPHA, distance, far)).long()  # truncated towards 0


def bucket_map(grid: tuple[int, int], class_token: bool, device: torch.device | str | None = None) -> Tensor:
    """Buckets of all pairs of tokens of a grid.

    Args:
        grid (tuple[int, int]): Rows and columns of patches.
        class_token (bool): Whether a class token comes before them.
        device (torch.device | str, optional): Device of the result.
    Returns:
        Tensor: (T, T) int64, query by key, T = rows * columns and one more with a class token.
    """
    rows, columns = torch.arange(grid[0], device=device), torch.arange(grid[1], device=device)
    row = piecewise_index(rows[:, None] - rows) + REACH  # (h, h)
    column = piecewise_index(columns[:, None] - columns) + REACH  # (w, w)
    # (h, 1, h, 1) and (w, 1, w) -> (h, w, h, w)
    buckets = SIDE * row[:, None, :, None] + column[:, None, :]
    buckets = buckets.reshape(len(rows) * len(columns), -1)
    return F.pad(buckets, (1, 0, 1, 0), value=CLASS_BUCKET) if class_token else buckets


class TokenPositions(NamedTuple):
    """Positions of the tokens of a sequence, as attention needs them.

    Attributes:
        buckets (Tensor | None): (T, T) int64 of :func:`bucket_map`, or (B, T, T) if sequences differ; None without
            relative positions.
        grid (tuple[int, int] | None): Rows and columns of the tokens; only attention in windows needs it.
        window_size (int): Side of the attention windows in tokens; ``buckets`` are then those of a window. Default 0:
            attend to all tokens.
    """

    buckets: Tensor | None
    grid: tuple[int, int] | None = None
    window_size: int = 0


class RelativeAttention(BaseModule):
    """MMPretrain's multi-head attention with relative positions.

    The layers of the given attention are moved here, not copied, and keep their names. Stochastic depth is left to
    :class:`PositionedBlock`.

    Args:
        attention (MultiheadAttention): Not to be used elsewhere.
    """

    def __init__(self, attention: MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = attention.num_heads, attention.attn_drop
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.gamma1 = attention.gamma1
        self.position_table = nn.Parameter(torch.zeros(1, attention.head_dims, NUM_BUCKETS))

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        """Attend.

        Args:
            x (Tensor): (B, T, C).
            buckets (Tensor): (T, T) or (B, T, T) int64.
        Returns:
            Tensor: (B, T, C).
        """
        query, key, value = split_heads(self.qkv(x), 3, self.num_heads)  # (B, heads, T, C / heads) each
        bias = self.position_bias(query, buckets)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return self.gamma1(self.proj_drop(x))

    def position_bias(self, query: Tensor, buckets: Tensor) -> Tensor:
        """``q_i . T[:, bucket(i, j)]``: (B, heads, T, d) -> (B, heads, T, T)."""
        batch, heads, tokens, _ = query.shape
        if buckets.dim() == 3 or tokens > MATMUL_TOKENS:
            index = buckets if buckets.dim() == 2 else buckets[:, None]
            return (query @ self.position_table).gather(-1, index.expand(batch, heads, -1, -1))
        # The vectors of all pairs, (T, T, d), and for each query position one product with all sequences and heads:
        # (T, B * heads, d) @ (T, d, T) -> (T, B * heads, T)
        pairs = F.embedding(buckets, self.position_table[0].t())
        bias = query.permute(2, 0, 1, 3).flatten(1, 2) @ pairs.transpose(1, 2)
        return bias.unflatten(1, (-1, heads)).permute(1, 2, 0, 3)


class PositionedBlock(BaseModule):
    """Wraps a ``TransformerEncoderLayer`` of MMPretrain and passes token positions to its attention.

    The modules of the layer are moved here, not copied, and keep their names.

    Args:
        layer (TransformerEncoderLayer): Not to be used elsewhere.
        relative (bool): Give its attention relative positions.
        with_cp (bool | str): ``ffn`` recomputes the activation of the feed-forward network. Default False.
    """

    def __init__(self, layer: TransformerEncoderLayer, relative: bool, with_cp: bool | str = False) -> None:
        super().__init__()
        self.ln1, self.ln2 = layer.ln1, layer.ln2
        self.ffn = FeedForward(layer.ffn.layers, layer.ffn.gamma2, with_cp == 'ffn')
        self.relative = relative
        # Paths are dropped per image, also where attention sees each image as several windows
        self.drop_path, layer.attn.out_drop = layer.attn.out_drop, nn.Identity()
        self.drop_path.drop_prob = float(self.drop_path.drop_prob)  # a NumPy number, which torch.compile does not take
        self.attn = RelativeAttention(layer.attn) if relative else layer.attn

    def forward(self, x: Tensor, positions: TokenPositions) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.drop_path(self._attend(self.ln1(x), positions))
        return x + self.drop_path(self.ffn(self.ln2(x)))

    def _attend(self, x: Tensor, positions: TokenPositions) -> Tensor:
        if not positions.window_size:
            return self.attn(x, positions.buckets) if self.relative else self.attn(x)
        # (N, h * w, C) -> (windows, size * size, C) and back. Windows that hang over the edge hold zeros there, which
        # are attended to, as in ViTDet.
        size = positions.window_size
        windows, padded = window_partition(x.unflatten(1, positions.grid), size)
        windows = self._attend(windows.flatten(1, 2), TokenPositions(positions.buckets))
        return window_unpartition(windows.unflatten(1, (size, size)), size, padded, positions.grid).flatten(1, 2)
