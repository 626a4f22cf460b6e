"""UMPVT: pooling of keys and the position embedding; properties it shares with UMSwin are in test_pyramid.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mm_ummae.masking import UniformMask, sampled_positions, sincos_position
from mm_ummae.models import UMPVT
from tests.builders import ALL, SMALL, draw, made, maps, secondary_units, seeded

ARCH = SMALL[UMPVT]


def slow_masked(model: UMPVT, images: Tensor, mask: UniformMask) -> list[Tensor]:
    """Embed the whole image, put tokens over secondary units, add positions, gather, and run the blocks."""
    n, _, height, width = images.shape
    x = model.patch_embed.projection(images).permute(0, 2, 3, 1)  # (N, H / 4, W / 4, C)
    secondary = secondary_units(mask).view(n, height // 16, width // 16)
    secondary = secondary.repeat_interleave(4, 1).repeat_interleave(4, 2)
    x = torch.where(secondary[..., None], model.secondary_token, x)
    positions = model.pos_embed.view(*model.grid, -1).permute(2, 0, 1)[None]
    if model.grid != (height // 4, width // 4):
        positions = F.interpolate(positions, (height // 4, width // 4), mode='bicubic', align_corners=False)
    x = x + positions.permute(0, 2, 3, 1)
    rows, columns = sampled_positions(mask.offsets, 4)
    x = x[torch.arange(n)[:, None, None], rows, columns]  # (N, H / 8, W / 8, C)
    outs = []
    for stage, ratio in zip(model.stages, (4, 2, 1, 1), strict=True):
        if stage.downsample is not None:
            x = F.pad(x.permute(0, 3, 1, 2), (0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = stage.downsample.projection(x).permute(0, 2, 3, 1)
        for block in stage.blocks:
            x = block(x, ratio)
        outs.append(x)
    outs[-1] = model.norm(outs[-1])
    return [out.permute(0, 3, 1, 2) for out in outs]


@pytest.mark.parametrize('size', [(128, 128), (96, 160)], ids=str)
@torch.no_grad()
def test_masked_equals_gathering_from_the_whole_image(size: tuple[int, int]) -> None:
    """At the nominal size and another one, where an odd number of cells is padded."""
    model = made(UMPVT, secondary_token=True, out_indices=ALL)
    images, mask = seeded(2, 3, *size), draw(2, size)
    for ours, theirs in zip(maps(model, images, mask), slow_masked(model, images, mask), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# Positions


@pytest.mark.parametrize('size', [(64, 96), (128, 128), (50, 77)], ids=str)
@torch.no_grad()
def test_positions_are_resized_to_the_image(size: tuple[int, int]) -> None:
    """Bicubic, without aligned corners, rows and columns not mixed up; at the nominal size exactly the parameter."""
    for nominal, grid in (((64, 96), (16, 24)), ((50, 77), (13, 20))):  # padded patches count too
        model, images, inputs = made(UMPVT, img_size=nominal), seeded(2, 3, *size), []
        assert model.grid == grid and model.pos_embed.shape == (1, grid[0] * grid[1], 8)
        model.stages[0].blocks[0].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        maps(model, images)
        positions = model.pos_embed.view(1, *grid, 8).permute(0, 3, 1, 2)
        target = (-(-size[0] // 4), -(-size[1] // 4))
        if target != grid:
            positions = F.interpolate(positions, target, mode='bicubic', align_corners=False)
        assert torch.equal(inputs[0], model.patch_embed(images) + positions.permute(0, 2, 3, 1))


@pytest.mark.parametrize('learn', [True, False])
def test_learn_positions(learn: bool) -> None:
    """They start from sine-cosine values; only fine-tuning trains them, also at another size, unless frozen."""
    model = UMPVT(ARCH, img_size=(64, 96), learn_positions=learn)
    expected = sincos_position(16, 24, 8).flatten(0, 1)[None]
    assert torch.equal(model.pos_embed, expected)
    model.pos_embed.data.zero_()
    model.init_weights()
    assert torch.equal(model.pos_embed, expected)
    for size in ((64, 96), (80, 80)):
        model.zero_grad()
        model(seeded(1, 3, *size))[0].square().sum().backward()
        assert (model.pos_embed.grad is not None) == model.pos_embed.requires_grad == learn
    # Fixed positions are still a parameter: the same names before and after pre-training
    assert 'pos_embed' in dict(model.named_parameters()) and 'pos_embed' in model.state_dict()
    for frozen in (-1, 0, 2):
        model = UMPVT(ARCH, img_size=64, frozen_stages=frozen, learn_positions=learn)
        assert model.pos_embed.requires_grad == model.train().pos_embed.requires_grad == (learn and frozen < 0)


@pytest.mark.parametrize('img_size', [(96, 160), 100], ids=str)
def test_a_checkpoint_of_another_size_is_resized(img_size: int | tuple[int, int], tmp_path: Path) -> None:
    """Pre-trained at 64 px: all other parameters are loaded unchanged, the positions as F.interpolate resizes them."""
    source = made(UMPVT, img_size=64, final_norm=False).state_dict()
    state = {f'backbone.{name}': value for name, value in source.items()}
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    model = UMPVT(ARCH, img_size=img_size, final_norm=False, init_cfg=init_cfg)
    model.init_weights()
    positions = source.pop('pos_embed').view(1, 16, 16, 8).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, model.grid, mode='bicubic', align_corners=False)
    own = model.state_dict()
    torch.testing.assert_close(own.pop('pos_embed'), positions.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)
    assert own.keys() == source.keys() and all(torch.equal(own[name], source[name]) for name in own)


def test_adapt_state() -> None:
    """The given dict stays as it is, and so do positions that fit; a size that no square image has is refused."""
    model = UMPVT(ARCH, img_size=64)
    state = dict(pos_embed=seeded(1, 64, 8), other=torch.ones(3))
    adapted = model.adapt_state(state)
    assert adapted['pos_embed'].shape == (1, 256, 8) and adapted['other'] is state['other']
    assert state['pos_embed'].shape == (1, 64, 8)
    for state in (dict(pos_embed=seeded(1, 256, 8)), dict(other=torch.ones(3))):
        assert model.adapt_state(state).items() == state.items()
    with pytest.raises(ValueError, match=r'pos_embed .* shape \(1, 63, 8\).* no square grid.*16x16 tokens'):
        model.adapt_state(dict(pos_embed=seeded(1, 63, 8)))
