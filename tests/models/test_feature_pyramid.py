"""SimpleFeaturePyramid against a slow formulation, its memory layout and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.models import SimpleFeaturePyramid
from tests.builders import disturbed, seeded


def slow_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm over the channels of (N, C, h, w)."""
    deviation = x - x.mean(1, keepdim=True)
    x = deviation / (deviation.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def slow_output(one: nn.Conv2d, norm: nn.LayerNorm, three: nn.Conv2d, last_norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The end of every level: 1x1, norm, 3x3, norm."""
    assert one.bias is None and three.bias is None
    return slow_norm(last_norm, F.conv2d(slow_norm(norm, F.conv2d(x, one.weight)), three.weight, padding=1))


def slow_pyramid(neck: SimpleFeaturePyramid, x: Tensor) -> list[Tensor]:
    (first, norm, _, second, *ends4), (enlarge, *ends2), ends1, (_, *ends_half) = neck.levels
    x2, x4 = enlarge(x), second(F.gelu(slow_norm(norm, first(x))))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    half = x[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2)).amax((3, 5))
    outs = [slow_output(*ends, scale) for ends, scale in ((ends4, x4), (ends2, x2), (ends1, x), (ends_half, half))]
    return [*outs, outs[-1][:, :, ::2, ::2]]


@pytest.mark.parametrize('size', [(4, 6), (3, 7)], ids=str)
@torch.no_grad()
def test_levels_equal_the_slow_formulation(size: tuple[int, int]) -> None:
    """Strides 4, 8, 16, 32 and 64 from a map of stride 16; odd sides are rounded.

    Contiguous, whatever the layout of the input: MMCV's RoIAlign misreads other layouts, without an error.
    """
    torch.manual_seed(0)
    neck, x = disturbed(SimpleFeaturePyramid(8, out_channels=6)).double(), seeded(2, 8, *size).double()
    outs = neck((x.contiguous(memory_format=torch.channels_last),))
    height, width = size
    halves = (height // 2, width // 2)
    sides = [(4 * height, 4 * width), (2 * height, 2 * width), size, halves, tuple((side + 1) // 2 for side in halves)]
    assert [tuple(out.shape) for out in outs] == [(2, 6, *side) for side in sides]
    for out, expected in zip(outs, slow_pyramid(neck, x), strict=True):
        assert out.is_contiguous()
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('channels', [0, -4, 6])
def test_channels_must_be_halved_twice(channels: int) -> None:
    with pytest.raises(ValueError, match=rf'in_channels is {channels}, but it must be a positive multiple of 4'):
        SimpleFeaturePyramid(channels)


@pytest.mark.parametrize('count', [0, 2])
def test_other_numbers_of_maps(count: int) -> None:
    with pytest.raises(ValueError, match=rf'{count} maps came, but the pyramid is made from one'):
        SimpleFeaturePyramid(8)(count * (seeded(1, 8, 4, 4),))
