"""UMViT: MMPretrain's ViT on whole images, and the kept units of masked ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, UnitMask, draw_random_mask, draw_uniform_mask
from mm_ummae.models import UMMAE, UMMAEHead, UMViT, UMViTDecoder
from mm_ummae.masking import sincos_position

from tests.builders import disturbed, layers, maps, noisy, pixels, seeded

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
DRAWS = {'uniform': draw_uniform_mask, 'random': draw_random_mask}
both_samplings = pytest.mark.parametrize('sampling', DRAWS)
Mask = UniformMask | UnitMask


def made_vit(img_size: int | tuple[int, int] = 64, **kwargs) -> UMViT:
    torch.manual_seed(0)
    return disturbed(UMViT(ARCH, img_size=img_size, **kwargs))


def draw(sampling: str, n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> Mask:
    return DRAWS[sampling](n, size, secondary_ratio=ratio, generator=torch.Generator().manual_seed(seed))


# Whole images


@pytest.mark.parametrize('size', [(64, 96), (96, 48), (100, 70)], ids=str)
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'raw', 'avg_featmap'])
@torch.no_grad()
def test_dense_is_the_vit_of_mmpretrain(out_type: str, size: tuple[int, int]) -> None:
    """The same names, and the same values bit for bit, also at sizes that resize positions or pad patches."""
    ours = made_vit((64, 96), out_type=out_type, out_indices=[0, 1])
    theirs = VisionTransformer(ARCH, img_size=(64, 96), out_type=out_type, out_indices=[0, 1])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = seeded(2, 3, *size)
    expected = maps(theirs, images)
    for out, other in zip(maps(ours, images), expected, strict=True):
        assert torch.equal(out, other)
    assert len(expected) == 2


def test_maps_come_by_default() -> None:
    """As from the pyramids, so that the same necks serve; MMPretrain's default is the class token."""
    assert maps(made_vit(), seeded(2, 3, 64, 96))[0].shape == (2, 16, 4, 6)


# Masked images


def slow_masked(model: UMViT, image: Tensor, mask: Mask, n: int) -> Tensor:
    """One image from its description: embed all patches, replace, add positions, keep the sampled, run the layers."""
    rows, columns = image.shape[1] // 16, image.shape[2] // 16
    tokens = model.patch_embed.projection(image[None]).flatten(2)[0].T  # (L, C)
    class_position, positions = model.pos_embed[0, :1], model.pos_embed[0, 1:]
    if model.patch_resolution != (rows, columns):
        positions = positions.T.view(1, -1, *model.patch_resolution)
        positions = F.interpolate(positions, (rows, columns), mode='bicubic', align_corners=False).flatten(2)[0].T
    kept = []
    unsampled, hidden = mask.unsampled()[n].tolist(), mask.hidden()[n].tolist()
    for unit in range(rows * columns):
        if not unsampled[unit]:
            kept.append((model.secondary_token[0, 0] if hidden[unit] else tokens[unit]) + positions[unit])
    x = torch.cat((model.cls_token[0] + class_position, torch.stack(kept)))[None]
    for layer in model.layers:
        x = layer(x)
    return model.ln1(x)[0]


