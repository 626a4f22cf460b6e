"""UMSwin: what it must not see, what it must agree with, and the switches of a backbone."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mm_ummae.masking import UniformMask, compact, draw_uniform_mask
from mm_ummae.models import UMMAE, UMMAEDecoder, UMMAEHead, UMSwin
from mm_ummae.models.um_swin import ARCHS
from mm_ummae.registry import MODELS

SMALL = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), position_dims=4)
PREFIXES = ('patch_embed.', *(f'stages.{i}.' for i in range(4)))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    return draw_uniform_mask(n, size, ratio, generator=torch.Generator().manual_seed(seed))


def made_swin(arch: str | dict = SMALL, img_size: int = 128, **kwargs) -> UMSwin:
    """A model whose every parameter matters: nothing is left at zero or one."""
    torch.manual_seed(0)
    model = UMSwin(arch, img_size=img_size, **kwargs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1 if 'position_bias' in name else 0.2
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def pixels(units: Tensor, height: int) -> Tensor:
    """(N, L) bool over units -> (N, 1, H, W) over pixels."""
    units = units.view(len(units), 1, height // 16, -1)
    return units.repeat_interleave(16, 2).repeat_interleave(16, 3)


@torch.no_grad()
def maps(model: nn.Module, images: Tensor, mask: UniformMask | None = None) -> tuple[Tensor, ...]:
    return model.eval()(images, mask)


# What the encoder may see


@pytest.mark.parametrize('size', [(64, 64), (96, 160), (128, 128)])
def test_hidden_pixels_do_not_reach_the_encoder(size: tuple[int, int]) -> None:
    """Neither those of units that were not sampled nor of secondary ones, not even a last bit."""
    model = made_swin(secondary_token=True, out_indices=(0, 1, 2, 3))
    images, mask = seeded(2, 3, *size), draw(2, size)
    assert mask.secondary.any()
    noise = torch.where(pixels(mask.hidden(), size[0]), 100 * seeded(2, 3, *size, seed=1), images)
    assert not torch.equal(noise, images)
    for before, after in zip(maps(model, images, mask), maps(model, noise, mask), strict=True):
        assert torch.equal(before, after)


def test_every_visible_pixel_reaches_the_encoder() -> None:
    """And nothing else: the gradient is non-zero exactly on the pixels that are not hidden."""
    model = made_swin(secondary_token=True)
    images, mask = seeded(2, 3, 96, 128).requires_grad_(), draw(2, (96, 128))
    model(images, mask)[0].square().sum().backward()
    assert torch.equal(images.grad != 0, ~pixels(mask.hidden(), 96).expand_as(images))
    assert model.secondary_token.grad.abs().min() > 0


def test_one_sampled_pixel_changes_the_output() -> None:
    model = made_swin(secondary_token=True)
    images, mask = seeded(1, 3, 64, 64), draw(1, (64, 64))
    visible = ~pixels(mask.hidden(), 64)[0, 0]
    before = maps(model, images, mask)[0]
    for y, x in ((0, 0), (15, 15), (7, 3)):
        for row, column in product(range(4), range(4)):
            changed = images.clone()
            changed[0, :, 16 * row + y, 16 * column + x] += 5
            same = torch.equal(maps(model, changed, mask)[0], before)
            assert same != bool(visible[16 * row + y, 16 * column + x])


def test_secondary_masking_replaces_content_only() -> None:
    """Which units are hidden matters, and so does the token; without a token secondary has no effect."""
    model = made_swin(secondary_token=True)
    images, mask = seeded(1, 3, 128, 128), draw(1, (128, 128))
    other = mask._replace(secondary=mask.secondary.flip(1))
    assert not torch.equal(mask.secondary, other.secondary)
    before = maps(model, images, mask)[0]
    assert not torch.allclose(before, maps(model, images, other)[0], atol=1e-3)
    with torch.no_grad():
        model.secondary_token.mul_(5).add_(1)  # taken away by the norm of the patch embedding
    torch.testing.assert_close(maps(model, images, mask)[0], before, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        model.secondary_token.add_(seeded(8))
    assert not torch.allclose(before, maps(model, images, mask)[0], atol=1e-3)

    plain = made_swin()
    assert torch.equal(maps(plain, images, mask)[0], maps(plain, images, other)[0])


def test_secondary_units_stay_at_their_position() -> None:
    """With all but one unit hidden the output still depends on where the hidden ones stand."""
    model = made_swin(secondary_token=True)
    mask = draw(1, (128, 128))
    blind = mask._replace(secondary=torch.ones_like(mask.secondary))
    moved = blind._replace(offsets=draw(1, (128, 128), seed=1).offsets)
    images = torch.zeros(1, 3, 128, 128)
    assert torch.equal(maps(model, images, blind)[0], maps(model, images + 1, blind)[0])
    # Equal tokens attend to equal values, so positions cannot show until one token differs.
    one = blind.secondary.clone()
    one[0, 1, 1] = False
    outs = [maps(model, images, mask._replace(secondary=one))[0] for mask in (blind, moved)]
    assert not torch.allclose(*outs, atol=1e-4)


@pytest.mark.parametrize('regular', [False, True], ids=['random', 'regular'])
@pytest.mark.parametrize('size', [(128, 128), (160, 96)], ids=str)
def test_masked_is_dense_on_the_compact_image(regular: bool, size: tuple[int, int]) -> None:
    """Without position bias a masked model is a dense one with half the window on the compact image.

    Shifted windows and padding included. With position bias it is not: kept tokens stand farther apart.
    """
    masked = made_swin(img_size=128, window_size=16, out_indices=(0, 1, 2, 3))
    dense = made_swin(img_size=64, window_size=8, out_indices=(0, 1, 2, 3))
    assert masked.stages[0].window_and_shift(True) == dense.stages[0].window_and_shift(False) == (8, 4)
    images, mask = seeded(2, 3, *size), draw(2, size, 0)
    if regular:
        mask = mask._replace(offsets=torch.zeros_like(mask.offsets))
    small = compact(images, mask.offsets)

    for ours, theirs in zip(maps(masked, images, mask), maps(dense, small), strict=True):
        assert ours.shape == theirs.shape
        assert not torch.allclose(ours, theirs, atol=1e-2)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if 'position_bias.fc2' in name:
                parameter.zero_()
    dense.load_state_dict(masked.state_dict())
    for ours, theirs in zip(maps(masked, images, mask), maps(dense, small), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_images_of_a_batch_do_not_meet() -> None:
    """Each image of a batch gives what it gives alone, masked (own bias for each image) or not."""
    model = made_swin(out_indices=(0, 1, 2, 3), secondary_token=True)
    for size, masked in (((128, 160), True), ((128, 128), False), ((50, 77), False)):
        images = seeded(3, 3, *size)
        mask = draw(3, size) if masked else None
        together = maps(model, images, mask)
        for i in range(3):
            own = mask and UniformMask(*(field[i : i + 1] for field in mask))
            for all_maps, alone in zip(together, maps(model, images[i : i + 1], own), strict=True):
                torch.testing.assert_close(all_maps[i : i + 1], alone, atol=1e-4, rtol=1e-4)


# Dense use


@pytest.mark.parametrize('size', [(50, 77), (32, 32), (33, 65), (160, 224), (3, 5), (64, 200)], ids=str)
def test_dense_sizes(size: tuple[int, int]) -> None:
    """Any side: maps have ceil(side / stride) tokens, and all weights get a gradient."""
    model = made_swin(out_indices=(0, 1, 2, 3), window_size=8)
    outs = model(seeded(2, 3, *size))
    for out, stride, width in zip(outs, (4, 8, 16, 32), model.num_features, strict=True):
        assert out.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
        assert out.isfinite().all()
    sum(out.square().sum() for out in outs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_masked_sizes() -> None:
    """With a mask the maps are those of the compact image, rounded up."""
    model = made_swin(out_indices=(0, 1, 2, 3))
    for size in ((128, 128), (96, 160), (32, 32)):
        for out, stride in zip(maps(model, seeded(1, 3, *size), draw(1, size)), (4, 8, 16, 32), strict=True):
            assert out.shape[2:] == (-(-size[0] // 2 // stride), -(-size[1] // 2 // stride))


def test_partial_patches_are_padded_with_zeros() -> None:
    """An image and the same image padded with zeros to whole patches give the same maps."""
    model = made_swin(out_indices=(0, 1, 2, 3), window_size=8)
    images = seeded(1, 3, 50, 77)
    padded = nn.functional.pad(images, (0, 3, 0, 2))
    for ours, theirs in zip(maps(model, images), maps(model, padded), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ('img_size', 'window', 'masked', 'expected'),
    [
        (256, 16, True, [(8, 4), (8, 4), (8, 0), (4, 0)]),  # pre-training, spec 3.1
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
    model = UMSwin(SMALL, img_size=img_size, window_size=window)
    assert [stage.window_and_shift(masked) for stage in model.stages] == expected


def test_every_second_block_shifts() -> None:
    model, shifts = made_swin(window_size=8), []
    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda _, args: shifts.append((args[1].window, args[1].shift)))
    maps(model, seeded(1, 3, 128, 128))
    assert shifts == [(8, 0), (8, 4), (8, 0), (8, 0), (8, 0), (4, 0)]


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 3), (0, 1, 2), [0, 1, 2, 3]])
def test_out_indices(out_indices: tuple[int, ...]) -> None:
    """The maps asked for, the same as when all are asked for; the last norm exists only if it is used."""
    everything = made_swin(out_indices=(0, 1, 2, 3))
    model = UMSwin(SMALL, img_size=128, out_indices=out_indices)
    own = model.state_dict()
    model.load_state_dict({name: value for name, value in everything.state_dict().items() if name in own})
    assert ('norm.weight' in own) == (3 in out_indices)
    images = seeded(1, 3, 64, 96)
    expected = maps(everything, images)
    outs = maps(model, images)
    assert len(outs) == len(out_indices)
    for out, i in zip(outs, out_indices, strict=True):
        assert torch.equal(out, expected[i])


def test_final_norm() -> None:
    """``final_norm=False`` leaves the LayerNorm out and changes nothing else."""
    with_norm = made_swin()
    without = UMSwin(SMALL, img_size=128, final_norm=False)
    state = with_norm.state_dict()
    without.load_state_dict({name: value for name, value in state.items() if not name.startswith('norm.')})
    images = seeded(1, 3, 64, 64)
    raw = maps(without, images)[0].permute(0, 2, 3, 1)
    with torch.no_grad():
        normed = with_norm.norm(raw).permute(0, 3, 1, 2)
    assert torch.equal(maps(with_norm, images)[0], normed)


# Training switches


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen: int, with_cp: bool) -> None:
    """Frozen parts stay in eval mode and get no gradient, also after ``train()``; all others train."""
    model = made_swin(frozen_stages=frozen, with_cp=with_cp, drop_path_rate=0.1)
    parts = (model.patch_embed, *model.stages)
    for mode in (False, True):
        model.train(mode)
        for i, part in enumerate(parts):
            assert {module.training for module in part.modules()} == {mode and i > frozen}
    model(seeded(4, 3, 64, 64))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        fixed = name.startswith(PREFIXES[: frozen + 1]) if frozen >= 0 else False
        assert parameter.requires_grad != fixed, name
        assert (parameter.grad is None) == fixed, name


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
def test_checkpointing_changes_nothing(masked: bool) -> None:
    """Recomputing gives the same output and gradients, with stochastic depth drawn the same again."""
    outs, gradients = [], []
    for with_cp in (False, True):
        model = made_swin(with_cp=with_cp, secondary_token=True, drop_path_rate=0.5).train()
        torch.manual_seed(3)
        out = model(seeded(4, 3, 64, 64), draw(4, (64, 64)) if masked else None)[0]
        out.square().sum().backward()
        outs.append(out)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*outs)
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_checkpointing_recomputes() -> None:
    """The switch is real: every block runs again in backward."""
    model, calls = made_swin(with_cp=True), []
    for stage in model.stages:
        for block in stage.blocks:
            block.norm1.register_forward_hook(lambda *args: calls.append(1))
    out = model.train()(seeded(1, 3, 64, 64))[0]
    assert len(calls) == 6
    out.sum().backward()
    assert len(calls) == 12


def test_drop_path() -> None:
    """Rates rise linearly to the last block; dropping happens in training only."""
    model = made_swin('test', drop_path_rate=0.7)
    rates = [getattr(block.drop_path, 'drop_prob', 0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    images = seeded(4, 3, 64, 64)
    assert torch.equal(maps(model, images)[0], maps(model, images)[0])
    model.train()
    assert not torch.allclose(model(images)[0], model(images)[0])


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, masked: bool) -> None:
    """Mixed precision stays finite, -100 of hidden pairs included, and near float32, gradients too."""
    size = (128, 128)
    images, mask = seeded(2, 3, *size), draw(2, size) if masked else None
    outs, gradients = [], []
    for enabled in (False, True):
        model = made_swin(window_size=16 if masked else 8, secondary_token=masked).eval()
        with torch.autocast('cpu', dtype=dtype, enabled=enabled):
            out = model(images, mask)[0]
        (out.float() * seeded(*out.shape, seed=1)).mean().backward()
        outs.append(out.float())
        gradients.append([p.grad for p in model.parameters()])
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
    assert outs[1].isfinite().all()
    assert (outs[0] - outs[1]).norm() < tolerance * outs[0].norm()
    assert all(gradient.isfinite().all() for gradient in gradients[1])
    exact, rough = (torch.cat([g.flatten() for g in parts]) for parts in gradients)
    assert (exact - rough).norm() < tolerance * exact.norm()


def test_compile_masked() -> None:
    """One graph without breaks serves every step: a new mask is new data, not a new program."""
    model = made_swin(img_size=64, secondary_token=True)
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


def test_compile_dense() -> None:
    model = made_swin(img_size=64, window_size=4, out_indices=(0, 1, 2, 3))
    counter = CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(3):
        images = seeded(2, 3, 72, 56, seed=step)
        for ours, theirs in zip(compiled(images), model(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


# Sizes


def expected_parameters(arch: str, decoder_depth: int) -> int:
    """Parameters of a pre-training model, added up from the description in the paper."""

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    def transformer(width: int) -> int:  # two norms, qkv, proj, feed-forward of ratio 4
        return (
            4 * width
            + linear(width, 3 * width)
            + linear(width, width)
            + linear(width, 4 * width)
            + linear(4 * width, width)
        )

    settings = ARCHS[arch]
    width, position = settings['embed_dims'], settings['position_dims']
    total = linear(4 * 4 * 3, width) + 2 * width + width  # patch embedding, its norm, secondary token
    for stage, (depth, heads) in enumerate(zip(settings['depths'], settings['num_heads'], strict=True)):
        if stage:
            total += 2 * width + linear(4 * width, 2 * width)  # merging
            width *= 2
        total += depth * (transformer(width) + linear(2, position) + linear(position, heads))
    total += 2 * width  # last norm
    decoder = linear(width, 4 * 512) + 512 + decoder_depth * transformer(512) + 2 * 512 + linear(512, 768)
    return total + decoder


@pytest.mark.parametrize(('arch', 'depth', 'published'), [('tiny', 2, 35.9), ('large', 8, 223.8)])
def test_true_sizes(arch: str, depth: int, published: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real architectures have the published number of parameters (spec 3.4).

    The published count holds the fixed 256 x 512 decoder positions, which are no parameters here.
    """
    for name in ('kaiming_uniform_', 'uniform_'):  # memory that is never written is never taken
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    backbone = UMSwin(arch, secondary_token=True)
    model = UMMAE(backbone, UMMAEDecoder(backbone.num_features[-1], depth=depth), UMMAEHead())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == expected_parameters(arch, depth)
    assert round((count + 256 * 512) / 1e6, 1) == published


