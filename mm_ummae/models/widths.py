"""Check of the channels between the parts of a classifier, detector or segmentor, when it is built."""

from __future__ import annotations

from mmpretrain.models import ClsHead, GlobalAveragePooling
from torch import nn

from .backbones import LoMaRBEiTViT, PlainViT, PyramidBackbone
from .necks import AvgPoolNorm, SimpleFeaturePyramid, StageProjection


def check_widths(model: nn.Module) -> None:
    """Check that the neck, and the head of a classifier, take the channels that they get from our backbones.

    Parts of hosts other than MMPretrain's heads are not looked at; pre-training models check themselves.

    Args:
        model (nn.Module): A model of a host.
    Raises:
        ValueError: Names ``neck.in_channels`` or ``head.in_channels`` and the right value.
    """
    backbone, neck, head = (getattr(model, name, None) for name in ('backbone', 'neck', 'head'))
    if isinstance(backbone, PyramidBackbone):
        widths = [backbone.num_features[index] for index in backbone.out_indices]
    elif isinstance(backbone, (PlainViT, LoMaRBEiTViT)):
        widths = [backbone.embed_dims] * len(backbone.out_indices)
    else:
        return
    if isinstance(neck, (nn.Sequential, nn.ModuleList)) and len(neck):  # ours comes before the host's
        neck = neck[0]
    if isinstance(neck, StageProjection):
        _compare('neck', neck, [projection.in_features for projection in neck.projections], widths)
    elif isinstance(neck, SimpleFeaturePyramid):
        _compare('neck', neck, neck.in_channels, widths[-1])
    elif isinstance(neck, AvgPoolNorm):
        _compare('neck', neck, neck.norm.normalized_shape[0], widths[-1])
    if isinstance(head, ClsHead) and isinstance(neck, (AvgPoolNorm, GlobalAveragePooling, type(None))):
        _compare('head', head, getattr(head, 'in_channels', widths[-1]), widths[-1])


def _compare(name: str, part: nn.Module, taken: int | list[int], given: int | list[int]) -> None:
    if taken != given:
        raise ValueError(
            f'{name}.in_channels of {type(part).__name__} is {taken}, but the backbone has {given} channels at its '
            f'out_indices: set model.{name}.in_channels={given}'
        )
