"""Attention with a bias that is learned, on every device in the way that is fastest there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor
from torch.autograd.function import once_differentiable

from .window_grid import WindowGrid, is_traced


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(query key^T / sqrt(d)) value``.

    PyTorch's fused attention, but in half precision on a CPU, where holding the scores is faster.

    Args:
        query (Tensor): (B, heads, T, d).
        key (Tensor): (B, heads, S, d).
        value (Tensor): (B, heads, S, d).
    Returns:
        Tensor: (B, heads, T, d).
    """
    if query.device.type != 'cpu' or query.dtype not in (torch.bfloat16, torch.float16) or is_traced():
        return F.scaled_dot_product_attention(query, key, value)
    return _hold_scores(query, key, value, None, None)


class SelfAttention(MultiheadAttention):
    """MMPretrain's multi-head self-attention, with its parameters and names, in fewer operations.

    It takes queries, keys and values apart at once; MMPretrain's takes them one by one, and then the gradient of each
    is a tensor of all three, of zeros but for its part.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads; must divide ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__(embed_dims, num_heads, dropout_layer=dict(type='DropPath', drop_prob=0.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, tokens, _ = x.shape
        # (B, T, 3C) -> 3 x (B, heads, T, C / heads)
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(attend(*qkv.unbind(0)).transpose(1, 2).reshape(batch, tokens, -1))


def attend_in_windows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, grid: WindowGrid) -> Tensor:
    """``softmax(query key^T / sqrt(d) + bias) value`` in each window.

    On a GPU, and in compiled or traced code, it is PyTorch's fused attention. On a CPU that takes no bias that needs a
    gradient, and falls back on a path that scales copies of queries and keys and looks for rows without any key. So
    there the scores are held: once in forward, once in backward, and the bias is added to the windows of its kind in
    place.

    Args:
        query (Tensor): (B, heads, T, d), B = images * windows.
        key (Tensor): (B, heads, T, d).
        value (Tensor): (B, heads, T, d).
        bias (Tensor): (K, heads, T, T), of the kinds of windows of the grid, of the same dtype.
        grid (WindowGrid): Of the windows.
    Returns:
        Tensor: (B, heads, T, d).
    """
    if query.device.type == 'cpu' and not is_traced():
        return _hold_scores(query, key, value, bias, grid)
    batch, heads, tokens, _ = query.shape
    bias = grid.spread(bias)
    groups = len(bias)
    if 1 < groups < batch:
        # Each window has its own bias, the same in all images: windows become heads, so that the bias is
        # held once and not once an image.
        # (B, heads, T, d) -> (images, windows * heads, T, d), (windows, heads, T, T) -> (1, windows * heads, T, T)
        query, key, value = [x.reshape(-1, groups * heads, tokens, x.shape[-1]) for x in (query, key, value)]
        bias = bias.flatten(0, 1)[None]
    x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return x.reshape(batch, heads, tokens, -1)


def _hold_scores(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, grid: WindowGrid | None) -> Tensor:
    # One product a head and sequence: (B, heads, T, d) -> (B * heads, T, d)
    flat = (x.flatten(0, 1) for x in (query, key, value))
    return _Attention.apply(*flat, bias, grid).view(*query.shape[:3], -1)


class _Attention(torch.autograd.Function):
    """Attention on (B * heads, T, d), with softmax and its gradient written over the scores."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, grid: WindowGrid | None
    ) -> Tensor:
        ctx.scale, ctx.grid = query.shape[-1] ** -0.5, grid
        ctx.bias_shape = None if bias is None else bias.shape
        scores = _scaled_product(query, key.transpose(1, 2), ctx.scale)
        if bias is not None:
            for part, kind in _by_kind(scores, bias.shape, grid):
                part.add_(bias[kind])
        weights = torch.softmax(scores, -1, out=scores)
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, weights = ctx.saved_tensors
        grad_value = weights.transpose(1, 2) @ grad
        scores = grad @ value.transpose(1, 2)
        if type(scores) is Tensor:
            torch.ops.aten._softmax_backward_data.out(scores, weights, -1, weights.dtype, grad_input=scores)
        else:  # fake tensors of PyTorch 2.1 do not know that form; this one takes no memory either, but twice the time
            scores.mul_(weights)
            scores.addcmul_(weights, scores.sum(-1, keepdim=True), value=-1)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = scores.new_empty(ctx.bias_shape)
            for part, kind in _by_kind(scores, ctx.bias_shape, ctx.grid):
                grad_bias[kind] = part.sum((0, 1, 2)) if part.dim() == 6 else part
        grad_query = _scaled_product(scores, key, ctx.scale)
        grad_key = _scaled_product(scores.transpose(1, 2), query, ctx.scale)
        return grad_query, grad_key, grad_value, grad_bias, None


def _by_kind(scores: Tensor, bias_shape: torch.Size, grid: WindowGrid) -> Iterator[tuple[Tensor, int | slice]]:
    """The scores of each kind of window, and which rows of a bias of this shape are theirs."""
    if grid.key is None:  # each window is a kind of its own
        yield scores.view(bias_shape), slice(None)
        return
    # (B * heads, T, T) -> (N, rows, columns, heads, T, T)
    scores = scores.view(-1, grid.rows, grid.columns, *bias_shape[1:])
    if bias_shape[0] == 1:
        yield scores, 0
        return
    inner, last = slice(None, -1), slice(-1, None)
    for kind, (rows, columns) in enumerate(((inner, inner), (inner, last), (last, inner), (last, last))):
        yield scores[:, rows, columns], kind


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * a @ b`` in one pass; the first argument of ``baddbmm`` is not read."""
    return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale)
