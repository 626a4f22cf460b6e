"""Necks between a pyramid backbone and the heads of the hosts (UM-MAE's fine-tuning recipes)."""

from __future__ import annotations

from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mm_ummae.registry import MODELS


@MODELS.register_module()
class AvgPoolNorm(BaseModule):
    """Mean over the last map, then LayerNorm: the classifier's neck.

    Args:
        in_channels (int): Channels of the last map.
        norm_eps (float): Epsilon of the LayerNorm. Default 1e-6.
    """

    def __init__(self, in_channels: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=norm_eps)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Maps, the last (N, C, h, w) -> one (N, C)."""
        return (self.norm(maps[-1].mean((2, 3))),)


@MODELS.register_module()
class StageProjection(BaseModule):
    """Bring every stage to the same width: LayerNorm and linear for detectors, as published for GFL.

    Put it before the FPN: ``neck=[dict(type='mm_ummae.StageProjection', ...), dict(type='FPN', ...)]``.

    Args:
        in_channels (list[int]): Channels of each stage.
        out_channels (int): Channels of each output. Default 768.
        with_norm (bool): LayerNorm before the linear layer; the published segmentors have none. Default True.
        norm_eps (float): Epsilon of the LayerNorm. Default 1e-5.
        extra_layer (dict, optional): A layer (N, C, h, w) -> (N, C, h, w) that the last stage's map passes first, such
            as :class:`GlobalAttention` of HTC++.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int = 768,
        with_norm: bool = True,
        norm_eps: float = 1e-5,
        extra_layer: dict | None = None,
    ) -> None:
        super().__init__()
        # Part of this module and not a module before it: parameter names stay the same with and without it
        self.extra_layer = None if extra_layer is None else MODELS.build(extra_layer)
        self.norms = ModuleList(
            nn.LayerNorm(channels, eps=norm_eps) if with_norm else nn.Identity() for channels in in_channels
        )
        self.projections = ModuleList(nn.Linear(channels, out_channels) for channels in in_channels)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps (N, C_i, h_i, w_i) -> (N, out_channels, h_i, w_i).

        Raises:
            ValueError: If the number of maps differs from the number of projections.
        """
        if len(maps) != len(self.projections):
            raise ValueError(f'{len(maps)} maps came, but in_channels has {len(self.projections)} entries')
        if self.extra_layer is not None:
            maps = (*maps[:-1], self.extra_layer(maps[-1]))
        # (N, C, h, w) -> (N, h, w, C) -> (N, D, h, w); contiguous for the same reason as in PyramidBackbone.forward
        return tuple(
            projection(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).contiguous()
            for norm, projection, x in zip(self.norms, self.projections, maps, strict=True)
        )
