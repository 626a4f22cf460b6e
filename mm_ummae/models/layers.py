"""Building blocks of the pyramid transformers (UM-MAE, arXiv 2205.10063, section 3 and appendix).

All maps are channels-last, ``(N, h, w, C)``; ``T`` is the number of tokens in a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attend_in_windows
from .window_grid import WindowGrid, is_traced


class PatchEmbed(BaseModule):
    """Non-overlapping patches, then LayerNorm (Swin) or nothing (PVT).

    Args:
        embed_dims (int): Output channels.
        patch_size (int): Side of a patch in pixels. Default 4.
        in_channels (int): Image channels. Default 3.
        with_norm (bool): LayerNorm after the convolution. Default True.
        norm_eps (float): Epsilon of the LayerNorm. Default 1e-6.
    """

    def __init__(
        self,
        embed_dims: int,
        patch_size: int = 4,
        in_channels: int = 3,
        with_norm: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dims, eps=norm_eps) if with_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, ceil(H / 4), ceil(W / 4), C); sides are padded with zeros to whole patches."""
        pad = (-images.shape[-2] % self.patch_size, -images.shape[-1] % self.patch_size)
        if any(pad):
            images = F.pad(images, (0, pad[1], 0, pad[0]))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


class PatchMerging(BaseModule):
    """LayerNorm (Swin) or nothing (PVT), then a 2x2/2 convolution with bias.

    Stock Swin has concatenation, LayerNorm and a linear layer here.

    Args:
        in_channels (int): Channels before.
        out_channels (int): Channels after.
        with_norm (bool): LayerNorm before the convolution. Default True.
        norm_eps (float): Epsilon of the LayerNorm. Default 1e-6.
    """

    def __init__(self, in_channels: int, out_channels: int, with_norm: bool = True, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=norm_eps) if with_norm else nn.Identity()
        self.projection = nn.Conv2d(in_channels, out_channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, ceil(h / 2), ceil(w / 2), C'); an odd side is padded with zeros after the norm."""
        x = self.norm(x)
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.projection(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LogPositionBias(BaseModule):
    """Position bias from a small MLP on log-spaced (row, column) differences.

    The MLP is evaluated on the few distinct differences of a window, and the bias of each pair of tokens is
    looked up, instead of on every pair of every window of every image. In eval mode and without gradients the bias of
    whole images is kept until a parameter or the mode changes.

    Args:
        num_heads (int): Attention heads.
        hidden_dims (int): Width of the MLP.
    """

    def __init__(self, num_heads: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, num_heads)
        self._kept: dict[tuple, tuple[tuple, Tensor]] = {}

    def evaluate(self, difference: Tensor) -> Tensor:
        """Bias at (..., 2) differences, key minus query in tokens of the full image -> (..., heads)."""
        # Always in float32: differences are exact there, and half precision would blur far ones.
        with torch.autocast(difference.device.type, enabled=False):
            spaced = difference.sign() * difference.abs().log1p()
            return self.fc2(F.relu(self.fc1(spaced.to(self.fc1.weight.dtype))))

    def forward(self, grid: WindowGrid) -> Tensor:
        """The bias of every pair: (G, heads, T, T), see :meth:`WindowGrid.spread` for G."""
        return grid.spread(self.kinds(grid, self.fc2.weight.dtype))

    def kinds(self, grid: WindowGrid, dtype: torch.dtype) -> Tensor:
        """The bias of every pair in every kind of window: (K, heads, T, T), see :class:`WindowGrid` for K."""
        if self.training or torch.is_grad_enabled() or grid.key is None or not self._may_keep(grid):
            return grid.expand_bias(self.evaluate(grid.points)).to(dtype)
        # A change in place counts up the version of a parameter, but not one through `.data` (as of MMEngine's
        # exponential moving averages), after which a runner calls eval() or train(): see `train`.
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())
        key = (*grid.key, dtype)
        if key not in self._kept or self._kept[key][0] != state:
            self._kept[key] = (state, grid.expand_bias(self.evaluate(grid.points)).to(dtype))
        return self._kept[key][1]

    def _may_keep(self, grid: WindowGrid) -> bool:
        """Not what a compiler or tracer sees, nor fake tensors, nor of weights that count no changes."""
        return not is_traced() and type(grid.points) is Tensor and not self.fc1.weight.is_inference()

    def train(self, mode: bool = True) -> LogPositionBias:
        """Set the mode, and forget what was kept."""
        self._kept.clear()
        return super().train(mode)


class WindowAttention(BaseModule):
    """Multi-head self-attention inside windows, with log-spaced position bias.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads; must divide ``embed_dims``.
        position_dims (int): Width of the position MLP.
    """

    def __init__(self, embed_dims: int, num_heads: int, position_dims: int) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'num_heads {num_heads} does not divide embed_dims {embed_dims}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.position_bias = LogPositionBias(num_heads, position_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """Attend inside each window: (B, T, C) -> (B, T, C), B = images * windows."""
        batch, tokens, channels = x.shape
        # (B, T, 3C) -> 3 x (B, heads, T, C / heads)
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.position_bias.kinds(grid, query.dtype)
        x = attend_in_windows(query, key, value, bias, grid)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))


