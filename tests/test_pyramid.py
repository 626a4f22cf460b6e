"""What UMSwin and UMPVT share: what they must not see, images of any size, and the switches of a backbone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
import torch
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mm_ummae.masking import UniformMask, draw_random_mask, draw_uniform_mask
from mm_ummae.models import UMPVT, AvgPoolNorm, UMSwin
from mm_ummae.models.backbones.pyramid import PyramidBackbone
from mm_ummae.registry import MODELS

Kind = type[PyramidBackbone]
SMALL = {
    UMSwin: dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), position_dims=4),
    UMPVT: dict(embed_dims=(8, 16, 24, 32), depths=(2, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(8, 8, 4, 4)),
}
SHALLOW = {  # the fewest blocks that do all there is, for the slow compiler
    UMSwin: dict(SMALL[UMSwin], depths=(2, 1, 1, 1)),
    UMPVT: dict(SMALL[UMPVT], depths=(1, 1, 1, 1)),
}
WINDOWS = {UMSwin: dict(window_size=8), UMPVT: {}}  # small enough to shift on 128 px
ALL = (0, 1, 2, 3)
both_kinds = pytest.mark.parametrize('kind', SMALL, ids=lambda kind: kind.__name__)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    return draw_uniform_mask(n, size, ratio, generator=torch.Generator().manual_seed(seed))


def draw_replaced(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(N, H / 16, W / 16) bool, as SimMIM draws it."""
    mask = draw_random_mask(n, size, generator=torch.Generator().manual_seed(seed))
    return mask.unsampled().view(n, size[0] // 16, size[1] // 16)


def disturbed(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """The same model with every parameter moved: nothing is left at zero or one, so each matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((1 if 'position_bias' in name else scale) * torch.randn_like(parameter))
    return model


def made(kind: Kind, arch: str | dict | None = None, img_size: int | tuple[int, int] = 128, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return disturbed(kind(arch or SMALL[kind], img_size=img_size, **kwargs))


def pixels(units: Tensor, height: int) -> Tensor:
    """(N, L) bool over units -> (N, 1, H, W) over pixels."""
    units = units.view(len(units), 1, height // 16, -1)
    return units.repeat_interleave(16, 2).repeat_interleave(16, 3)


def noisy(images: Tensor, hidden: Tensor) -> Tensor:
    """The images with strong noise where ``hidden`` (N, 1, H, W) says so."""
    changed = torch.where(hidden, 100 * seeded(*images.shape, seed=1), images)
    assert not torch.equal(changed, images)
    return changed


@torch.no_grad()
def maps(model: nn.Module, images: Tensor, *masks: UniformMask | None, **kwargs: Tensor) -> tuple[Tensor, ...]:
    model.eval()  # MMPretrain's ViT returns nothing here
    return model(images, *masks, **kwargs)


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.stages for block in stage.blocks]


def is_fixed(name: str, frozen: int) -> bool:
    """Whether ``frozen_stages`` freezes a parameter."""
    parts = ('patch_embed.', 'pos_embed', *(f'stages.{i}.' for i in range(frozen)))
    return frozen >= 0 and name.startswith(parts)


# What the encoder may see


@both_kinds
@pytest.mark.parametrize('size', [(64, 64), (96, 160), (128, 128)], ids=str)
def test_hidden_pixels_do_not_reach_the_encoder(kind: Kind, size: tuple[int, int]) -> None:
    """Neither those of units that were not sampled nor of secondary ones, not even a last bit."""
    model = made(kind, secondary_token=True, out_indices=ALL)
    images, mask = seeded(2, 3, *size), draw(2, size)
    assert mask.secondary.any()
    noise = noisy(images, pixels(mask.hidden(), size[0]))
    for before, after in zip(maps(model, images, mask), maps(model, noise, mask), strict=True):
        assert torch.equal(before, after)


@both_kinds
def test_every_visible_pixel_reaches_the_encoder(kind: Kind) -> None:
    """And nothing else: the gradient is non-zero exactly on the pixels that are not hidden."""
    model = made(kind, secondary_token=True)
    images, mask = seeded(2, 3, 96, 128).requires_grad_(), draw(2, (96, 128))
    model(images, mask)[0].square().sum().backward()
    assert torch.equal(images.grad != 0, ~pixels(mask.hidden(), 96).expand_as(images))
    assert model.secondary_token.grad.abs().min() > 0


@both_kinds
def test_one_sampled_pixel_changes_the_output(kind: Kind) -> None:
    model = made(kind, secondary_token=True)
    images, mask = seeded(1, 3, 64, 64), draw(1, (64, 64))
    visible = ~pixels(mask.hidden(), 64)[0, 0]
    before = maps(model, images, mask)[0]
    for y, x in ((0, 0), (15, 15), (7, 3)):
        for row, column in product(range(4), range(4)):
            changed = images.clone()
            changed[0, :, 16 * row + y, 16 * column + x] += 5
            same = torch.equal(maps(model, changed, mask)[0], before)
            assert same != bool(visible[16 * row + y, 16 * column + x])


@both_kinds
def test_secondary_masking_replaces_content(kind: Kind) -> None:
    """Which units are hidden matters, and so does the token; without a token secondary has no effect."""
    model = made(kind, secondary_token=True)
    images, mask = seeded(1, 3, 128, 128), draw(1, (128, 128))
    other = mask._replace(secondary=mask.secondary.flip(1))
    assert not torch.equal(mask.secondary, other.secondary)
    before = maps(model, images, mask)[0]
    assert not torch.allclose(before, maps(model, images, other)[0], atol=1e-3)
    with torch.no_grad():
        model.secondary_token.add_(seeded(8))
    assert not torch.allclose(before, maps(model, images, mask)[0], atol=1e-3)

    plain = made(kind)
    assert torch.equal(maps(plain, images, mask)[0], maps(plain, images, other)[0])


@both_kinds
def test_secondary_units_stay_at_their_position(kind: Kind) -> None:
    """With all but one unit hidden the output still depends on where the hidden ones stand."""
    model = made(kind, secondary_token=True)
    mask = draw(1, (128, 128))
    blind = mask._replace(secondary=torch.ones_like(mask.secondary))
    images = torch.zeros(1, 3, 128, 128)
    assert torch.equal(maps(model, images, blind)[0], maps(model, images + 1, blind)[0])
    # Swin's equal tokens attend to equal values, so positions cannot show until one token differs.
    one = blind.secondary.clone()
    one[0, 1, 1] = False
    offsets = draw(1, (128, 128), seed=1).offsets
    offsets[0, 1, 1] = mask.offsets[0, 1, 1]  # the one that is seen stays
    outs = [maps(model, images, UniformMask(where, one))[0] for where in (mask.offsets, offsets)]
    assert not torch.allclose(*outs, atol=1e-4)


@both_kinds
@pytest.mark.parametrize('size', [(64, 96), (80, 48), (128, 128)], ids=str)
def test_replaced_pixels_do_not_reach_the_encoder(kind: Kind, size: tuple[int, int]) -> None:
    """SimMIM: all tokens go in, and the gradient is non-zero exactly on the pixels of units that are kept."""
    model = made(kind, mask_token=True, out_indices=ALL, **WINDOWS[kind])
    images, replaced = seeded(2, 3, *size), draw_replaced(2, size)
    hidden = pixels(replaced.flatten(1), size[0])
    outs = maps(model, images, replaced=replaced)
    for before, after in zip(outs, maps(model, noisy(images, hidden), replaced=replaced), strict=True):
        assert torch.equal(before, after)
    images.requires_grad_()
    sum(out.square().sum() for out in model(images, replaced=replaced)).backward()
    assert torch.equal(images.grad != 0, ~hidden.expand_as(images))
    assert model.mask_token.grad.abs().min() > 0


@both_kinds
def test_replaced_units_are_tokens_in_the_dense_model(kind: Kind) -> None:
    """The same maps come from a dense model whose patch embedding gives the token at those units."""
    model = made(kind, mask_token=True, out_indices=ALL, **WINDOWS[kind])
    images, replaced = seeded(2, 3, 96, 128), draw_replaced(2, (96, 128))
    outs = maps(model, images, replaced=replaced)

    def put_tokens(module: nn.Module, args: tuple, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for n, row, column in replaced.nonzero().tolist():
            embedded[n, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = model.mask_token.flatten()
        return embedded

    plain = maps(model, images)
    model.patch_embed.register_forward_hook(put_tokens)
    for out, expected, dense in zip(outs, maps(model, images), plain, strict=True):
        assert torch.equal(out, expected)
        assert not torch.allclose(out, dense, atol=1e-3)


@both_kinds
def test_images_of_a_batch_do_not_meet(kind: Kind) -> None:
    """Each image of a batch gives what it gives alone, masked (each its own way) or not."""
    model = made(kind, out_indices=ALL, secondary_token=True, mask_token=True)
    for size, how in (((128, 160), 'mask'), ((128, 128), ''), ((50, 77), ''), ((80, 96), 'replaced')):
        images = seeded(3, 3, *size)
        mask = draw(3, size) if how == 'mask' else None
        replaced = draw_replaced(3, size) if how == 'replaced' else None
        together = maps(model, images, mask, replaced=replaced)
        for i in range(3):
            own = mask and UniformMask(*(field[i : i + 1] for field in mask))
            one = replaced if replaced is None else replaced[i : i + 1]
            for all_maps, alone in zip(together, maps(model, images[i : i + 1], own, replaced=one), strict=True):
                torch.testing.assert_close(all_maps[i : i + 1], alone, atol=1e-4, rtol=1e-4)


# Image sizes and outputs


@both_kinds
@pytest.mark.parametrize('size', [(50, 77), (32, 32), (33, 65), (160, 224), (3, 5), (64, 200)], ids=str)
def test_dense_sizes(kind: Kind, size: tuple[int, int]) -> None:
    """Any side: maps have ceil(side / stride) tokens, and all weights get a gradient."""
    model = made(kind, out_indices=ALL, **WINDOWS[kind])
    outs = model(seeded(2, 3, *size))
    for out, stride, width in zip(outs, (4, 8, 16, 32), model.num_features, strict=True):
        assert out.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
        assert out.isfinite().all()
    sum(out.square().sum() for out in outs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@both_kinds
def test_masked_sizes(kind: Kind) -> None:
    """With a mask the maps are those of the compact image, rounded up."""
    model = made(kind, out_indices=ALL)
    for size in ((128, 128), (96, 160), (32, 32)):
        for out, stride in zip(maps(model, seeded(1, 3, *size), draw(1, size)), (4, 8, 16, 32), strict=True):
            assert out.shape[2:] == (-(-size[0] // 2 // stride), -(-size[1] // 2 // stride))


@both_kinds
def test_partial_patches_are_padded_with_zeros(kind: Kind) -> None:
    """An image and the same image padded with zeros to whole patches give the same maps."""
    model = made(kind, out_indices=ALL, **WINDOWS[kind])
    images = seeded(1, 3, 50, 77)
    padded = nn.functional.pad(images, (0, 3, 0, 2))
    for ours, theirs in zip(maps(model, images), maps(model, padded), strict=True):
        torch.testing.assert_close(ours, theirs)


@both_kinds
@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 3), (0, 1, 2), [0, 1, 2, 3]], ids=str)
def test_out_indices(kind: Kind, out_indices: tuple[int, ...]) -> None:
    """The maps asked for, the same as when all are asked for; the last norm exists only if it is used."""
    everything = made(kind, out_indices=ALL)
    model = kind(SMALL[kind], img_size=128, out_indices=out_indices)
    own = model.state_dict()
    model.load_state_dict({name: value for name, value in everything.state_dict().items() if name in own})
    assert ('norm.weight' in own) == (3 in out_indices)
    images = seeded(1, 3, 64, 96)
    expected = maps(everything, images)
    outs = maps(model, images)
    assert len(outs) == len(out_indices)
    for out, i in zip(outs, out_indices, strict=True):
        assert torch.equal(out, expected[i])


@both_kinds
def test_final_norm(kind: Kind) -> None:
    """``final_norm=False`` leaves the LayerNorm out and changes nothing else."""
    with_norm = made(kind)
    without = kind(SMALL[kind], img_size=128, final_norm=False)
    state = with_norm.state_dict()
    without.load_state_dict({name: value for name, value in state.items() if not name.startswith('norm.')})
    images = seeded(1, 3, 64, 64)
    raw = maps(without, images)[0].permute(0, 2, 3, 1)
    with torch.no_grad():
        normed = with_norm.norm(raw).permute(0, 3, 1, 2)
    assert torch.equal(maps(with_norm, images)[0], normed)


# Training switches


@both_kinds
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages(kind: Kind, frozen: int, with_cp: bool) -> None:
    """Frozen parts stay in eval mode and get no gradient, also after ``train()``; all others train."""
    model = made(kind, frozen_stages=frozen, with_cp=with_cp, drop_path_rate=0.1)
    parts = (model.patch_embed, *model.stages)
    for mode in (False, True):
        model.train(mode)
        for i, part in enumerate(parts):
            assert {module.training for module in part.modules()} == {mode and i > frozen}
    model(seeded(4, 3, 64, 64))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != is_fixed(name, frozen), name
        assert (parameter.grad is None) == is_fixed(name, frozen), name
    model.requires_grad_(True).train()  # what a host thaws as a whole is frozen again
    assert all(value.requires_grad != is_fixed(name, frozen) for name, value in model.named_parameters())


@both_kinds
@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
def test_checkpointing_changes_nothing(kind: Kind, masked: bool) -> None:
    """Recomputing gives the same output and gradients, with stochastic depth drawn the same again."""
    outs, gradients = [], []
    for with_cp in (False, True):
        model = made(kind, with_cp=with_cp, secondary_token=True, drop_path_rate=0.5).train()
        torch.manual_seed(3)
        out = model(seeded(4, 3, 64, 64), draw(4, (64, 64)) if masked else None)[0]
        out.square().sum().backward()
        outs.append(out)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*outs)
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@both_kinds
def test_checkpointing_recomputes(kind: Kind) -> None:
    """The switch is real: every block runs again in backward."""
    model, calls = made(kind, with_cp=True), []
    for block in blocks(model):
        block.norm1.register_forward_hook(lambda *args: calls.append(1))
    out = model.train()(seeded(1, 3, 64, 64))[0]
    assert len(calls) == 6
    out.sum().backward()
    assert len(calls) == 12


@both_kinds
def test_drop_path(kind: Kind) -> None:
    """Rates rise linearly to the last block, before attention and feed-forward; dropping is for training only."""
    model = made(kind, drop_path_rate=0.5)
    for rates in (
        [getattr(block.drop_path, 'drop_prob', 0) for block in blocks(model)],
        [getattr(block.ffn.dropout_layer, 'drop_prob', 0) for block in blocks(model)],
    ):
        assert rates == pytest.approx([0.1 * i for i in range(6)])
    images = seeded(4, 3, 64, 64)
    assert torch.equal(maps(model, images)[0], maps(model, images)[0])
    model.train()
    assert not torch.allclose(model(images)[0], model(images)[0])


@both_kinds
@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
def test_autocast(kind: Kind, masked: bool) -> None:
    """bfloat16 (PyTorch 2.1 knows no other on a CPU) stays finite, -100 of hidden pairs included, and near float32."""
    size = (128, 128)
    images, mask = seeded(2, 3, *size), draw(2, size) if masked else None
    outs, gradients = [], []
    for enabled in (False, True):
        model = made(kind, secondary_token=masked, **({} if masked else WINDOWS[kind])).eval()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = model(images, mask)[0]
        (out.float() * seeded(*out.shape, seed=1)).mean().backward()
        outs.append(out.float())
        gradients.append([p.grad for p in model.parameters()])
    tolerance = 0.1
    assert outs[1].isfinite().all()
    assert (outs[0] - outs[1]).norm() < tolerance * outs[0].norm()
    assert all(gradient.isfinite().all() for gradient in gradients[1])
    exact, rough = (torch.cat([g.flatten() for g in parts]) for parts in gradients)
    assert (exact - rough).norm() < tolerance * exact.norm()


@both_kinds
def test_compile_masked(kind: Kind) -> None:
    """One graph without breaks serves every step: a new mask is new data, not a new program."""
    model = made(kind, SHALLOW[kind], img_size=64, secondary_token=True)
    counter = CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(3):
        images, mask = seeded(2, 3, 64, 64, seed=step), draw(2, (64, 64), seed=step)
        out, expected = compiled(images, mask)[0], model(images, mask)[0]
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        weights = list(model.parameters())
        gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (out, expected)]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert counter.frame_count == 1


@both_kinds
@torch.no_grad()
def test_compile_dense(kind: Kind) -> None:
    windows = dict(window_size=4) if kind is UMSwin else {}
    model = made(kind, SHALLOW[kind], img_size=64, out_indices=ALL, **windows)
    counter = CompileCounterWithBackend('eager')
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(3):
        images = seeded(2, 3, 72, 56, seed=step)
        for ours, theirs in zip(compiled(images), model(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


# Layer decay


def layers(names: Iterable[str], depths: dict[str, int]) -> dict[str, int]:
    """The layer of each name by the start it has; every start must occur."""
    names = list(names)
    assert all(any(name.startswith(start) for name in names) for start in depths)
    return {name: next(depth for start, depth in depths.items() if name.startswith(start)) for name in names}


@both_kinds
def test_layer_depth(kind: Kind) -> None:
    """Each block is a layer, through the classifier as layer decay asks: 6 blocks, one layer before and one behind."""
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


@both_kinds
@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='huge'), "arch is 'huge'.*test, tiny, small, .*, large, or a dict"),
        (dict(arch={'depths': (2, 2)}), r"arch has the keys \['depths'\].*exactly \['depths', 'embed_dims'"),
        (dict(out_indices=(4,)), r'out_indices is \(4,\).*0\.\.3'),
        (dict(out_indices=(-1,)), r'out_indices is \(-1,\).*0\.\.3'),
        (dict(out_indices=()), r'out_indices is \(\)'),
        (dict(drop_path_rate=1.0), r'drop_path_rate is 1\.0.*\[0, 1\)'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate is -0\.1.*\[0, 1\)'),
        (dict(frozen_stages=5), r'frozen_stages is 5.*-1\.\.4'),
        (dict(frozen_stages=-2), r'frozen_stages is -2.*-1\.\.4'),
        (dict(img_size=0), 'img_size is 0'),
        (dict(img_size=(128, -32)), r'img_size is \(128, -32\)'),
        (dict(img_size=(128, 128, 3)), r'img_size is \(128, 128, 3\)'),
    ],
    ids=str,
)
def test_illegal_arguments(kind: Kind, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{'arch': SMALL[kind], **kwargs})


@both_kinds
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(extra=4), "arch has the keys .*'extra'.*needs exactly"),
        (dict(depths=(2, 2, 2)), r'arch\.depths \(2, 2, 2\) and arch\.[a-z_]+ .* differ in length'),
        (dict(num_heads=(3, 2, 3, 4)), 'num_heads 3 does not divide embed_dims 8'),
    ],
    ids=str,
)
def test_illegal_architectures(kind: Kind, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind({**SMALL[kind], **change})


@both_kinds
def test_unknown_keyword_is_named(kind: Kind) -> None:
    """A typo in a config must not train another model silently."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        kind('test', depth=2)
    cfg = dict(type=f'mm_ummae.{kind.__name__}', arch='test')
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        MODELS.build(dict(cfg, depth=2))
    assert type(MODELS.build(cfg)) is kind


@both_kinds
def test_illegal_masks(kind: Kind) -> None:
    """The message names what was given and what is needed."""
    model, images = made(kind, secondary_token=True, mask_token=True), torch.zeros(1, 3, 64, 64)
    units = draw_random_mask(1, (64, 64))
    with pytest.raises(ValueError, match=f'mask is a UnitMask, but {kind.__name__} .* needs a UniformMask'):
        model(images, units)
    with pytest.raises(ValueError, match='mask and replaced are both given'):
        model(images, draw(1, (64, 64)), replaced=units.unsampled().view(1, 4, 4))
    with pytest.raises(ValueError, match=r'image height is 80 px.*multiple of 32'):
        model(torch.zeros(1, 3, 80, 64), draw(1, (64, 64)))
    with pytest.raises(ValueError, match=r'replaced is given.*set mask_token=True'):
        made(kind)(images, replaced=units.unsampled().view(1, 4, 4))


@both_kinds
@pytest.mark.parametrize(
    ('size', 'shape'),
    [((64, 64), (1, 4, 5)), ((64, 64), (2, 4, 4)), ((64, 64), (1, 16)), ((72, 64), (1, 4, 4)), ((64, 40), (1, 4, 2))],
    ids=str,
)
def test_replaced_fits_the_units(kind: Kind, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    model = made(kind, mask_token=True)
    with pytest.raises(ValueError, match=r'replaced has shape \(\d, .*multiples.*they are \(1, 3, '):
        model(torch.zeros(1, 3, *size), replaced=torch.ones(shape, dtype=torch.bool))


@both_kinds
def test_a_mask_of_other_images_is_refused(kind: Kind) -> None:
    """One row of cells would broadcast over the image without a word."""
    with pytest.raises(ValueError, match=r'mask is for \(1, 1, 2\) images and cells, but the images have \(1, 2, 2\)'):
        made(kind)(seeded(1, 3, 64, 64), draw(1, (32, 64)))
