"""Properties of both pyramids: what the encoder must not see, images of any size, and the switches of a backbone."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, UnitMask, draw_random_mask
from mm_ummae.models import UMPVT, AvgPoolNorm, UMSwin
from tests.builders import (
    ALL,
    SMALL,
    Pyramid,
    blocks,
    draw,
    draw_replaced,
    layers,
    made,
    maps,
    noisy,
    pixels,
    seeded,
)

WINDOWS = {UMSwin: dict(window_size=8), UMPVT: {}}  # small enough to shift on 128 px
both_kinds = pytest.mark.parametrize('kind', SMALL, ids=lambda kind: kind.__name__)


# What the encoder may see


@both_kinds
@pytest.mark.parametrize(
    ('how', 'size'),
    [('mask', (64, 64)), ('mask', (96, 160)), ('replaced', (64, 96)), ('replaced', (80, 48))],
)
def test_hidden_pixels_do_not_reach_the_encoder(kind: Pyramid, how: str, size: tuple[int, int]) -> None:
    """Of unsampled and secondary units, in SimMIM of replaced ones: not even a last bit. Every other pixel does."""
    model = made(kind, secondary_token=True, mask_token=True, out_indices=ALL, **WINDOWS[kind])
    images, mask, replaced = seeded(2, 3, *size), None, None
    if how == 'mask':
        mask = draw(2, size)
        hidden = pixels(mask.hidden(), size[0])
    else:
        replaced = draw_replaced(2, size)
        hidden = pixels(replaced.flatten(1), size[0])
    outs, others = (maps(model, x, mask, replaced=replaced) for x in (images, noisy(images, hidden)))
    assert all(map(torch.equal, outs, others))
    outs = model(images.requires_grad_(), mask, replaced=replaced)
    sum(out.square().sum() for out in outs).backward()
    assert torch.equal(images.grad != 0, ~hidden.expand_as(images))
    token = model.secondary_token if how == 'mask' else model.mask_token
    assert token.grad.abs().min() > 0


@both_kinds
def test_no_secondary_masking_without_a_token(kind: Pyramid) -> None:
    images, mask = seeded(1, 3, 128, 128), draw(1, (128, 128))
    other = mask._replace(secondary=~mask.secondary)
    for token in (True, False):
        model = made(kind, secondary_token=token)
        assert torch.equal(maps(model, images, mask)[0], maps(model, images, other)[0]) != token


# Image sizes and outputs


@both_kinds
@pytest.mark.parametrize(
    ('masked', 'size'),
    [(False, (50, 77)), (False, (3, 5)), (False, (64, 200)), (True, (128, 128)), (True, (96, 160)), (True, (32, 32))],
)
def test_sizes(kind: Pyramid, masked: bool, size: tuple[int, int]) -> None:
    """Maps have ceil(side / stride) tokens, of half the side with a mask, and all weights get a gradient."""
    model = made(kind, out_indices=ALL, **WINDOWS[kind])
    outs = model(seeded(2, 3, *size), draw(2, size) if masked else None)
    height, width = (side // 2 if masked else side for side in size)
    for out, stride, channels in zip(outs, (4, 8, 16, 32), model.num_features, strict=True):
        assert out.shape == (2, channels, -(-height // stride), -(-width // stride))
    sum(out.square().sum() for out in outs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@both_kinds
def test_partial_patches_are_padded_with_zeros(kind: Pyramid) -> None:
    """An image and the same image padded with zeros to whole patches give the same maps."""
    model, images = made(kind, out_indices=ALL, **WINDOWS[kind]), seeded(1, 3, 50, 77)
    padded = nn.functional.pad(images, (0, 3, 0, 2))
    for ours, theirs in zip(maps(model, images), maps(model, padded), strict=True):
        torch.testing.assert_close(ours, theirs)


@both_kinds
def test_out_indices(kind: Pyramid) -> None:
    """The maps asked for are those of a model that returns all; the last norm exists only where it is used."""
    everything, images = made(kind, out_indices=ALL), seeded(1, 3, 64, 96)
    expected = maps(everything, images)
    for stages in ((0,), (3,), [1, 3], (0, 1, 2)):
        model = kind(SMALL[kind], img_size=128, out_indices=stages)
        missing, surplus = model.load_state_dict(everything.state_dict(), strict=False)
        assert not missing and surplus == ([] if 3 in stages else ['norm.weight', 'norm.bias'])
        assert all(map(torch.equal, maps(model, images), [expected[i] for i in stages]))


@both_kinds
def test_state_dict_keys(kind: Pyramid) -> None:
    """A contract with every checkpoint: buffers of positions are not in it, tokens only where they are switched on.

    These names may never change.
    """
    keys = set(kind(SMALL[kind], secondary_token=True, mask_token=True).state_dict())
    tokens = {'secondary_token', 'mask_token'}
    assert tokens < keys and set(kind(SMALL[kind]).state_dict()) == keys - tokens

    def both(*names: str) -> set[str]:
        return {f'{name}.{end}' for name in names for end in ('weight', 'bias')}

    expected = both('patch_embed.projection', 'norm') | tokens
    expected |= both('patch_embed.norm') if kind is UMSwin else {'pos_embed'}
    attention = {
        UMSwin: ('qkv', 'position_bias.fc1', 'position_bias.fc2', 'proj'),
        UMPVT: ('q', 'reduction', 'norm', 'kv', 'proj'),
    }[kind]
    for stage, depth in enumerate(SMALL[kind]['depths']):
        if stage:
            expected |= both(f'stages.{stage}.downsample.projection')
            expected |= both(f'stages.{stage}.downsample.norm') if kind is UMSwin else set()
        for block in range(depth):
            parts = ('norm1', 'norm2', 'ffn.layers.0.0', 'ffn.layers.1', *(f'attn.{name}' for name in attention))
            expected |= both(*(f'stages.{stage}.blocks.{block}.{part}' for part in parts))
    assert keys == expected


# Training switches


@both_kinds
@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages(kind: Pyramid, frozen: int) -> None:
    """Frozen parts stay in eval mode and get no gradient, also after ``train()``; all others train."""
    fixed = ('patch_embed.', 'pos_embed', *(f'stages.{i}.' for i in range(frozen))) if frozen >= 0 else ()
    model = made(kind, frozen_stages=frozen, with_cp=True, drop_path_rate=0.1)
    for mode in (False, True):
        model.train(mode)
        for i, part in enumerate((model.patch_embed, *model.stages)):
            assert {module.training for module in part.modules()} == {mode and i > frozen}
    model(seeded(4, 3, 64, 64))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(fixed), name
        assert (parameter.grad is None) == name.startswith(fixed), name
    model.requires_grad_(True).train()  # a host may unfreeze the whole model
    assert all(value.requires_grad != name.startswith(fixed) for name, value in model.named_parameters())


@both_kinds
def test_drop_path(kind: Pyramid) -> None:
    """Rates rise linearly to the last block; a block whose paths are all dropped, in training, is the identity."""
    model, images = made(kind, drop_path_rate=0.5), seeded(4, 3, 64, 64)
    rates = [getattr(block.drop_path, 'drop_prob', 0) for block in blocks(model)]
    assert rates == pytest.approx([0.1 * i for i in range(6)])
    assert torch.equal(maps(model, images)[0], maps(model, images)[0])
    block, x = blocks(model.train())[-1], seeded(2, 4, 4, model.num_features[-1])
    block.drop_path.drop_prob = 1 - 1e-9
    context = model.stages[-1]._grids(x, None)[0] if kind is UMSwin else 1
    assert torch.equal(block(x, context), x)


@both_kinds
def test_layer_depth(kind: Pyramid) -> None:
    """Each block is a layer, in a classifier as layer decay asks: 6 blocks, one layer before and one after them."""
    backbone = kind(SMALL[kind], img_size=64, secondary_token=True, mask_token=True)
    width = backbone.num_features[-1]
    head = dict(type='LinearClsHead', num_classes=10, in_channels=width)
    model = ImageClassifier(backbone=backbone, neck=AvgPoolNorm(width), head=head)
    expected = {
        **dict.fromkeys(('backbone.patch_embed.', 'backbone.secondary_token', 'backbone.mask_token'), 0),
        **({'backbone.pos_embed': 0} if kind is UMPVT else {}),
        'backbone.stages.0.blocks.0.': 1,
        'backbone.stages.0.blocks.1.': 2,
        'backbone.stages.1.downsample.': 3,
        'backbone.stages.1.blocks.0.': 3,
        'backbone.stages.2.downsample.': 4,
        'backbone.stages.2.blocks.0.': 4,
        'backbone.stages.2.blocks.1.': 5,
        'backbone.stages.3.downsample.': 6,
        'backbone.stages.3.blocks.0.': 6,
        **dict.fromkeys(('backbone.norm.', 'neck.norm.', 'head.fc.'), 7),
    }
    names = [name for name, _ in model.named_parameters()]
    assert {name: model.get_layer_depth(name) for name in names} == {
        name: (depth, 8) for name, depth in layers(names, expected).items()
    }
    assert model.backbone.get_layer_depth('stages.2.blocks.1.norm1.weight') == (5, 8)  # no prefix


# Errors

BOTH, ONE_A_STAGE = (UMSwin, UMPVT), 'but it must be one value a stage'


@pytest.mark.parametrize(
    ('kinds', 'change', 'kwargs', 'message'),
    [
        (BOTH, {}, dict(arch='huge'), "arch is 'huge'.*test, tiny, small, .*, large, or a dict"),
        (BOTH, {}, dict(out_indices=(4,)), r'out_indices is \(4,\).*0\.\.3'),
        (BOTH, {}, dict(out_indices=()), r'out_indices is \(\)'),
        (BOTH, {}, dict(drop_path_rate=1.0), r'drop_path_rate is 1\.0.*\[0, 1\)'),
        (BOTH, {}, dict(frozen_stages=5), r'frozen_stages is 5.*-1\.\.4'),
        (BOTH, {}, dict(frozen_stages=-2), r'frozen_stages is -2.*-1\.\.4'),
        (BOTH, {}, dict(img_size=0), 'img_size is 0'),
        (BOTH, dict(extra=4), {}, r"arch has the keys .*'extra'.*needs exactly \['depths', 'embed_dims', .*\]"),
        (BOTH, {}, dict(arch=dict(depths=(2, 2))), r"arch has the keys \['depths'\].*exactly"),
        (BOTH, dict(depths=(2, 2, 2)), {}, r'arch\.depths \(2, 2, 2\) and arch\.[a-z_]+ .* differ in length'),
        (BOTH, dict(num_heads=(3, 2, 3, 4)), {}, 'num_heads is 3, but it must divide embed_dims, which is 8'),
        (BOTH, dict(num_heads=2), {}, rf'arch\.num_heads is 2, {ONE_A_STAGE}'),
        (BOTH, dict(depths=2), {}, rf'arch\.depths is 2, {ONE_A_STAGE}'),
        ([UMSwin], dict(embed_dims=(8, 16)), {}, r'arch\.embed_dims is \(8, 16\), but it must be one number'),
        ([UMSwin], {}, dict(window_size=0), 'window_size is 0, but a window needs at least one token'),
        ([UMPVT], dict(embed_dims=8), {}, rf'arch\.embed_dims is 8, {ONE_A_STAGE}'),
        ([UMPVT], dict.fromkeys(SMALL[UMPVT], (4, 4)), {}, r'arch\.depths is \(4, 4\), but PVT has 4 stages'),
        ([UMPVT], dict(embed_dims=(6, 16, 24, 32)), {}, r'embed_dims is 6.*multiple of 4'),
    ],
)
def test_illegal_arguments(kinds: list[Pyramid], change: dict, kwargs: dict, message: str) -> None:
    for kind in kinds:
        with pytest.raises(ValueError, match=message):
            kind(**{'arch': {**SMALL[kind], **change}, **kwargs})


UNITS = torch.ones(1, 4, 4, dtype=torch.bool)  # of an image of 64 px


@both_kinds
@pytest.mark.parametrize(
    ('size', 'mask', 'replaced', 'message'),
    [
        ((64, 64), draw_random_mask(1, (64, 64)), None, r'mask is a UnitMask, but UM\w+ .* needs a UniformMask'),
        ((64, 64), draw(1, (64, 64)), UNITS, 'mask and replaced are both given'),
        ((80, 64), draw(1, (64, 64)), None, r'image height is 80 px.*multiple of 32'),
        # One row of cells would broadcast over the image silently
        ((64, 64), draw(1, (32, 64)), None, r'mask is for \(1, 1, 2\) images and cells, but .* have \(1, 2, 2\)'),
        ((64, 64), None, UNITS[:, :, :3], r'replaced has shape \(1, 4, 3\), .*multiples.*they are \(1, 3, 64, 64\)'),
        ((64, 64), None, UNITS.expand(2, -1, -1), r'replaced has shape \(2, 4, 4\)'),
        ((64, 64), None, UNITS.flatten(1), r'replaced has shape \(1, 16\)'),
        ((72, 64), None, UNITS, r'replaced has shape .* they are \(1, 3, 72, 64\)'),
        ((64, 72), None, UNITS, r'replaced has shape .* they are \(1, 3, 64, 72\)'),
    ],
)
def test_illegal_masks(
    kind: Pyramid, size: tuple[int, int], mask: UniformMask | UnitMask | None, replaced: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(kind, mask_token=True)(torch.zeros(1, 3, *size), mask, replaced=replaced)
    with pytest.raises(ValueError, match=r'replaced is given.*set mask_token=True'):
        made(kind)(torch.zeros(1, 3, 64, 64), replaced=UNITS)