class SwinBlock(BaseModule):
    """Pre-norm window attention and feed-forward network.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads.
        position_dims (int): Width of the position MLP.
        mlp_ratio (float): Hidden width of the feed-forward network over ``embed_dims``. Default 4.
        drop_path (float): Stochastic depth rate. Default 0.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        position_dims: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        # PyTorch's default eps 1e-5 here, as published; 1e-6 in patch embedding, merging and the last norm.
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = WindowAttention(embed_dims, num_heads, position_dims)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FFN(
            embed_dims,
            int(embed_dims * mlp_ratio),
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path),
        )

    def forward(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        x = x + self.drop_path(grid.merge(self.attn(grid.partition(self.norm1(x)), grid)))
        return x + self.ffn.dropout_layer(feed_forward(self.ffn, self.norm2(x)))


class PooledAttention(BaseModule):
    """Multi-head self-attention with spatial reduction: keys and values from an average-pooled map (PVT).

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads; must divide ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'num_heads {num_heads} does not divide embed_dims {embed_dims}')
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dims, embed_dims)
        self.reduction = nn.Linear(embed_dims, embed_dims)  # a 1x1 convolution of the pooled map
        self.norm = nn.LayerNorm(embed_dims)  # eps 1e-5, as published
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, ratio: int) -> Tensor:
        """Attend from each token to the pooled ones.

        Args:
            x (Tensor): (N, h, w, C).
            ratio (int): Side of a pooling window in tokens; one that hangs over the edge averages what it has.
        Returns:
            Tensor: (N, h, w, C).
        """
        n, h, w, c = x.shape
        keys = x
        if ratio > 1:
            keys = F.avg_pool2d(x.permute(0, 3, 1, 2), ratio, ratio, ceil_mode=True, count_include_pad=False)
            keys = keys.permute(0, 2, 3, 1)
        keys = self.norm(self.reduction(keys.flatten(1, 2)))  # (N, h / ratio * w / ratio, C)
        query = self.q(x.flatten(1, 2)).view(n, h * w, self.num_heads, -1).transpose(1, 2)
        # (N, K, 2C) -> (2, N, heads, K, C / heads)
        key, value = self.kv(keys).view(n, -1, 2, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(query, key, value)  # (N, heads, h * w, C / heads)
        return self.proj(x.transpose(1, 2).reshape(n, h, w, c))


class PVTBlock(BaseModule):
    """Pre-norm pooled attention and feed-forward network.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads.
        mlp_ratio (float): Hidden width of the feed-forward network over ``embed_dims``.
        drop_path (float): Stochastic depth rate. Default 0.
    """

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)  # eps 1e-5, as published
        self.attn = PooledAttention(embed_dims, num_heads)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FFN(
            embed_dims,
            int(embed_dims * mlp_ratio),
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path),
        )

    def forward(self, x: Tensor, ratio: int) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C); ``ratio`` is that of :class:`PooledAttention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), ratio))
        return x + self.ffn.dropout_layer(feed_forward(self.ffn, self.norm2(x)))


def feed_forward(ffn: FFN, x: Tensor) -> Tensor:
    """MMCV's feed-forward network without the sum and the drop path, (..., C) -> (..., C).

    What comes out of GELU is as large as four maps and quickly computed again, so it is not kept for backward; the
    matrix product behind it is not repeated. That is a quarter of a block's activations for a hundredth of its time.
    """
    # Not `ffn(...)`: MMEngine wraps FFN.forward in a check that PyTorch 2.1 cannot compile
    (linear, *activation), *rest = ffn.layers
    hidden = linear(x)
    if not hidden.requires_grad or is_traced():  # a compiler decides by itself what to compute again
        return _run(hidden, *activation, *rest)
    return checkpoint(_run, hidden, *activation, *rest, use_reentrant=False, preserve_rng_state=False)


def _run(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def run_block(block: nn.Module, x: Tensor, context: WindowGrid | int, with_cp: bool) -> Tensor:
    """``block(x, context)``; with ``with_cp`` its activations are recomputed in backward instead of kept."""
    if with_cp and x.requires_grad:
        return checkpoint(block, x, context, use_reentrant=False)
    return block(x, context)


def init_linear_as_mae(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer and patch convolution inside ``module``.

    As in MAE (arXiv 2111.06377, appendix A.1), a patch convolution counts as a linear layer on flattened patches.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
            nn.init.zeros_(layer.bias)
