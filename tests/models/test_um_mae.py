"""UMMAE: pixels in the loss, tokens of the decoder, reconstructions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mm_ummae.masking import sincos_position
from mm_ummae.models import UMMAE, UMMAEDecoder, UMMAEHead
from tests.builders import (
    MEAN,
    SAMPLINGS,
    STD,
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


# Loss


@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('norm_pix', [True, False])
def test_loss_equals_loop(norm_pix: bool, sampling: str) -> None:
    """The whole loss from its description: mean over unsampled units, in raster order, of squared errors."""
    torch.manual_seed(0)
    head = UMMAEHead(12, norm_pix)
    images, mask = 2 * seeded(2, 3, 96, 128) + 1, draw_mask(sampling, 2, (96, 128))
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


def test_standardisation_is_unbiased_and_bounded() -> None:
    """A flat unit has variance 0 and must not give infinite targets."""
    head, mask, tokens = UMMAEHead(4), draw(1, (32, 32)), torch.zeros(1, 2, 2, 4)
    with torch.no_grad():
        head.pred.weight.zero_()
        head.pred.bias.zero_()
    assert head.loss(tokens, torch.full((1, 3, 32, 32), 3.0), mask) < 1e-6
    # Standardised by the unbiased variance, the mean square of a unit is 767 / 768
    loss = head.loss(tokens, 5 * seeded(1, 3, 32, 32), mask)
    torch.testing.assert_close(loss, torch.tensor(767 / 768), rtol=1e-5, atol=0)


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


@all_cases
def test_sampled_content_and_secondary_mask_matter(kind: str, sampling: str) -> None:
    """The loss does depend on visible pixels, and on which units are hidden."""
    model, mask = made_ummae(kind, sampling), draw_mask(sampling, 2, (128, 128))
    images = seeded(2, 3, 128, 128)
    loss = model(images, mode='loss', mask=mask)['loss']
    changed = torch.where(pixels(mask.hidden(), 128), images, images + seeded(2, 3, 128, 128, seed=1))
    assert not torch.allclose(model(changed, mode='loss', mask=mask)['loss'], loss, rtol=1e-6)
    other = mask._replace(secondary=~mask.secondary)
    assert not torch.allclose(model(images, mode='loss', mask=other)['loss'], loss, rtol=1e-6)


# Decoder


@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize('size', [(64, 128), (96, 160)], ids=str)
def test_tokens_of_the_decoder(size: tuple[int, int], published: bool) -> None:
    """Input of its blocks, unit by unit, also where an odd number of cells was padded.

    Published: the k-th sampled unit in cell order gets the position of the k-th in raster order.
    """
    torch.manual_seed(0)
    decoder = UMMAEDecoder(6, 8, depth=0, num_heads=1, img_size=64, published_positions=published)
    decoder.norm = nn.Identity()
    decoder.mask_token.data.normal_()
    mask, latent = draw(2, size), seeded(2, 6, -(-size[0] // 64), -(-size[1] // 64))
    tokens = decoder(latent, mask)
    positions = sincos_position(size[0] // 16, size[1] // 16, 8).flatten(0, 1)
    for n in range(2):
        kept = mask.kept()[n].tolist()
        source = dict(zip(kept, sorted(kept), strict=True)) if published else {}
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            row, column = divmod(unit, size[1] // 16)
            wide = decoder.expand(latent[n, :, row // 4, column // 4])
            sampled = wide[(row // 2 % 2) * 2 + column // 2 % 2 :: 4]  # channel 4c + i: sub-position i of c
            expected = decoder.mask_token.flatten() if removed else sampled
            torch.testing.assert_close(tokens[n, row, column], expected + positions[source.get(unit, unit)])


@pytest.mark.parametrize(
    ('kind', 'decoder', 'needed'), [('vit', 'UMMAEDecoder', 'UMViTDecoder'), ('pvt', 'UMViTDecoder', 'UMMAEDecoder')]
)
def test_a_decoder_of_the_other_kind_is_named(kind: str, decoder: str, needed: str) -> None:
    model = made_ummae(kind, neck=dict(type=f'mm_ummae.{decoder}'))
    with pytest.raises(ValueError, match=rf'latent has shape .*{decoder} takes .*{needed}'):
        model(seeded(1, 3, 64, 64), mode='loss')


# Predictions


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


class PerfectPrediction(nn.Module):
    """Replaces the last linear layer and returns the targets of all units."""

    def __init__(self, images: Tensor, norm_pix: bool) -> None:
        super().__init__()
        n, rows, columns = len(images), images.shape[2] // 16, images.shape[3] // 16
        places = all_indices((n, rows, columns))
        targets = [slow_target(images[i], row, column, norm_pix) for i, row, column in places]
        self.targets = torch.stack(targets).view(n, rows, columns, 768)

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[:3] == self.targets.shape[:3]
        return self.targets


@pytest.mark.parametrize('norm_pix', [True, False])
def test_perfect_prediction_reconstructs_the_image(norm_pix: bool) -> None:
    """Unit layout, standardisation and normalisation are undone in the right order."""
    model = made_ummae(norm_pix=norm_pix, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    images = (50 * seeded(2, 3, 64, 96) + 128).clamp(0, 255)
    inputs = (images - model.data_preprocessor.mean) / model.data_preprocessor.std
    model.head.pred = PerfectPrediction(inputs, norm_pix)
    for out, image in zip(model(inputs, mode='predict'), images, strict=True):
        torch.testing.assert_close(out.reconstruction, image, atol=1e-2, rtol=0)


# Settings


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'message'),
    [
        ('swin', dict(secondary_ratio=1), r'secondary_ratio is 1, but it must be in \[0, 1\)'),
        ('swin', dict(sampling='random'), "sampling is 'random', but UMSwin takes uniform: .*UMSimMIM.*UMViT"),
        ('pvt', dict(sampling='random'), "sampling is 'random', but UMPVT takes uniform: .*UMSimMIM.*UMViT"),
        ('vit', dict(backbone=dict(secondary_token=False)), r'ratio is 0\.25.*backbone\.secondary_token=True'),
    ],
)
def test_illegal_settings(kind: str, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_ummae(kind, **kwargs)


def test_backbone_that_takes_no_masks() -> None:
    neck = dict(type='mm_ummae.UMMAEDecoder', in_channels=512)
    with pytest.raises(ValueError, match="sampling is 'uniform', but ResNet takes none"):
        UMMAE(dict(type='mmpretrain.ResNet', depth=18), neck=neck, head=dict(type='mm_ummae.UMMAEHead'))


def test_no_secondary_masking_needs_no_token() -> None:
    model = made_ummae(backbone=dict(secondary_token=False), secondary_ratio=0)
    assert model(seeded(1, 3, 64, 64), mode='loss')['loss'].isfinite()
