"""Simple feature pyramid: five maps for a detector from the single map of a plain ViT (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn

from mm_ummae.registry import MODELS

NORM_EPS = 1e-6


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps of strides 4, 8, 16, 32 and 64 from the last one of a ViT with patches of 16 px.

    There are no connections from coarse to fine: each map is scaled from the same one, by transposed convolutions or
    pooling, and passes a 1x1 and a 3x3 convolution, each with LayerNorm over the channels. The coarsest is every second
    token of the one before it, as in an FPN. Parameters start as PyTorch's layers do, as published.

    Args:
        in_channels (int): Channels C of the backbone's map, a multiple of 4.
        out_channels (int): Channels D of each output. Default 256.

    Raises:
        ValueError: If ``in_channels`` is no positive multiple of 4.
    """

    def __init__(self, in_channels: int, out_channels: int = 256) -> None:
        super().__init__()
        if in_channels <= 0 or in_channels % 4:
            raise ValueError(
                f'in_channels is {in_channels}, but it must be a positive multiple of 4: enlarging the map halves them '
                'twice'
            )
        self.in_channels = in_channels
        half, quarter = in_channels // 2, in_channels // 4
        enlarge = [
            nn.ConvTranspose2d(in_channels, half, 2, 2),
            LayerNorm2d(half, eps=NORM_EPS),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        ]
        self.levels = ModuleList(
            [
                _level(enlarge, quarter, out_channels),
                _level([nn.ConvTranspose2d(in_channels, half, 2, 2)], half, out_channels),
                _level([], in_channels, out_channels),
                _level([nn.MaxPool2d(2)], in_channels, out_channels),
            ]
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Make the pyramid.

        Args:
            maps (tuple[Tensor]): One map (N, C, h, w) of stride 16, as backbones return them.
        Returns:
            tuple[Tensor, ...]: (N, D, 4h, 4w), (N, D, 2h, 2w), (N, D, h, w), (N, D, floor(h / 2), floor(w / 2)), and
            half of the last, rounded up; all contiguous, as MMCV's RoIAlign reads them.
        Raises:
            ValueError: If there is not exactly one map.
        """
        if len(maps) != 1:
            raise ValueError(f'{len(maps)} maps came, but the pyramid is made from one: set one of out_indices')
        outs = [level(maps[0]) for level in self.levels]
        return (*outs, F.max_pool2d(outs[-1], 1, stride=2))


def _level(scaling: list[nn.Module], channels: int, out_channels: int) -> nn.Sequential:
    """(N, C, h, w) -> (N, D, s * h, s * w); ``channels`` are those after the scaling by s."""
    return nn.Sequential(
        *scaling,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels, eps=NORM_EPS),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels, eps=NORM_EPS),
    )
