"""UMViT on masked images against a slow encoder, and its decoder. Whole images: see test_plain_vit.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, UnitMask, sincos_position
from mm_ummae.models import UMMAE, UMMAEHead, UMViT, UMViTDecoder
from tests.builders import SAMPLINGS, VIT, disturbed, draw_mask, maps, noisy, pixels, secondary_units, seeded

both_samplings = pytest.mark.parametrize('sampling', SAMPLINGS)


def made_vit(img_size: int | tuple[int, int] = 64, **kwargs) -> UMViT:
    torch.manual_seed(0)
    return disturbed(UMViT(VIT, img_size, **kwargs))


def slow_masked(model: UMViT, image: Tensor, mask: UniformMask | UnitMask, n: int) -> Tensor:
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
def test_masked_images_equal_a_slow_encoder(sampling: str, size: tuple[int, int]) -> None:
    """Image by image, also at other sizes than the nominal one, and with secondary units."""
    model = made_vit((64, 96), secondary_token=True)
    images, mask = seeded(2, 3, *size), draw_mask(sampling, 2, size)
    out = maps(model, images, mask)[0]
    assert out.shape == (2, 1 + size[0] * size[1] // 1024, 16) and secondary_units(mask).any()
    for n, tokens in enumerate(out):
        torch.testing.assert_close(tokens, slow_masked(model, images[n], mask, n), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_keeping_all_units_is_the_whole_image() -> None:
    model, images = made_vit(out_type='raw'), seeded(2, 3, 64, 64)
    kept, removed = torch.arange(16).expand(2, -1), torch.zeros(2, 0, dtype=torch.int64)
    everything = UnitMask(kept, removed, torch.zeros(2, 16, dtype=torch.bool), (4, 4))
    torch.testing.assert_close(maps(model, images, everything)[0], maps(model, images)[0], atol=1e-5, rtol=1e-5)


@both_samplings
def test_exactly_the_visible_pixels_reach_the_encoder(sampling: str) -> None:
    """Hidden ones change not even a last bit, and the gradient is non-zero exactly on the others."""
    model = made_vit(secondary_token=True)
    images, mask = seeded(2, 3, 96, 128), draw_mask(sampling, 2, (96, 128))
    hidden = pixels(mask.hidden(), 96)
    assert torch.equal(maps(model, images, mask)[0], maps(model, noisy(images, hidden), mask)[0])
    images.requires_grad_()
    model(images, mask)[0].square().sum().backward()
    assert torch.equal(images.grad != 0, ~hidden.expand_as(images))
    assert model.secondary_token.grad.abs().min() > 0


@both_samplings
@torch.no_grad()
def test_secondary_units_keep_their_position(sampling: str) -> None:
    """Their content has no effect, their places do; without a token Secondary Masking has no effect."""
    model, images = made_vit(secondary_token=True), seeded(1, 3, 64, 64)
    mask, other = (draw_mask(sampling, 1, (64, 64), seed=seed) for seed in (0, 1))
    blind, moved = (x._replace(secondary=torch.ones_like(x.secondary)) for x in (mask, other))
    assert not torch.equal(mask.unsampled(), other.unsampled())
    out = maps(model, images, blind)[0]
    assert torch.equal(out, maps(model, images + 1, blind)[0])
    assert not torch.allclose(out, maps(model, images, moved)[0], atol=1e-3)
    assert not torch.allclose(out, maps(model, images, mask)[0], atol=1e-3)
    plain = made_vit()
    assert torch.equal(maps(plain, images, blind)[0], maps(plain, images, mask)[0])


@torch.no_grad()
def test_final_norm_is_optional() -> None:
    with_norm, without = made_vit(), UMViT(VIT, 64, final_norm=False)
    images, mask = seeded(1, 3, 64, 64), draw_mask('random', 1, (64, 64))
    without.load_state_dict({x: value for x, value in with_norm.state_dict().items() if not x.startswith('ln1.')})
    assert torch.equal(with_norm.ln1(maps(without, images, mask)[0]), maps(with_norm, images, mask)[0])


@both_samplings
@pytest.mark.parametrize('size', [(64, 96), (96, 32)], ids=str)
@torch.no_grad()
def test_decoder_places_units(sampling: str, size: tuple[int, int]) -> None:
    """Kept units and mask tokens stand at their place, with its position; the class token stands before them."""
    torch.manual_seed(0)
    decoder, entered = UMViTDecoder(6, 8, depth=1, num_heads=1, img_size=64), []
    decoder.mask_token.normal_()
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    mask = draw_mask(sampling, 2, size)
    latent = seeded(2, 1 + size[0] * size[1] // 1024, 6)
    assert decoder(latent, mask).shape == (2, size[0] // 16, size[1] // 16, 8)
    positions = sincos_position(size[0] // 16, size[1] // 16, 8).flatten(0, 1)
    for n, tokens in enumerate(entered[0]):
        kept = iter(decoder.expand(latent[n]))
        torch.testing.assert_close(tokens[0], next(kept))
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            expected = decoder.mask_token.flatten() if removed else next(kept)
            torch.testing.assert_close(tokens[1 + unit], expected + positions[unit])


def test_number_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B with its decoder, as published, fixed positions included."""
    for name in ('kaiming_uniform_', 'uniform_', 'xavier_uniform_'):  # memory that is never written is never taken
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    model = UMMAE(UMViT('base', secondary_token=True, learn_positions=False), UMViTDecoder(768), UMMAEHead())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round((count + 197 * 512) / 1e6, 1) == 93.0


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(patch_size=8), r'patches .*\(8, 8\).* a patch is a unit of 16 px'),
        (dict(patch_cfg=dict(kernel_size=8, stride=8)), r'patches .*\(8, 8\).* a patch is a unit of 16 px'),
        (dict(patch_cfg=dict(stride=8)), r'patches .*stride of \(8, 8\).* a patch is a unit of 16 px'),
        (dict(with_cls_token=False), 'with_cls_token is False, but'),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UMViT(VIT, 64, **kwargs)


@pytest.mark.parametrize(
    ('size', 'masked_size', 'message'),
    [
        ((60, 64), (64, 64), r'image height is 60 px.*multiple of 16'),
        ((64, 64), (64, 96), r'mask is for 1 images of \(4, 6\) units, but 1 images of \(4, 4\) came'),
        ((64, 64), (64, 32), r'mask is for 1 images of \(4, 2\) units, but'),
    ],
)
def test_masks_of_other_images(size: tuple[int, int], masked_size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_vit()(seeded(1, 3, *size), draw_mask('random', 1, masked_size))