@both_samplings
@pytest.mark.parametrize('size', [(64, 96), (128, 64), (96, 160)], ids=str)
@torch.no_grad()
def test_masked_equals_gathering_from_the_whole_image(sampling: str, size: tuple[int, int]) -> None:
    """Also at other sizes than the nominal one, and with secondary units."""
    model = made_vit((64, 96), secondary_token=True)
    images, mask = seeded(2, 3, *size), draw(sampling, 2, size)
    out = maps(model, images, mask)[0]
    assert out.shape == (2, 1 + size[0] * size[1] // 1024, 16)
    for n, tokens in enumerate(out):
        torch.testing.assert_close(tokens, slow_masked(model, images[n], mask, n), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_keeping_all_units_is_the_dense_model() -> None:
    model, images = made_vit(out_type='raw'), seeded(2, 3, 64, 64)
    everything = UnitMask(
        torch.arange(16).expand(2, -1), torch.zeros(2, 0).long(), torch.zeros(2, 16, dtype=torch.bool), (4, 4)
    )
    torch.testing.assert_close(maps(model, images, everything)[0], maps(model, images)[0], atol=1e-5, rtol=1e-5)


@both_samplings
def test_exactly_the_visible_pixels_reach_the_encoder(sampling: str) -> None:
    """Hidden ones change not even a last bit, and the gradient is non-zero exactly on the others."""
    model = made_vit(secondary_token=True)
    images, mask = seeded(2, 3, 96, 128), draw(sampling, 2, (96, 128))
    hidden = pixels(mask.hidden(), 96)
    assert (mask.hidden() & ~mask.unsampled()).any()
    assert torch.equal(maps(model, images, mask)[0], maps(model, noisy(images, hidden), mask)[0])
    images.requires_grad_()
    model(images, mask)[0].square().sum().backward()
    assert torch.equal(images.grad != 0, ~hidden.expand_as(images))
    assert model.secondary_token.grad.abs().min() > 0


@both_samplings
@torch.no_grad()
def test_secondary_units_keep_their_position(sampling: str) -> None:
    """Hidden content does not count, places do; without a token secondary has no effect."""
    model, images = made_vit(secondary_token=True), seeded(1, 3, 64, 64)
    mask, other = (draw(sampling, 1, (64, 64), seed=seed) for seed in (0, 1))
    blind, moved = (x._replace(secondary=torch.ones_like(x.secondary)) for x in (mask, other))
    assert not torch.equal(mask.unsampled(), other.unsampled())
    assert torch.equal(maps(model, images, blind)[0], maps(model, images + 1, blind)[0])
    assert not torch.allclose(maps(model, images, blind)[0], maps(model, images, moved)[0], atol=1e-3)
    assert not torch.allclose(maps(model, images, blind)[0], maps(model, images, mask)[0], atol=1e-3)
    plain = made_vit()
    assert torch.equal(maps(plain, images, blind)[0], maps(plain, images, mask)[0])


@both_samplings
@torch.no_grad()
def test_images_of_a_batch_do_not_meet(sampling: str) -> None:
    model, images = made_vit(secondary_token=True), seeded(3, 3, 64, 96)
    mask = draw(sampling, 3, (64, 96))
    together = maps(model, images, mask)[0]
    for i in range(3):
        own = [field[i : i + 1] if isinstance(field, Tensor) else field for field in mask]
        alone = maps(model, images[i : i + 1], type(mask)(*own))[0]
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_final_norm_is_optional() -> None:
    with_norm, images, mask = made_vit(), seeded(1, 3, 64, 64), draw('random', 1, (64, 64))
    without = UMViT(ARCH, img_size=64, final_norm=False)
    state = with_norm.state_dict()
    without.load_state_dict({name: value for name, value in state.items() if not name.startswith('ln1.')})
    with torch.no_grad():
        assert torch.equal(with_norm.ln1(maps(without, images, mask)[0]), maps(with_norm, images, mask)[0])


def test_autocast() -> None:
    """bfloat16 (PyTorch 2.1 knows no other on a CPU) stays near float32, secondary tokens and positions included."""
    images, mask = seeded(2, 3, 64, 96), draw('random', 2, (64, 96))
    outs, gradients = [], []
    for enabled in (False, True):
        model = made_vit(secondary_token=True)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = model(images, mask)[0]
        (out.float() * seeded(*out.shape, seed=1)).mean().backward()
        outs.append(out.float())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    tolerance = 0.1
    assert (outs[0] - outs[1]).norm() < tolerance * outs[0].norm()
    assert (gradients[0] - gradients[1]).norm() < tolerance * gradients[0].norm()


# Positions and initialisation


@pytest.mark.parametrize('learn', [True, False])
def test_learn_positions(learn: bool) -> None:
    """Sine-cosine values from the start, nothing for the class token; only fine-tuning trains them."""
    model = UMViT(ARCH, img_size=(64, 96), learn_positions=learn)
    expected = F.pad(sincos_position(4, 6, 16).flatten(0, 1), (0, 0, 1, 0))[None]
    assert torch.equal(model.pos_embed, expected)
    model.init_weights()
    assert torch.equal(model.pos_embed, expected)
    for mask in (None, draw('random', 1, (64, 96))):
        model.zero_grad()
        model(seeded(1, 3, 64, 96), mask)[0].square().sum().backward()
        assert (model.pos_embed.grad is not None) == model.pos_embed.requires_grad == learn
    assert 'pos_embed' in model.state_dict()


def test_frozen_positions_stay_frozen() -> None:
    """``learn_positions`` does not undo what MMPretrain's ``frozen_stages`` freezes."""
    assert not UMViT(ARCH, img_size=64, frozen_stages=1).pos_embed.requires_grad


def test_initialisation_is_that_of_mae() -> None:
    """Xavier for the patch convolution as for a linear layer on flattened patches, and for qkv; zero biases."""
    model = UMViT(ARCH, img_size=64, secondary_token=True)
    model.init_weights()
    qkv, projection = model.layers[0].attn.qkv, model.patch_embed.projection
    for layer, inputs, outputs in ((qkv, 16, 48), (projection, 768, 16)):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    for token in (model.cls_token, model.secondary_token):
        assert 0.005 < token.std() < 0.05


@pytest.mark.parametrize('img_size', [(96, 64), 128], ids=str)
def test_a_checkpoint_of_another_size_is_resized(img_size: int | tuple[int, int], tmp_path: Path) -> None:
    """Pre-trained at 64 px, with parts that only pre-training has: positions are resized, the class token's is not."""
    source = made_vit(64, secondary_token=True).state_dict()
    torch.save(dict(state_dict={f'backbone.{name}': x for name, x in source.items()}), tmp_path / 'model.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    model = UMViT(ARCH, img_size=img_size, final_norm=False, init_cfg=init_cfg)
    model.init_weights()
    positions = source.pop('pos_embed')
    resized = F.interpolate(
        positions[:, 1:].view(1, 4, 4, 16).permute(0, 3, 1, 2),
        model.patch_resolution,
        mode='bicubic',
        align_corners=False,
    )
    own = model.state_dict()
    found = own.pop('pos_embed')
    assert torch.equal(found[:, :1], positions[:, :1])
    torch.testing.assert_close(found[:, 1:], resized.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)
    assert source.keys() - own.keys() == {'secondary_token', 'ln1.weight', 'ln1.bias'}
    assert all(torch.equal(value, source[name]) for name, value in own.items())


def test_adapt_state_needs_a_square() -> None:
    model = UMViT(ARCH, img_size=64)
    assert model.adapt_state(dict(pos_embed=seeded(1, 50, 16)))['pos_embed'].shape == (1, 17, 16)
    with pytest.raises(ValueError, match=r'shape \(1, 49, 16\).* no square grid after 1 extra tokens.*4x4 tokens'):
        model.adapt_state(dict(pos_embed=seeded(1, 49, 16)))


def test_layer_depth() -> None:
    """Through the classifier, as layer decay asks: positions and tokens first, norm, neck and head last."""
    model = ImageClassifier(
        backbone=UMViT(ARCH, img_size=64, secondary_token=True),
        neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=16),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
    )
    first = [f'backbone.{name}' for name in ('patch_embed.', 'pos_embed', 'cls_token', 'secondary_token')]
    expected = {
        **dict.fromkeys(first, 0),
        'backbone.layers.0.': 1,
        'backbone.layers.1.': 2,
        **dict.fromkeys(('backbone.ln1.', 'neck.norm.', 'head.fc.'), 3),
    }
    names = [name for name, _ in model.named_parameters()]
    assert {name: model.get_layer_depth(name) for name in names} == {
        name: (depth, 4) for name, depth in layers(names, expected).items()
    }


# Decoder and sizes


@both_samplings
@pytest.mark.parametrize('size', [(64, 96), (96, 32)], ids=str)
@torch.no_grad()
def test_decoder_places_units(sampling: str, size: tuple[int, int]) -> None:
    """Kept units and mask tokens stand at their place, with its position; the class token stands before them."""
    torch.manual_seed(0)
    decoder, entered = UMViTDecoder(6, 8, depth=1, num_heads=1, img_size=64), []
    decoder.mask_token.normal_()
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    mask = draw(sampling, 2, size)
    latent = seeded(2, 1 + size[0] * size[1] // 1024, 6)
    out = decoder(latent, mask)
    assert out.shape == (2, size[0] // 16, size[1] // 16, 8)
    positions = sincos_position(size[0] // 16, size[1] // 16, 8).flatten(0, 1)
    for n, tokens in enumerate(entered[0]):
        kept = iter(decoder.expand(latent[n]))
        torch.testing.assert_close(tokens[0], next(kept))
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            expected = decoder.mask_token.flatten() if removed else next(kept)
            torch.testing.assert_close(tokens[1 + unit], expected + positions[unit])


def test_true_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B with its decoder has the published number of parameters (spec 3.4), fixed tables included."""
    for name in ('kaiming_uniform_', 'uniform_', 'xavier_uniform_'):  # memory that is never written is never taken
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    model = UMMAE(UMViT('base', secondary_token=True, learn_positions=False), UMViTDecoder(768), UMMAEHead())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round((count + 197 * 512) / 1e6, 1) == 93.0


# Errors


@pytest.mark.parametrize(
    'kwargs',
    [dict(patch_size=8), dict(patch_cfg=dict(kernel_size=8, stride=8)), dict(patch_cfg=dict(stride=8))],
    ids=str,
)
def test_a_patch_is_a_unit(kwargs: dict) -> None:
    with pytest.raises(ValueError, match=r'patches .*8.* a patch is a unit of 16 px'):
        UMViT(ARCH, img_size=64, **kwargs)


def test_a_class_token_is_needed() -> None:
    """It is part of what the decoder gets; MMPretrain's switch must not lead to a broken masked model."""
    with pytest.raises(ValueError, match='with_cls_token'):
        UMViT(ARCH, img_size=64, with_cls_token=False)


def test_masked_sides_are_checked() -> None:
    with pytest.raises(ValueError, match=r'image height is 60 px.*multiple of 16'):
        made_vit()(seeded(1, 3, 60, 64), draw('random', 1, (64, 64)))


def test_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'learned_positions'"):
        UMViT(ARCH, learned_positions=True)


@pytest.mark.parametrize('size', [(64, 96), (64, 32)])
def test_a_mask_of_other_images_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r'mask is for 1 images of .* units, but 1 images of \(4, 4\) came'):
        made_vit()(seeded(1, 3, 64, 64), draw('random', 1, size))
