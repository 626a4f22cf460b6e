"""No image at all: every backbone and neck returns empty outputs of the right shape, and gradients of zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mm_ummae.models import UMPVT, UMSwin
from mm_ummae.registry import MODELS
from tests.builders import ALL, SMALL, VIT, seeded

OUT_TYPES = ('featmap', 'raw', 'cls_token', 'avg_featmap')
BACKBONES: dict[str, dict[str, Any]] = {
    'UMSwin': dict(type='UMSwin', arch=SMALL[UMSwin], out_indices=ALL),
    'UMPVT': dict(type='UMPVT', arch=SMALL[UMPVT], out_indices=ALL),
    **{
        f'{name} {out_type}': dict(type=name, arch=VIT, out_type=out_type, out_indices=(0, 1))
        for name in ('UMViT', 'LoMaRViT', 'LoMaRBEiTViT')
        for out_type in OUT_TYPES
    },
    'LoMaRViT windows': dict(
        type='LoMaRViT', arch=VIT, window_size=4, global_layers=(1,), with_cls_token=False, drop_path_rate=0.2
    ),
}
NECKS: dict[str, dict[str, Any]] = {
    'StageProjection': dict(type='StageProjection', in_channels=[4, 8], out_channels=6),
    'StageProjection without norm': dict(type='StageProjection', in_channels=[4, 8], with_norm=False),
    'StageProjection of HTC++': dict(
        type='StageProjection',
        in_channels=[4, 8],
        extra_layer=dict(type='mm_ummae.GlobalAttention', in_channels=8, num_heads=2),
    ),
    'AvgPoolNorm': dict(type='AvgPoolNorm', in_channels=8),
    'SimpleFeaturePyramid': dict(type='SimpleFeaturePyramid', in_channels=4, out_channels=6),
}


def built(cfg: dict[str, Any], **kwargs: Any) -> nn.Module:
    return MODELS.build({**cfg, **kwargs, 'type': f'mm_ummae.{cfg["type"]}'})


def check_empty(model: nn.Module, none: Any, one: Any) -> None:
    """The outputs are those for one input, without it."""
    for mode in (True, False):
        model.train(mode)
        outs, expected = model(none), model(one)
        assert len(outs) == len(expected)
        for out, like in zip(outs, expected, strict=True):
            assert isinstance(out, Tensor) and out.dtype == like.dtype
            assert out.shape == (0, *like.shape[1:])
    model.zero_grad()
    model.train()
    sum(out.sum() for out in model(none)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones(name: str) -> None:
    model = built(BACKBONES[name], img_size=64)
    check_empty(model, seeded(0, 3, 64, 64), seeded(1, 3, 64, 64))
    if 'BEiT' not in name:  # which takes one size only
        check_empty(model, seeded(0, 3, 96, 64), seeded(1, 3, 96, 64))


@pytest.mark.parametrize('name', NECKS)
def test_necks(name: str) -> None:
    maps = [(seeded(n, 4, 8, 6), seeded(n, 8, 4, 3)) for n in (0, 1)]
    if name == 'SimpleFeaturePyramid':
        maps = [each[:1] for each in maps]
    check_empty(built(NECKS[name]), *maps)


def test_global_attention() -> None:
    layer = built(dict(type='GlobalAttention', in_channels=8, num_heads=2))
    out = layer(torch.zeros(0, 8, 4, 3))
    assert out.shape == (0, 8, 4, 3) and out.is_contiguous()
