"""Building blocks of the pyramid transformers and the decoders (UM-MAE, arXiv 2205.10063, section 3 and appendix).

All maps are channels-last, ``(N, h, w, C)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mm_ummae.masking import UNIT

from .attention import PooledAttention, SelfAttention, WindowAttention
from .window_grid import WindowGrid

WITH_CP = (False, True, 'ffn')


def check_with_cp(with_cp: bool | str) -> bool | str:
    """Return ``with_cp`` if it is one of :data:`WITH_CP`.

    Raises:
        ValueError: If it is not.
    """
    if with_cp not in WITH_CP:
        raise ValueError(
            f"with_cp is {with_cp!r}, but it must be False, True (recompute whole blocks in backward) or 'ffn' "
            '(recompute only the activation of the feed-forward networks)'
        )
    return with_cp


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


class TokensToUnits(nn.Linear):
    """Linear layer from a pyramid's tokens to units: a token covers several units, or a unit several tokens.

    Args:
        in_channels (int): Channels of the map.
        out_channels (int): Channels of a unit.
        stride (int): Pixels per token: 32 (a token makes 2x2 units), 16, or 8 (2x2 tokens make a unit).

    Raises:
        ValueError: If the stride is another.
    """

    STRIDES = (8, 16, 32)

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        if stride not in self.STRIDES:
            raise ValueError(f'stride is {stride}, but it must be one of {self.STRIDES}, that of the last map')
        self.split, self.gather = max(stride // UNIT, 1), max(UNIT // stride, 1)
        super().__init__(in_channels * self.gather**2, out_channels * self.split**2)
        self.in_channels, self.stride = in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, h * stride / 16, w * stride / 16, D)."""
        x = F.pixel_unshuffle(x, self.gather)
        x = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (N, split ** 2 * D, h / gather, w / gather)
        return F.pixel_shuffle(x, self.split).permute(0, 2, 3, 1)


class FeedForward(BaseModule):
    """Linear, GELU, linear, with the parameter names of MMCV's ``FFN``.

    MMCV's own adds the residual connection and the drop path, and PyTorch 2.1 cannot compile its ``forward``.

    Args:
        layers (nn.Sequential): First linear layer with its activation, second linear layer.
        gamma2 (nn.Module, optional): Layer scale. Default none.
        recompute (bool): Recompute the activation in backward instead of keeping it: about a quarter less activation
            memory per block, without repeating a matrix product. Default False.
    """

    def __init__(self, layers: nn.Sequential, gamma2: nn.Module | None = None, recompute: bool = False) -> None:
        super().__init__()
        self.layers, self.gamma2 = layers, gamma2 or nn.Identity()
        self.recompute = recompute
        # Saving the state of the random generator synchronises with a GPU, so only where it is needed
        self._random = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in layers.modules())

    @classmethod
    def of(cls, embed_dims: int, hidden_dims: int, recompute: bool = False) -> FeedForward:
        """The usual one: ``embed_dims`` -> ``hidden_dims``, GELU, -> ``embed_dims``."""
        first = nn.Sequential(nn.Linear(embed_dims, hidden_dims), nn.GELU())
        return cls(nn.Sequential(first, nn.Linear(hidden_dims, embed_dims)), recompute=recompute)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        hidden = self.layers[0][0](x)
        if self.recompute and hidden.requires_grad:
            return checkpoint(self._finish, hidden, use_reentrant=False, preserve_rng_state=self._random)
        return self._finish(hidden)

    def _finish(self, hidden: Tensor) -> Tensor:
        """All that follows the first linear layer: (..., hidden) -> (..., C)."""
        first, *rest = self.layers
        for layer in (*list(first)[1:], *rest, self.gamma2):
            hidden = layer(hidden)
        return hidden


class SwinBlock(BaseModule):
    """Pre-norm window attention and feed-forward network.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads.
        position_dims (int): Width of the position MLP.
        mlp_ratio (float): Hidden width of the feed-forward network over ``embed_dims``. Default 4.
        drop_path (float): Stochastic depth rate. Default 0.
        with_cp (bool | str): ``ffn`` recomputes the activation of the feed-forward network. Default False.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        position_dims: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        with_cp: bool | str = False,
    ) -> None:
        super().__init__()
        # PyTorch's default eps 1e-5 here, as published; 1e-6 in patch embedding, merging and the last norm.
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = WindowAttention(embed_dims, num_heads, position_dims)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FeedForward.of(embed_dims, int(embed_dims * mlp_ratio), with_cp == 'ffn')

    def forward(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        x = x + self.drop_path(grid.merge(self.attn(grid.partition(self.norm1(x)), grid)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class PVTBlock(BaseModule):
    """Pre-norm pooled attention and feed-forward network.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Heads.
        mlp_ratio (float): Hidden width of the feed-forward network over ``embed_dims``.
        drop_path (float): Stochastic depth rate. Default 0.
        with_cp (bool | str): ``ffn`` recomputes the activation of the feed-forward network. Default False.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float = 0.0,
        with_cp: bool | str = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)  # eps 1e-5, as published
        self.attn = PooledAttention(embed_dims, num_heads)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FeedForward.of(embed_dims, int(embed_dims * mlp_ratio), with_cp == 'ffn')

    def forward(self, x: Tensor, ratio: int) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C); ``ratio`` is that of :class:`PooledAttention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), ratio))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class DecoderBlock(BaseModule):
    """Pre-norm transformer layer with the parameter names of MMPretrain's ``TransformerEncoderLayer``.

    Args:
        embed_dims (int): Width D.
        num_heads (int): Heads.
        hidden_dims (int): Hidden width of the feed-forward network.
        with_cp (bool | str): ``ffn`` recomputes the activation of the feed-forward network. Default False.
    """

    def __init__(self, embed_dims: int, num_heads: int, hidden_dims: int, with_cp: bool | str = False) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = SelfAttention(embed_dims, num_heads)
        self.ln2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.ffn = FeedForward.of(embed_dims, hidden_dims, with_cp == 'ffn')

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


def run_block(block: Callable[..., Tensor], x: Tensor, *context: Any, with_cp: bool | str) -> Tensor:
    """``block(x, *context)``; with ``with_cp=True`` its activations are recomputed in backward instead of kept."""
    if with_cp is True and x.requires_grad:
        return checkpoint(block, x, *context, use_reentrant=False)
    return block(x, *context)


def keep_traced_size(images: Tensor) -> Tensor:
    """In a trace of TorchScript, the images, or an error if a later call has another size; else the images.

    Sizes are constants of a trace. Without this, images of another size with as many tokens, such as 64x256 px after
    128x128 px, would get wrong maps without an error.
    """
    if not torch.jit.is_tracing():
        return images
    height, width = map(int, images.shape[2:])
    return images.expand(-1, -1, height, width)


def encode_none(encode: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
    """The outputs for an empty batch, from a network that cannot take one: those for a blank image, without the image.

    MMPretrain's ViTs reshape to ``(N, h, w, -1)``, which is ambiguous for N = 0. Here shapes are right for any kind of
    output, and parameters get gradients of zero, as distributed training expects.

    Args:
        encode (Callable): The network's forward for images.
        images (Tensor): (0, 3, H, W).
    Returns:
        tuple[Tensor, ...]: As ``encode`` returns them, (0, ...).
    """
    blank = images.new_zeros((1, *images.shape[1:]))
    return tuple(out[:0] for out in encode(blank))


def init_linear_as_mae(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer and patch convolution inside ``module``.

    As in MAE (arXiv 2111.06377, appendix A.1), a patch convolution counts as a linear layer on flattened patches.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
            nn.init.zeros_(layer.bias)