# Errors


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='huge'), "arch is 'huge'.*test, tiny, small, base, large"),
        (dict(arch={'depths': (2, 2)}), r"arch has the keys \['depths'\].*exactly \['depths', 'embed_dims'"),
        (dict(arch=dict(SMALL, mlp_ratio=4)), "arch has the keys .*'mlp_ratio'.*needs exactly"),
        (dict(arch=dict(SMALL, depths=(2, 2, 2))), r'arch\.depths \(2, 2, 2\) and arch\.num_heads .* differ'),
        (dict(out_indices=(4,)), r'out_indices is \(4,\).*0\.\.3'),
        (dict(out_indices=(-1,)), r'out_indices is \(-1,\).*0\.\.3'),
        (dict(out_indices=()), r'out_indices is \(\)'),
        (dict(drop_path_rate=1.0), r'drop_path_rate is 1\.0.*\[0, 1\)'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate is -0\.1.*\[0, 1\)'),
        (dict(frozen_stages=5), r'frozen_stages is 5.*-1\.\.4'),
        (dict(frozen_stages=-2), r'frozen_stages is -2.*-1\.\.4'),
        (dict(window_size=0), 'window_size is 0'),
        (dict(img_size=0), 'img_size is 0'),
        (dict(img_size=(128, -32)), r'img_size is \(128, -32\)'),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UMSwin(**{'arch': SMALL, **kwargs})


def test_unknown_keyword_is_named() -> None:
    """A typo in a config must not train another model silently."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows_size'"):
        UMSwin('test', windows_size=8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows_size'"):
        MODELS.build(dict(type='mm_ummae.UMSwin', arch='test', windows_size=8))
    assert isinstance(MODELS.build(dict(type='mm_ummae.UMSwin', arch='test', window_size=8)), UMSwin)


def test_illegal_masked_inputs() -> None:
    with pytest.raises(ValueError, match=r'window_size is 7.*must be even'):
        UMSwin(SMALL, window_size=7)(torch.zeros(1, 3, 64, 64), draw(1, (64, 64)))
    assert UMSwin(SMALL, window_size=7)(torch.zeros(1, 3, 64, 64))[0].shape == (1, 64, 2, 2)  # fine without
    with pytest.raises(ValueError, match=r'image height is 80 px.*multiple of 32'):
        UMSwin(SMALL)(torch.zeros(1, 3, 80, 64), draw(1, (64, 64)))
