"""UMSwin: windows, position bias and secondary token; properties it shares with UMPVT are in test_pyramid.py."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mm_ummae.masking import compact, draw_uniform_mask
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


@torch.no_grad()
def test_the_nominal_size_moves_the_deep_stages() -> None:
    """A published detector in small: a nominal side of 1024 px and windows of 16 tokens, both divided by 4.

    Against the nominal side of pre-training the maps of stages 1 and 2 are the same to the last bit, those of stages 3
    and 4 others. The image has a quarter of the side of one of 416x608 px.
    """
    arch = dict(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), position_dims=4)
    large, small = (made(UMSwin, arch, img_size=side, window_size=4, out_indices=ALL) for side in (256, 64))
    small.load_state_dict(large.state_dict())  # no parameter depends on the size
    pairs = list(zip(*(maps(model, seeded(1, 3, 104, 152)) for model in (large, small)), strict=True))
    assert all(torch.equal(*pair) for pair in pairs[:2])
    for ours, theirs in pairs[2:]:
        assert (ours - theirs).abs().max() > 0.1 * ours.abs().max()


WARNING = (
    'model.backbone.img_size is 256x256, but there are training images of 800x1344 px: the windows of stages 3 and 4 '
    'are those of the smaller size (16 tokens, no shift; 8 tokens, no shift) instead of those of this one (16 tokens, '
    'shift 8; 16 tokens, shift 8), so deep features see less of their surroundings. Set model.backbone.img_size=800, '
    'or the size of the training crops if that is larger'
)


@pytest.mark.parametrize(
    ('img_size', 'sizes', 'masked', 'stages'),
    [
        (256, [(800, 1344), (1024, 1024)], False, 'stages 3 and 4'),  # once
        (256, [(256, 512), (800, 1344)], False, 'stages 3 and 4'),  # a wide image has the same windows
        (256, [(384, 384)], True, 'stages 3 and 4'),
        (512, [(512, 2048)], False, None),
        (512, [(512, 512), (576, 544)], False, 'stage 4'),
        (1024, [(1408, 1600)], False, None),  # HTC++
        ((200, 300), [(224, 320)], False, None),  # padded to multiples of 32
        ((300, 200), [(256, 320)], False, 'stages 3 and 4'),
    ],
    ids=str,
)
def test_images_larger_than_the_nominal_size(
    img_size: int | tuple, sizes: list, masked: bool, stages: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training warns, once, if a stage has other windows than at the size of the images; predictions never do."""
    warnings = []
    monkeypatch.setattr('mm_ummae.models.backbones.um_swin.print_log', lambda *args: warnings.append(args))
    with FakeTensorMode():
        model = UMSwin(SMALL[UMSwin], img_size=img_size)
        for mode in (False, True):
            assert not warnings
            for size in sizes:
                model.train(mode)(torch.empty(2, 3, *size), draw_uniform_mask(2, size) if masked else None)
    assert len(warnings) == (stages is not None)
    for message, *place in warnings:
        assert f'the windows of {stages} are' in message and place == ['current', logging.WARNING]
        assert size != (800, 1344) or message == WARNING


@pytest.mark.integration
def test_a_compiled_model_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because a message would break its graph."""
    monkeypatch.setattr('mm_ummae.models.backbones.um_swin.print_log', pytest.fail)
    arch = dict(embed_dims=8, depths=(1,), num_heads=(2,), position_dims=4)
    model = made(UMSwin, arch, img_size=32, window_size=8, out_indices=(0,))
    torch._dynamo.reset()
    torch.compile(model.train(), fullgraph=True, backend='eager')(seeded(1, 3, 64, 96))


def test_masked_images_need_even_windows() -> None:
    model, images = UMSwin(SMALL[UMSwin], window_size=7), seeded(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r'window_size is 7.*must be even'):
        model(images, draw(1, (64, 64)))
    assert model(images)[0].shape == (1, 64, 2, 2)  # legal without a mask
