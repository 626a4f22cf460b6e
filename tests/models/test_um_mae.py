"""UMMAE: pixels in the loss, tokens of the decoder, reconstructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_ummae.masking import sincos_position
from mm_ummae.models import UMMAE, UMPVT, UMMAEDecoder, UMMAEHead, UMSwin
from mm_ummae.models.layers import TokensToUnits
from tests.builders import (
    MEAN,
    SAMPLINGS,
    STD,
    Pyramid,
    all_indices,
    draw,
    draw_mask,
    made_ummae,
    pixels,
    secondary_units,
    seeded,
    slow_target,
)

CASES = [('swin', 'uniform'), ('pvt', 'uniform'), ('vit', 'uniform'), ('vit', 'random')]
all_cases = pytest.mark.parametrize(('kind', 'sampling'), CASES)


@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('norm_pix', [True, False])
def test_loss_equals_loop(norm_pix: bool, sampling: str) -> None:
    """The whole loss from its description: mean over unsampled units, in raster order, of squared errors."""
    torch.manual_seed(0)
    head = UMMAEHead(12, norm_pix)
    images, mask = 2 * seeded(2, 3, 96, 128) + 1, draw_mask(sampling, 2, (96, 128))
    images[0, :, :48, :48] = 3  # flat units, of variance 0
    tokens = seeded(2, 6, 8, 12, seed=1).requires_grad_()
    errors = []
    for n in range(2):
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            row, column = divmod(unit, 8)
            if removed:
                pred = head.pred.weight @ tokens[n, row, column] + head.pred.bias
                errors.append((pred - slow_target(images[n], row, column, norm_pix)).square())
    assert len(errors) == 2 * 36
    loss = head.loss(tokens, images, mask)
    torch.testing.assert_close(loss, torch.cat(errors).mean())
    loss.backward()  # exactly the tokens of unsampled units get a gradient
    touched = (tokens.grad != 0).flatten(1, 2)
    assert torch.equal(touched.all(-1), mask.unsampled()) and torch.equal(touched.any(-1), mask.unsampled())


@all_cases
@pytest.mark.parametrize('norm_pix', [True, False])
def test_gradient_of_the_loss_by_pixel(norm_pix: bool, kind: str, sampling: str) -> None:
    """Unsampled pixels count as target, visible ones as input, secondary ones in neither, to the last bit."""
    model, mask = made_ummae(kind, sampling, norm_pix), draw_mask(sampling, 2, (96, 128))
    images, secondary = seeded(2, 3, 96, 128), pixels(secondary_units(mask), 96)
    changed = torch.where(secondary, 50 * seeded(2, 3, 96, 128, seed=1), images)
    losses = [model(x.requires_grad_(), mode='loss', mask=mask)['loss'] for x in (images, changed)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert torch.equal(images.grad == 0, secondary.expand_as(images))


@pytest.mark.parametrize('kwargs', [{}, dict(published_positions=True)], ids=['aligned', 'published'])
@pytest.mark.parametrize('size', [(64, 128), (96, 160)], ids=str)
def test_tokens_of_the_decoder(size: tuple[int, int], kwargs: dict) -> None:
    """Input of its blocks, unit by unit, also where an odd number of cells was padded.

    Published: the k-th sampled unit in cell order gets the position of the k-th in raster order.
    """
    torch.manual_seed(0)
    decoder = UMMAEDecoder(6, 8, depth=0, num_heads=1, img_size=64, **kwargs)
    decoder.norm = nn.Identity()
    decoder.mask_token.data.normal_()
    mask, latent = draw(2, size), seeded(2, 6, -(-size[0] // 64), -(-size[1] // 64))
    tokens = decoder(latent, mask)
    positions = sincos_position(size[0] // 16, size[1] // 16, 8).flatten(0, 1)
    for n in range(2):
        kept = mask.kept()[n].tolist()
        source = dict(zip(kept, sorted(kept), strict=True)) if kwargs else {}
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            row, column = divmod(unit, size[1] // 16)
            wide = F.linear(latent[n, :, row // 4, column // 4], decoder.expand.weight, decoder.expand.bias)
            sampled = wide[(row // 2 % 2) * 2 + column // 2 % 2 :: 4]  # channel 4c + i: sub-position i of c
            expected = decoder.mask_token.flatten() if removed else sampled
            torch.testing.assert_close(tokens[n, row, column], expected + positions[source.get(unit, unit)])


@pytest.mark.parametrize('stride', [8, 16])
@torch.no_grad()
def test_units_of_a_map_of_another_stride(stride: int) -> None:
    """Each unit is a linear function of its own tokens, which are 2x2 at stride 8."""
    torch.manual_seed(0)
    side = 16 // stride
    layer, tokens = TokensToUnits(6, 5, stride), seeded(2, 6, 3 * side, 2 * side)
    units = layer(tokens)
    assert units.shape == (2, 3, 2, 5)
    for row in range(3):
        for column in range(2):
            own = tokens[:, :, side * row : side * (row + 1), side * column : side * (column + 1)].flatten(1)
            torch.testing.assert_close(units[:, row, column], F.linear(own, layer.weight, layer.bias))


def test_a_stride_without_units_is_refused() -> None:
    with pytest.raises(ValueError, match=r'stride is 4, but it must be one of \(8, 16, 32\)'):
        UMMAEDecoder(6, 8, depth=0, num_heads=1, stride=4)


@all_cases
@torch.no_grad()
def test_predict_uses_the_mask(kind: str, sampling: str) -> None:
    """Without a secondary token ``mask.secondary`` hides nothing, so only the unsampled units are hidden."""
    images, mask = seeded(2, 3, 96, 160), draw_mask(sampling, 2, (96, 160))
    assert secondary_units(mask).any()
    for token in (True, False):
        model = made_ummae(kind, sampling, backbone=dict(secondary_token=token), secondary_ratio=0).eval()
        outs = model(images, mode='predict', mask=mask)
        hidden = mask.hidden() if token else mask.unsampled()
        assert torch.equal(torch.stack([out.unsampled.flatten() for out in outs]), mask.unsampled())
        assert torch.equal(torch.stack([out.hidden.flatten() for out in outs]), hidden)


@pytest.mark.parametrize('norm_pix', [True, False])
def test_perfect_prediction_reconstructs_the_image(norm_pix: bool) -> None:
    """Unit layout, standardisation and normalisation are undone in the right order."""
    model = made_ummae(norm_pix=norm_pix, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    images = (50 * seeded(2, 3, 64, 96) + 128).clamp(0, 255)
    inputs = (images - model.data_preprocessor.mean) / model.data_preprocessor.std
    targets = [slow_target(inputs[n], row, column, norm_pix) for n, row, column in all_indices((2, 4, 6))]
    model.head.pred.forward = lambda tokens: torch.stack(targets).view(2, 4, 6, 768)
    for out, image in zip(model(inputs, mode='predict'), images, strict=True):
        torch.testing.assert_close(out.reconstruction, image, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ('kind', 'arch', 'depth', 'published'),
    [(UMSwin, 'tiny', 2, 35.9), (UMSwin, 'large', 8, 223.8), (UMPVT, 'small', 2, 28.9)],
)
def test_number_of_parameters(kind: Pyramid, arch: str, depth: int, published: float) -> None:
    """The published count holds the fixed 256 x 512 decoder positions, which are no parameters here."""
    with torch.device('meta'):
        backbone = kind(arch, secondary_token=True)
        model = UMMAE(backbone, UMMAEDecoder(backbone.num_features[-1], depth=depth), UMMAEHead())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round((count + 256 * 512) / 1e6, 1) == published
