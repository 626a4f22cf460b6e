"""True positions for the stock Swin and Swin V2 under Uniform Masking (arXiv 2205.10063, section 3).

The compact image closes the gaps between sampled units, so a stock network would take units for neighbours that are
none. Here the attention of its blocks reads its own table of relative positions (Swin), or evaluates its own network
of relative positions (Swin V2), at the differences that the tokens have in the full image. Parameters and the dense
forward remain those of the host.
"""

from __future__ import annotations

from functools import cached_property
from math import isqrt, log

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
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
        stock (nn.Module): ``ShiftWindowMSA`` of MMPretrain, MMDetection or MMSegmentation. Its parts become those of
            this module, so the names of parameters stay.
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
        """Attend inside each window with the host's parameters: (B, T, C) -> (B, T, C)."""
        part = self.w_msa
        if hasattr(part, 'cpb_mlp'):  # Swin V2: cosine attention, no bias of the keys
            bias = part.q_bias
            if bias is not None:
                bias = torch.cat((bias, torch.zeros_like(bias), part.v_bias))
            query, key, value = split_heads(F.linear(x, part.qkv.weight, bias), 3, part.num_heads)
            scale = part.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
            query, key, scale = F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), 1.0
        else:
            query, key, value = split_heads(part.qkv(x), 3, part.num_heads)
            scale = part.scale
        dropout = part.attn_drop.p if self.training else 0.0
        bias = point_bias(part, grid.positions.points)
        x = attend_in_windows(query, key, value, bias, grid, scale=scale, dropout_p=dropout)
        return part.proj_drop(part.proj(x))


def encode_compact(network: nn.Module, images: Tensor, mask: UniformMask) -> tuple[Tensor, ...]:
    """Maps of a stock Swin or Swin V2 for compact images, with true positions.

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
        attention = stage.blocks[0].attn.w_msa
        merges_first = hasattr(attention, 'cpb_mlp')  # Swin V2, at the start of a stage
        if merges_first and stage.downsample is not None:
            x, (height, width) = stage.downsample(x, (height, width))
            stride *= 2
        place = CompactMap(height, width, attention.window_size[0], stride, mask)
        for block in stage.blocks:
            x = block(x, place)
        if i in network.out_indices:
            out = getattr(network, f'norm{i}')(x)
            outs.append(out.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous())
        if not merges_first and stage.downsample is not None:
            x, (height, width) = stage.downsample(x, (height, width))
            stride *= 2
    return tuple(outs)


def take_true_positions(network: nn.Module) -> None:
    """Let the attention of a stock Swin or Swin V2 take compact maps, in place.

    Args:
        network (nn.Module): ``SwinTransformer`` of MMPretrain, MMDetection or MMSegmentation, or MMPretrain's
            ``SwinTransformerV2``.
    Raises:
        ValueError: If it is another network, or has absolute positions or outputs after merging.
    """
    blocks = [block for stage in getattr(network, 'stages', ()) for block in getattr(stage, 'blocks', ())]
    if not blocks or not all(hasattr(getattr(block, 'attn', None), 'w_msa') for block in blocks):
        raise ValueError(
            f'true_positions is True, but {type(network).__name__} is no Swin or Swin V2 of MMPretrain, MMDetection or '
            'MMSegmentation, the networks whose relative positions are known: set true_positions=False'
        )
    for option in ('use_abs_pos_embed', 'out_after_downsample'):
        if getattr(network, option, False):
            raise ValueError(f'true_positions is True, but does not work with network.{option}=True: set one to False')
    for block in blocks:
        block.attn = TruePositionAttention(block.attn)


def point_bias(part: nn.Module, points: Tensor) -> Tensor:
    """Bias of a host's attention at any differences of positions.

    Swin: those of its table, rounded where a token stands for 2x2 units, and clipped to its reach. Swin V2: its
    network takes any.

    Args:
        part (nn.Module): ``WindowMSA`` or ``WindowMSAV2``.
        points (Tensor): (P, 2) float, (row, column), key minus query in tokens.
    Returns:
        Tensor: (P, heads).
    """
    points = -points  # the hosts count query minus key
    if not hasattr(part, 'cpb_mlp'):
        side = isqrt(len(part.relative_position_bias_table))
        row, column = (points.round().clamp(-(side // 2), side // 2).long() + side // 2).unbind(1)
        return part.relative_position_bias_table[row * side + column]
    # The host keeps its own coordinates alone, spaced like this: the last is that of a difference of window - 1
    last = 8 ** part.relative_coords_table[0, -1, -1, 0] - 1
    scaled = points * (last / (part.window_size[0] - 1))
    return 16 * part.cpb_mlp(scaled.sign() * (scaled.abs() + 1).log2() / 3).sigmoid()  # log2(8) is 3
