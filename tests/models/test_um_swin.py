"""UMSwin: windows, position bias and secondary token; properties it shares with UMPVT are in test_pyramid.py."""

from __future__ import annotations

import pytest
import torch

from mm_ummae.masking import compact
from mm_ummae.models import UMSwin
from tests.builders import ALL, SMALL, draw, made, maps, seeded


@pytest.mark.parametrize('size', [(128, 128), (160, 96)], ids=str)
def test_masked_is_dense_on_the_compact_image(size: tuple[int, int]) -> None:
    """Without position bias a masked model is a dense one with half the window on the compact image.

    Shifted windows and padding included. With position bias it is not: kept tokens stand farther apart.
    """
    masked = made(UMSwin, img_size=128, window_size=16, out_indices=ALL)
    dense = made(UMSwin, img_size=64, window_size=8, out_indices=ALL)
    images, mask = seeded(2, 3, *size), draw(2, size, 0)
    small = compact(images, mask.offsets)
    for ours, theirs in zip(maps(masked, images, mask), maps(dense, small), strict=True):
        assert not torch.allclose(ours, theirs, atol=1e-2)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if 'position_bias.fc2' in name:
                parameter.zero_()
    dense.load_state_dict(masked.state_dict())
    for ours, theirs in zip(maps(masked, images, mask), maps(dense, small), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('img_size', 'window', 'masked', 'expected'),
    [
        (256, 16, True, [(8, 4), (8, 4), (8, 0), (4, 0)]),  # pre-training
        (256, 16, False, [(16, 8), (16, 8), (16, 0), (8, 0)]),  # classification
        (224, 7, False, [(7, 3), (7, 3), (7, 3), (7, 0)]),
        (512, 16, False, [(16, 8), (16, 8), (16, 8), (16, 0)]),
        ((512, 128), 16, False, [(16, 8), (16, 0), (8, 0), (4, 0)]),  # the smaller side decides
        ((128, 512), 16, True, [(8, 4), (8, 0), (4, 0), (2, 0)]),
        (96, 8, False, [(8, 4), (8, 4), (6, 0), (3, 0)]),
    ],
)
def test_window_rule(img_size: int | tuple, window: int, masked: bool, expected: list) -> None:
    """A window never exceeds the nominal resolution, and one that fills it does not shift."""
    model = UMSwin(SMALL[UMSwin], img_size=img_size, window_size=window)
    assert [stage.window_and_shift(masked) for stage in model.stages] == expected


def test_masked_images_need_even_windows() -> None:
    model, images = UMSwin(SMALL[UMSwin], window_size=7), seeded(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r'window_size is 7.*must be even'):
        model(images, draw(1, (64, 64)))
    assert model(images)[0].shape == (1, 64, 2, 2)  # legal without a mask
