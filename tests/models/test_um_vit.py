"""UMViT on masked images against a slow encoder, and its decoder. Whole images: see test_plain_vit.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor

from mm_ummae.checkpoints import to_ours
from mm_ummae.masking import UniformMask, UnitMask, sincos_position
from mm_ummae.models import UMViT, UMViTDecoder
from tests.builders import SAMPLINGS, VIT, disturbed, draw_mask, maps, noisy, pixels, secondary_units, seeded
from tests.golden import made_images, published

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
    return model.ln1(x)[0] if model.final_norm else x[0]


@both_samplings
@pytest.mark.parametrize(('size', 'final_norm'), [((64, 96), False), ((128, 64), True)], ids=str)
@torch.no_grad()
def test_masked_images_equal_a_slow_encoder(size: tuple[int, int], final_norm: bool, sampling: str) -> None:
    """Image by image, also at another size than the nominal one, and with secondary units in their places."""
    model = made_vit((64, 96), secondary_token=True, final_norm=final_norm)
    images, mask = seeded(2, 3, *size), draw_mask(sampling, 2, size)
    out = maps(model, images, mask)[0]
    assert out.shape == (2, 1 + size[0] * size[1] // 1024, 16) and secondary_units(mask).any()
    for n, tokens in enumerate(out):
        torch.testing.assert_close(tokens, slow_masked(model, images[n], mask, n), atol=1e-5, rtol=1e-5)


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


@torch.no_grad()
def test_without_its_token_secondary_masking_has_no_effect() -> None:
    model, images, mask = made_vit(), seeded(1, 3, 64, 64), draw_mask('uniform', 1, (64, 64))
    blind = mask._replace(secondary=torch.ones_like(mask.secondary))
    assert torch.equal(maps(model, images, blind)[0], maps(model, images, mask)[0])


@torch.no_grad()
def test_converted_weights_fit_the_vit_of_mmpretrain() -> None:
    """It takes a published encoder as it is, and computes the same."""
    arch = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=384)
    ours, stock = UMViT(arch, 128, secondary_token=True), VisionTransformer(arch, 128, out_type='featmap')
    state = {name[9:]: value for name, value in to_ours(published('ummae_vit')).items() if name.startswith('backbone.')}
    ours.load_state_dict(state)
    del state['secondary_token']
    stock.load_state_dict(state)
    images = made_images(3, 2, 128, 128)
    assert torch.equal(maps(stock, images)[0], maps(ours, images)[0])


@both_samplings
@torch.no_grad()
def test_decoder_places_units(sampling: str) -> None:
    """Kept units and mask tokens stand at their place, with its position; the class token stands before them."""
    torch.manual_seed(0)
    decoder, entered = UMViTDecoder(6, 8, depth=1, num_heads=1, img_size=64), []
    decoder.mask_token.normal_()
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    mask, latent = draw_mask(sampling, 2, (64, 96)), seeded(2, 1 + 6, 6)
    assert decoder(latent, mask).shape == (2, 4, 6, 8)
    positions = sincos_position(4, 6, 8).flatten(0, 1)
    for n, tokens in enumerate(entered[0]):
        kept = iter(decoder.expand(latent[n]))
        torch.testing.assert_close(tokens[0], next(kept))
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            expected = decoder.mask_token.flatten() if removed else next(kept)
            torch.testing.assert_close(tokens[1 + unit], expected + positions[unit])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(patch_size=8), r'patches .*\(8, 8\).* a patch is a unit of 16 px'),
        (dict(patch_cfg=dict(stride=8)), r'patches .*stride of \(8, 8\).* a patch is a unit of 16 px'),
        (dict(with_cls_token=False), 'with_cls_token is False, but'),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UMViT(VIT, 64, **kwargs)


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        ((60, 64), r'image height is 60 px.*multiple of 16'),
        ((64, 64), r'mask is for 1 images of \(4, 6\) units, but 1 images of \(4, 4\) came'),
    ],
)
def test_masks_of_other_images(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_vit()(seeded(1, 3, *size), draw_mask('random', 1, (64, 96)))
