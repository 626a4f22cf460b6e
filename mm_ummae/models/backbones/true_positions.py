"""True positions for MMPretrain's Swin V2 under Uniform Masking (arXiv 2205.10063, section 3; 2111.09883).

The compact image closes the gaps between sampled units, so a stock network takes units for neighbours that are none.
Swin V2 has a small network for the bias of a relative position, which takes any: here it is evaluated at the
differences that the tokens have in the full image. Parameters and the dense forward remain those of the host. The table
of Swin holds whole positions inside a window only; looking it up at true differences, rounded and clipped, gained
nothing (docs/user_guides/stock_networks.md).
"""

from __future__ import annotations

from functools import cached_property
from math import log

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models.backbones import SwinTransformerV2
from torch import Tensor, nn

from mm_ummae.masking import UniformMask
from mm_ummae.models.layers import WindowGrid, attend_in_windows, compact_image_positions, split_heads

MAX_LOGIT_SCALE = log(100)  # of Swin V2


class CompactMap:
    """Map of a stage of the compact image: what its blocks pass to their attention instead of (rows, columns).

    Args:
        height (int): Token rows.
        width (int): Token columns.
        window (int): Side of a window of the network in tokens. A smaller map is one window, without padding.
        stride (int): Pixels per token in the full image.
        mask (UniformMask): The units that were sampled.
    """

    def __init__(self, height: int, width: int, window: int, stride: int, mask: UniformMask) -> None:
        self.height, self.width, self.stride, self.mask = height, width, stride, mask
        self.window = min(window, max(height, width))

    @cached_property
    def plain(self) -> WindowGrid:
        """Windows of blocks that do not shift."""
        return self._grid(0)

    @cached_property
    def shifted(self) -> WindowGrid:
        """Windows of blocks that shift; those of :attr:`plain` where the smaller side is no larger than a window."""
        return self._grid(self.window // 2) if self.window < min(self.height, self.width) else self.plain

    def _grid(self, shift: int) -> WindowGrid:
        positions = compact_image_positions(self.height, self.width, self.window, shift, self.stride, self.mask)
        return WindowGrid(self.height, self.width, self.window, shift, positions)


class TruePositionAttention(BaseModule):
    """A host's attention in shifted windows that also takes a :class:`CompactMap`.

    Args:
        stock (nn.Module): ``ShiftWindowMSA`` with a ``WindowMSAV2``. Its parts become those of this module, so the
            names of parameters stay.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.w_msa, self.drop, self.shifts = stock.w_msa, stock.drop, stock.shift_size > 0
        self._stock = [stock]  # in a list, so that its parameters are not counted twice

    def forward(self, query: Tensor, place: tuple[int, int] | CompactMap) -> Tensor:
        """(N, h * w, C) -> (N, h * w, C)."""
        if not isinstance(place, CompactMap):
            return self._stock[0](query, place)
        grid = place.shifted if self.shifts else place.plain
        windows = grid.partition(query.unflatten(1, (place.height, place.width)))  # (B, T, C)
        return self.drop(grid.merge(self._attend(windows, grid)).flatten(1, 2))

    def _attend(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """Cosine attention inside each window with the host's parameters: (B, T, C) -> (B, T, C)."""
        part, bias = self.w_msa, None
        if part.q_bias is not None:  # keys have none
            bias = torch.cat((part.q_bias, torch.zeros_like(part.q_bias), part.v_bias))
        query, key, value = split_heads(F.linear(x, part.qkv.weight, bias), 3, part.num_heads)
        scale = part.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        query, key = F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1)
        dropout = part.attn_drop.p if self.training else 0.0
        bias = point_bias(part, grid.positions.points)
        return part.proj_drop(part.proj(attend_in_windows(query, key, value, bias, grid, scale=1.0, dropout_p=dropout)))


def encode_compact(network: nn.Module, images: Tensor, mask: UniformMask) -> tuple[Tensor, ...]:
    """Maps of a Swin V2 for compact images, with true positions.

    Args:
        network (nn.Module): After :func:`take_true_positions`.
        images (Tensor): (N, 3, H / 2, W / 2), compact.
        mask (UniformMask): The units that were sampled.
    Returns:
        tuple[Tensor, ...]: Maps (N, C_i, h_i, w_i) of the network's ``out_indices``.
    """
    x, (height, width) = network.patch_embed(images)
    x, stride, outs = network.drop_after_pos(x), network.patch_embed.projection.stride[0], []
    for i, stage in enumerate(network.stages):
        if stage.downsample is not None:
            x, (height, width) = stage.downsample(x, (height, width))
            stride *= 2
        place = CompactMap(height, width, stage.blocks[0].attn.w_msa.window_size[0], stride, mask)
        for block in stage.blocks:
            x = block(x, place)
        if i in network.out_indices:
            out = getattr(network, f'norm{i}')(x)
            outs.append(out.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous())
    return tuple(outs)


def take_true_positions(network: nn.Module) -> None:
    """Let the attention of a Swin V2 take compact maps, in place.

    Args:
        network (nn.Module): MMPretrain's ``SwinTransformerV2``.
    Raises:
        ValueError: If it is another network, or has absolute positions.
    """
    if not isinstance(network, SwinTransformerV2) or network.use_abs_pos_embed:
        raise ValueError(
            f"true_positions is True, but {type(network).__name__} is not MMPretrain's SwinTransformerV2 without "
            'absolute positions, whose relative positions can be any: set true_positions=False'
        )
    for stage in network.stages:
        for block in stage.blocks:
            block.attn = TruePositionAttention(block.attn)


def point_bias(part: nn.Module, points: Tensor) -> Tensor:
    """Bias of a host's attention at any differences of positions.

    Args:
        part (nn.Module): ``WindowMSAV2``.
        points (Tensor): (P, 2) float, (row, column), key minus query in tokens.
    Returns:
        Tensor: (P, heads).
    """
    # The host keeps its own coordinates alone, spaced like this: the last is that of a difference of window - 1
    last = 8 ** part.relative_coords_table[0, -1, -1, 0] - 1
    scaled = -points * (last / (part.window_size[0] - 1))  # the host counts query minus key
    return 16 * part.cpb_mlp(scaled.sign() * (scaled.abs() + 1).log2() / 3).sigmoid()  # log2(8) is 3
