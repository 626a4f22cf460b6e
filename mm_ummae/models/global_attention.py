"""The extra layer of HTC++: global self-attention on the last stage's map (Swin, arXiv 2103.14030, appendix A2.2)."""

from __future__ import annotations

import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mm_ummae.registry import MODELS

from .layers import init_linear_as_mae
from .position import sincos_position


@MODELS.register_module()
class GlobalAttention(BaseModule):
    """One pre-norm transformer layer over all tokens of a map of any size.

    Its details are not published. Here positions are sine-cosine values added to what queries and keys are made of, in
    this layer alone (as DETR does, arXiv 2005.12872): they fit every map size, and attention without a bias matrix runs
    on PyTorch's fused kernels, in memory that grows with the tokens and not with their square. Both branches end in
    zeros, so the layer returns its input until it is trained and can be put into a trained network.

    Args:
        in_channels (int): Channels of the map, a multiple of 4.
        num_heads (int): Heads; must divide ``in_channels``.
        mlp_ratio (float): Hidden width of the feed-forward network over ``in_channels``. Default 4.
        drop_path (float): Stochastic depth rate. Default 0.
        with_cp (bool): Recompute activations in backward instead of keeping them. Default False.

    Raises:
        ValueError: If ``num_heads`` or 4 does not divide ``in_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        if in_channels % num_heads or in_channels % 4:
            raise ValueError(f'in_channels is {in_channels}, but num_heads {num_heads} and 4 must divide it')
        self.num_heads, self.with_cp = num_heads, with_cp
        self.norm1 = nn.LayerNorm(in_channels)
        self.query_key = nn.Linear(in_channels, 2 * in_channels)
        self.value = nn.Linear(in_channels, in_channels)
        self.proj = nn.Linear(in_channels, in_channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(in_channels)
        self.ffn = FFN(
            in_channels,
            int(in_channels * mlp_ratio),
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path),
        )
        init_linear_as_mae(self)
        for layer in (self.proj, self.ffn.layers[1]):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w), contiguous."""
        # (N, C, h, w) -> (N, h, w, C)
        tokens = x.permute(0, 2, 3, 1)
        if self.with_cp and x.requires_grad:
            tokens = checkpoint(self._attend, tokens, use_reentrant=False)
        else:
            tokens = self._attend(tokens)
        # contiguous for the same reason as in PyramidBackbone.forward
        return tokens.permute(0, 3, 1, 2).contiguous()

    def _attend(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        content = self.norm1(x)
        place = sincos_position(height, width, channels, device=x.device)
        query_key = self.query_key(content + place.to(content.dtype))
        # (N, h, w, 2C) -> (2, N, heads, T, C / heads)
        query, key = query_key.view(n, height * width, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        value = self.value(content).view(n, height * width, self.num_heads, -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)  # (N, heads, T, C / heads)
        x = x + self.drop_path(self.proj(attended.transpose(1, 2).reshape(n, height, width, channels)))
        # Not `self.ffn(...)`: MMEngine wraps FFN.forward in a check that PyTorch 2.1 cannot compile
        return x + self.ffn.dropout_layer(self.ffn.layers(self.norm2(x)))
