"""The extra layer of HTC++: global self-attention on the last stage's map (Swin, arXiv 2103.14030, appendix A2.2)."""

from __future__ import annotations

import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mm_ummae.masking import sincos_position
from mm_ummae.registry import MODELS

from .attention import split_heads
from .blocks import FeedForward, check_with_cp, init_linear_as_mae, run_block


@MODELS.register_module()
class GlobalAttention(BaseModule):
    """One pre-norm transformer layer over all tokens of a map of any size.

    Its details are not published. Here positions are sine-cosine values added to the input of queries and keys, in
    this layer alone (as DETR does, arXiv 2005.12872): they fit every map size, and attention without a bias matrix runs
    on PyTorch's fused kernels, in memory that grows with the tokens and not with their square. Both branches end in
    zeros, so the layer returns its input until it is trained and can be put into a trained network.

    Args:
        in_channels (int): Channels of the map, a multiple of 4.
        num_heads (int): Heads; must divide ``in_channels``.
        mlp_ratio (float): Hidden width of the feed-forward network over ``in_channels``. Default 4.
        drop_path (float): Stochastic depth rate. Default 0.
        with_cp (bool | str): Recompute activations in backward instead of keeping them: True all of the layer, ``ffn``
            only that of the feed-forward network. Default False.

    Raises:
        ValueError: If ``num_heads`` or 4 does not divide ``in_channels``, or ``with_cp`` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        with_cp: bool | str = False,
    ) -> None:
        super().__init__()
        if in_channels % num_heads or in_channels % 4:
            raise ValueError(f'in_channels is {in_channels}, but num_heads {num_heads} and 4 must divide it')
        self.num_heads, self.with_cp = num_heads, check_with_cp(with_cp)
        self.norm1 = nn.LayerNorm(in_channels)
        self.query_key = nn.Linear(in_channels, 2 * in_channels)
        self.value = nn.Linear(in_channels, in_channels)
        self.proj = nn.Linear(in_channels, in_channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(in_channels)
        self.ffn = FeedForward.of(in_channels, int(in_channels * mlp_ratio), with_cp == 'ffn')
        init_linear_as_mae(self)
        for layer in (self.proj, self.ffn.layers[1]):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w), contiguous."""
        tokens = run_block(self._attend, x.permute(0, 2, 3, 1), with_cp=self.with_cp)  # (N, h, w, C)
        # contiguous for the same reason as in PyramidBackbone.forward
        return tokens.permute(0, 3, 1, 2).contiguous()

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        content = self.norm1(x)
        position = sincos_position(height, width, channels, device=x.device).to(content.dtype)
        query, key = split_heads(self.query_key(content + position).flatten(1, 2), 2, self.num_heads)
        (value,) = split_heads(self.value(content).flatten(1, 2), 1, self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value)  # (N, heads, h * w, C / heads)
        x = x + self.drop_path(self.proj(attended.transpose(1, 2).reshape(x.shape)))
        return x + self.drop_path(self.ffn(self.norm2(x)))
