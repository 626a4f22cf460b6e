"""UMMAE: pixels in the loss, predictions, masks, training steps."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, UnitMask, sincos_position
from mm_ummae.models import UMMAE, UMMAEDecoder, UMMAEHead
from tests.builders import (
    BACKBONES,
    MEAN,
    SAMPLINGS,
    STD,
    Recorder,
    check_training,
    draw,
    draw_mask,
    made_ummae,
    of_image,
    pixels,
    secondary_units,
    seeded,
    slow_target,
    train_losses,
)

CASES = [('swin', 'uniform'), ('pvt', 'uniform'), ('vit', 'uniform'), ('vit', 'random')]
all_cases = pytest.mark.parametrize(('kind', 'sampling'), CASES)
both_samplings = pytest.mark.parametrize('sampling', SAMPLINGS)


# Loss


@both_samplings
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


@all_cases
def test_images_of_a_batch_do_not_meet(kind: str, sampling: str) -> None:
    """The loss of a batch is the mean of the losses of its images alone, each with its own mask."""
    model, images, mask = made_ummae(kind, sampling).eval(), seeded(3, 3, 128, 96), draw_mask(sampling, 3, (128, 96))
    losses = [model(images[i : i + 1], mode='loss', mask=of_image(mask, i))['loss'] for i in range(3)]
    together = model(images, mode='loss', mask=mask)['loss']
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-5, atol=0)


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
@pytest.mark.parametrize('to_rgb', [True, False])
def test_predict(to_rgb: bool, kind: str, sampling: str) -> None:
    """Through the data preprocessor and back: ``image`` is the input image, in pixel values."""
    preprocessor = dict(mean=MEAN, std=STD, to_rgb=to_rgb)
    model = made_ummae(kind, sampling, norm_pix=to_rgb, data_preprocessor=preprocessor).eval()
    images = (50 * seeded(2, 3, 96, 160) + 128).clamp(0, 255).byte()
    samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
    with torch.no_grad():
        outs = model.test_step(dict(inputs=images, data_samples=samples))
    assert [out.img_path for out in outs] == ['0.png', '1.png']
    for out, image in zip(outs, images, strict=True):
        assert out.image.dtype == out.reconstruction.dtype == torch.float32
        expected = image.flip(0) if to_rgb else image
        torch.testing.assert_close(out.image, expected.float(), atol=1e-3, rtol=0)
        assert out.reconstruction.shape == (3, 96, 160)
        assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 255
        assert out.unsampled.shape == out.hidden.shape == (6, 10)
        assert out.unsampled.dtype == out.hidden.dtype == torch.bool
        assert out.unsampled.sum() == 45 and out.hidden.sum() == 45 + 15 - int(15 * 0.75)


@all_cases
@torch.no_grad()
def test_predict_uses_the_mask(kind: str, sampling: str) -> None:
    """Without a secondary token ``mask.secondary`` hides nothing, so only the unsampled units are hidden."""
    images, mask = seeded(2, 3, 96, 160), draw_mask(sampling, 2, (96, 160))
    assert secondary_units(mask).any()
    for token in (True, False):
        model = made_ummae(kind, sampling, backbone=dict(secondary_token=token), secondary_ratio=0).eval()
        samples = [DataSample(), DataSample()]
        outs = model(images, samples, mode='predict', mask=mask)
        assert 'image' in outs[0] and 'image' not in samples[0]  # copies were written
        hidden = mask.hidden() if token else mask.unsampled()
        assert torch.equal(torch.stack([out.unsampled.flatten() for out in outs]), mask.unsampled())
        assert torch.equal(torch.stack([out.hidden.flatten() for out in outs]), hidden)


class PerfectPrediction(nn.Module):
    """Replaces the last linear layer and returns the targets of all units."""

    def __init__(self, images: Tensor, norm_pix: bool) -> None:
        super().__init__()
        rows, columns = images.shape[2] // 16, images.shape[3] // 16
        targets = [
            slow_target(image, row, column, norm_pix)
            for image in images
            for row in range(rows)
            for column in range(columns)
        ]
        self.targets = torch.stack(targets).view(len(images), rows, columns, 768)

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


def test_denormalize_without_preprocessing() -> None:
    """A model without mean and std returns the values unchanged, clipped to pixel values."""
    values = torch.tensor([-3.0, 0.5, 300.0]).expand(1, 3, 3).reshape(1, 3, 3, 1)
    assert made_ummae().denormalize(values)[0, 0, :, 0].tolist() == [0, 0.5, 255]


@both_samplings
def test_reconstruct(sampling: str) -> None:
    """A seed gives the same masks, another seed others; neither gradients nor the global generator are touched."""
    model = made_ummae('vit', sampling, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    data = dict(inputs=seeded(2, 3, 64, 96), data_samples=[DataSample(), DataSample()])
    before = torch.random.get_rng_state()
    first, again, other = (model.reconstruct(data, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state()) and not first[0].reconstruction.requires_grad
    mask = draw_mask(sampling, 2, (64, 96))
    given = model.reconstruct(data, seed=1, mask=mask)
    for i in range(2):
        assert torch.equal(first[i].reconstruction, again[i].reconstruction)
        assert torch.equal(first[i].reconstruction, given[i].reconstruction)  # the documented draw
        assert torch.equal(first[i].unsampled.flatten(), mask.unsampled()[i])
        assert not torch.equal(first[i].unsampled, other[i].unsampled)


@pytest.mark.parametrize('kind', BACKBONES)
@torch.no_grad()
def test_tensor_mode_is_the_dense_backbone(kind: str) -> None:
    """Features for probing come from whole images, without a mask."""
    model, images = made_ummae(kind).eval(), seeded(1, 3, 64, 96)
    expected = model.backbone(images)[0]
    for out in (model(images), model(images, mode='tensor'), model.extract_feat(images)):
        assert torch.equal(out[0], expected)


# Masks


@all_cases
def test_mask_is_drawn_each_step(kind: str, sampling: str) -> None:
    """Two steps on the same images see different masks; a seed repeats a step, with the documented draw."""
    model, images, losses = made_ummae(kind, sampling).eval(), seeded(2, 3, 128, 128), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)
    mask = SAMPLINGS[sampling](2, (128, 128), secondary_ratio=0.25)
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]


@both_samplings
@pytest.mark.parametrize('ratio', [0, 0.5])
def test_draw_mask(ratio: float, sampling: str) -> None:
    """Three quarters of the units are removed, and the model's own share of the others is hidden."""
    model = made_ummae('vit', sampling, secondary_ratio=ratio)
    mask = model.draw_mask(2, (128, 96), generator=torch.Generator().manual_seed(3))
    expected = draw_mask(sampling, 2, (128, 96), ratio, seed=3)
    assert type(mask) is type(expected)
    assert torch.equal(mask.unsampled(), expected.unsampled()) and torch.equal(mask.hidden(), expected.hidden())
    assert mask.unsampled().sum(1).tolist() == [36, 36]
    assert secondary_units(mask).sum(1).tolist() == [12 * ratio, 12 * ratio]
    assert model.draw_mask(2, (128, 96), device='meta').secondary.device.type == 'meta'


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('kind', 'mask', 'message'),
    [
        ('swin', draw(2, (128, 160)), r'mask\.offsets has shape \(2, 4, 5\)'),
        ('vit', draw(2, (128, 128))._replace(offsets=torch.full((2, 4, 4), 4)), r'mask\.offsets spans 4'),
        ('vit', draw_mask('random', 2, (128, 160)), r'mask\.grid is \(8, 10\)'),
        ('pvt', draw_mask('random', 2, (128, 128)), 'mask is a UnitMask, but UMPVT .* UniformMask'),
    ],
    ids=['size', 'value', 'grid', 'kind'],
)
def test_explicit_mask_is_checked(kind: str, mask: UniformMask | UnitMask, message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_ummae(kind)(seeded(2, 3, 128, 128), mode=mode, mask=mask)


@both_samplings
@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_image_sides_are_checked(mode: str, sampling: str) -> None:
    multiple = {'uniform': 32, 'random': 16}[sampling]
    with pytest.raises(ValueError, match=rf'image width is 100 px.*multiple of {multiple} px'):
        made_ummae('vit', sampling)(seeded(1, 3, 64, 100), mode=mode)


# Illegal settings


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'message'),
    [
        ('swin', dict(secondary_ratio=1), r'secondary_ratio is 1, but it must be in \[0, 1\)'),
        ('swin', dict(sampling='grid'), "sampling is 'grid', but it must be one of uniform, random"),
        ('swin', dict(sampling='random'), "sampling is 'random', but UMSwin takes uniform: .*UMSimMIM.*UMViT"),
        ('pvt', dict(sampling='random'), "sampling is 'random', but UMPVT takes uniform: .*UMSimMIM.*UMViT"),
        ('vit', dict(backbone=dict(secondary_token=False)), r'ratio is 0\.25.*backbone\.secondary_token=True'),
        # A wrong width fails at build and not in the first step
        (
            'swin',
            dict(neck=dict(in_channels=32)),
            r'neck\.in_channels is 32.* 64 channels: .*model\.neck\.in_channels=64',
        ),
        (
            'pvt',
            dict(neck=dict(in_channels=64)),
            r'neck\.in_channels is 64.* 32 channels: .*model\.neck\.in_channels=32',
        ),
        (
            'vit',
            dict(neck=dict(in_channels=64)),
            r'neck\.in_channels is 64.* 16 channels: .*model\.neck\.in_channels=16',
        ),
        (
            'swin',
            dict(neck=dict(embed_dims=64)),
            r'head\.in_channels is 32.* 64 channels: .*model\.head\.in_channels=64',
        ),
    ],
)
def test_illegal_settings(kind: str, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_ummae(kind, **kwargs)


def test_backbone_that_takes_no_masks() -> None:
    neck = dict(type='mm_ummae.UMMAEDecoder', in_channels=64)
    with pytest.raises(ValueError, match="sampling is 'uniform', but ResNet takes none"):
        UMMAE(dict(type='mmpretrain.ResNet', depth=18), neck=neck, head=dict(type='mm_ummae.UMMAEHead'))


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'secondary_rate'"):
        made_ummae(secondary_rate=0.5)
    for kind in ('swin', 'vit'):
        with pytest.raises(TypeError, match="unexpected keyword argument 'num_layers'"):
            made_ummae(kind, neck=dict(num_layers=2))


def test_no_secondary_masking_needs_no_token() -> None:
    model = made_ummae(backbone=dict(secondary_token=False), secondary_ratio=0)
    assert model(seeded(1, 3, 64, 64), mode='loss')['loss'].isfinite()


# Training


@all_cases
@pytest.mark.parametrize('size', [(96, 160), (32, 224)], ids=str)
def test_any_size_trains(size: tuple[int, int], kind: str, sampling: str) -> None:
    """Other sizes than the nominal one, odd numbers of cells, oblong images."""
    necks = [dict()] if kind == 'vit' else [dict(), dict(published_positions=True)]
    for neck in necks:
        check_training(made_ummae(kind, sampling, neck=neck), seeded(2, 3, *size), draw_mask(sampling, 2, size, 0.5))


def test_random_sampling_needs_no_cells() -> None:
    """3 x 5 units: int(15 / 4) = 3 are kept."""
    mask = draw_mask('random', 2, (48, 80), 0.5)
    assert mask.kept.shape == (2, 3)
    check_training(made_ummae('vit', 'random'), seeded(2, 3, 48, 80), mask)


@all_cases
def test_autocast(kind: str, sampling: str) -> None:
    """In bfloat16 the loss is float32 and near that of float32, and every gradient is finite."""
    images, mask = seeded(2, 3, 96, 128), draw_mask(sampling, 2, (96, 128))
    losses, gradients = [], []
    for enabled in (False, True):
        model = made_ummae(kind, sampling)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            loss = model(images, mode='loss', mask=mask)['loss']
        loss.backward()
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@all_cases
def test_one_step_lowers_the_loss(kind: str, sampling: str) -> None:
    before, after = train_losses(made_ummae(kind, sampling), 1, draw_mask(sampling, 2, (64, 64)))
    assert after < before


@pytest.mark.integration
def test_overfits_one_batch() -> None:
    losses = train_losses(made_ummae(), 60, draw(2, (64, 64)))
    assert losses[-1] < 0.5 * losses[0]


@all_cases
@pytest.mark.parametrize(('with_cp', 'published'), [(False, False), ('ffn', True)])
def test_a_step_never_synchronises(with_cp: bool | str, published: bool, kind: str, sampling: str) -> None:
    """Draw, forward, loss and backward read no value, so that the host can run ahead of a GPU."""
    backbone, neck = dict(drop_path_rate=0.2), dict(with_cp=with_cp)
    if kind != 'vit':
        backbone['with_cp'], neck['published_positions'] = with_cp, published
    model = made_ummae(kind, sampling, backbone=backbone, neck=neck).train()
    images = seeded(2, 3, 96, 160)
    with Recorder() as recorder:
        model(images, mode='loss')['loss'].backward()
    assert 'addmm' in recorder.names and {'randint', 'rand', 'argsort', 'sort'} & recorder.names
    assert not recorder.waiting
