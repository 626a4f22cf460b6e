"""UMMAE: which pixels the loss is about, what ``predict`` gives back, and that training steps work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mm_ummae.models import UMMAE, UMPVT, UMMAEDecoder, UMMAEHead, UMSwin
from mm_ummae.masking import sincos_position
from mm_ummae.registry import MODELS

from tests.builders import SMALL, disturbed, pixels, seeded
from .test_um_vit import ARCH, DRAWS, Mask, both_samplings, draw

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BACKBONES = {
    'swin': dict(type='mm_ummae.UMSwin', arch=SMALL[UMSwin]),
    'pvt': dict(type='mm_ummae.UMPVT', arch=SMALL[UMPVT], learn_positions=False),
    'vit': dict(type='mm_ummae.UMViT', arch=ARCH, learn_positions=False),
}
DECODERS = {
    'swin': dict(type='mm_ummae.UMMAEDecoder', in_channels=64),
    'pvt': dict(type='mm_ummae.UMMAEDecoder', in_channels=32),
    'vit': dict(type='mm_ummae.UMViTDecoder', in_channels=16),
}
CASES = [('swin', 'uniform'), ('pvt', 'uniform'), ('vit', 'uniform'), ('vit', 'random')]
all_cases = pytest.mark.parametrize(('kind', 'sampling'), CASES)
pyramids = pytest.mark.parametrize('kind', ['swin', 'pvt'])


def made_ummae(
    kind: str = 'swin',
    sampling: str = 'uniform',
    norm_pix: bool = True,
    backbone: dict | None = None,
    neck: dict | None = None,
    **kwargs: Any,
) -> UMMAE:
    """A model built as from a config, whose every parameter matters."""
    torch.manual_seed(0)
    decoder = dict(embed_dims=32, depth=1, num_heads=2, img_size=128)
    model = MODELS.build(
        dict(
            type='mm_ummae.UMMAE',
            backbone={**BACKBONES[kind], 'img_size': 128, 'secondary_token': True, **(backbone or {})},
            neck={**DECODERS[kind], **decoder, **(neck or {})},
            head=dict(type='mm_ummae.UMMAEHead', in_channels=32, norm_pix=norm_pix),
            sampling=sampling,
            **kwargs,
        )
    )
    return disturbed(model, 0.1)


def secondary_units(mask: Mask) -> Tensor:
    return mask.hidden() & ~mask.unsampled()


def slow_target(image: Tensor, row: int, column: int, norm_pix: bool) -> Tensor:
    """Pixels of a unit by (row, column, channel), standardised by its unbiased variance."""
    unit = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].permute(1, 2, 0).flatten()
    if not norm_pix:
        return unit
    mean = unit.sum() / 768
    variance = (unit - mean).square().sum() / 767
    return (unit - mean) / (variance + 1e-6).sqrt()


# Loss


@both_samplings
@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('size', [(64, 64), (96, 128)], ids=str)
def test_loss_equals_loop(size: tuple[int, int], norm_pix: bool, sampling: str) -> None:
    """The whole loss from its description: mean over unsampled units, in raster order, of squared errors."""
    torch.manual_seed(0)
    head = UMMAEHead(12, norm_pix)
    images, mask = 2 * seeded(2, 3, *size) + 1, draw(sampling, 2, size)
    tokens = seeded(2, size[0] // 16, size[1] // 16, 12, seed=1)
    errors = []
    for n in range(2):
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            row, column = divmod(unit, size[1] // 16)
            if removed:
                pred = head.pred.weight @ tokens[n, row, column] + head.pred.bias
                errors.append((pred - slow_target(images[n], row, column, norm_pix)).square())
    assert len(errors) == 2 * 3 * size[0] * size[1] // 1024
    torch.testing.assert_close(head.loss(tokens, images, mask), torch.cat(errors).mean())


def test_standardisation_is_unbiased_and_bounded() -> None:
    """A flat unit has variance 0 and must not give infinite targets."""
    head, mask = UMMAEHead(4), draw('uniform', 1, (32, 32))
    with torch.no_grad():
        head.pred.weight.zero_()
        head.pred.bias.zero_()
    tokens = torch.zeros(1, 2, 2, 4)
    assert head.loss(tokens, torch.full((1, 3, 32, 32), 3.0), mask) < 1e-6
    # Standardised by the unbiased variance, the mean square of a unit is 767 / 768.
    loss = head.loss(tokens, 5 * seeded(1, 3, 32, 32), mask)
    torch.testing.assert_close(loss, torch.tensor(767 / 768), rtol=1e-5, atol=0)


@both_samplings
def test_loss_ignores_tokens_of_sampled_units(sampling: str) -> None:
    """Exactly the tokens of unsampled units get a gradient."""
    torch.manual_seed(0)
    head, mask = UMMAEHead(12), draw(sampling, 2, (96, 128))
    tokens = seeded(2, 6, 8, 12).requires_grad_()
    head.loss(tokens, seeded(2, 3, 96, 128, seed=1), mask).backward()
    touched = (tokens.grad != 0).flatten(1, 2)
    assert torch.equal(touched.all(-1), mask.unsampled())
    assert torch.equal(touched.any(-1), mask.unsampled())


@all_cases
@pytest.mark.parametrize('norm_pix', [True, False])
def test_secondary_pixels_are_in_neither_input_nor_target(norm_pix: bool, kind: str, sampling: str) -> None:
    """Secondary units are seen by nobody: whatever their pixels, the loss is the same to the last bit."""
    model, mask = made_ummae(kind, sampling, norm_pix), draw(sampling, 2, (128, 128))
    images = seeded(2, 3, 128, 128)
    secondary = pixels(secondary_units(mask), 128)
    assert secondary.sum() == 2 * 4 * 256
    changed = torch.where(secondary, 50 * seeded(2, 3, 128, 128, seed=1), images)
    losses = [model(x, mode='loss', mask=mask)['loss'] for x in (images, changed)]
    assert torch.equal(*losses)


@all_cases
def test_gradient_of_the_loss_by_pixel(kind: str, sampling: str) -> None:
    """Unsampled pixels count as target, visible ones as input, secondary ones not at all."""
    model, mask = made_ummae(kind, sampling), draw(sampling, 2, (96, 128))
    images = seeded(2, 3, 96, 128).requires_grad_()
    model(images, mode='loss', mask=mask)['loss'].backward()
    assert torch.equal(images.grad == 0, pixels(secondary_units(mask), 96).expand_as(images))


@all_cases
def test_sampled_content_and_secondary_mask_matter(kind: str, sampling: str) -> None:
    """The loss does depend on what is seen, and on which units are hidden."""
    model, mask = made_ummae(kind, sampling), draw(sampling, 2, (128, 128))
    images = seeded(2, 3, 128, 128)
    loss = model(images, mode='loss', mask=mask)['loss']
    changed = torch.where(pixels(mask.hidden(), 128), images, images + seeded(2, 3, 128, 128, seed=1))
    assert not torch.allclose(model(changed, mode='loss', mask=mask)['loss'], loss, rtol=1e-6)
    other = mask._replace(secondary=~mask.secondary)
    assert not torch.allclose(model(images, mode='loss', mask=other)['loss'], loss, rtol=1e-6)


# Decoder


@pytest.mark.parametrize('size', [(64, 128), (96, 160)], ids=str)
def test_decoder_places_units(size: tuple[int, int]) -> None:
    """What enters the blocks, unit by unit (spec 4.1, 4.2), also where an odd number of cells was padded."""
    torch.manual_seed(0)
    decoder, mask = UMMAEDecoder(6, 8, depth=0, num_heads=1, img_size=64), draw('uniform', 2, size)
    decoder.norm = nn.Identity()
    decoder.mask_token.data.normal_()
    latent = seeded(2, 6, -(-size[0] // 64), -(-size[1] // 64))
    tokens = decoder(latent, mask)
    positions = sincos_position(size[0] // 16, size[1] // 16, 8)
    for n in range(2):
        for unit, removed in enumerate(mask.unsampled()[n].tolist()):
            row, column = divmod(unit, size[1] // 16)
            wide = decoder.expand(latent[n, :, row // 4, column // 4])
            sampled = wide[(row // 2 % 2) * 2 + column // 2 % 2 :: 4]  # channel 4c + i: sub-position i of c
            expected = decoder.mask_token.flatten() if removed else sampled
            torch.testing.assert_close(tokens[n, row, column], expected + positions[row, column])


# Predict


@all_cases
@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('to_rgb', [True, False])
def test_predict(to_rgb: bool, norm_pix: bool, kind: str, sampling: str) -> None:
    """Through the data preprocessor and back: ``image`` is the image that went in, in pixel values."""
    preprocessor = dict(mean=MEAN, std=STD, to_rgb=to_rgb)
    model = made_ummae(kind, sampling, norm_pix, data_preprocessor=preprocessor).eval()
    pictures = (50 * seeded(2, 3, 96, 160) + 128).clamp(0, 255).byte()
    samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
    with torch.no_grad():
        outs = model.test_step(dict(inputs=pictures, data_samples=samples))
    assert [out.img_path for out in outs] == ['0.png', '1.png']
    for out, picture in zip(outs, pictures, strict=True):
        assert out.image.shape == out.reconstruction.shape == (3, 96, 160)
        assert out.image.dtype == out.reconstruction.dtype == torch.float32
        expected = picture.flip(0) if to_rgb else picture
        torch.testing.assert_close(out.image, expected.float(), atol=1e-3, rtol=0)
        assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 255
        assert out.unsampled.shape == out.hidden.shape == (6, 10)
        assert out.unsampled.dtype == out.hidden.dtype == torch.bool
        assert out.unsampled.sum() == 45 and out.hidden.sum() == 45 + 15 - int(15 * 0.75)
        assert (out.hidden | ~out.unsampled).all()


@all_cases
def test_predict_uses_the_mask(kind: str, sampling: str) -> None:
    model, mask = made_ummae(kind, sampling).eval(), draw(sampling, 2, (96, 160))
    with torch.no_grad():
        samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
        outs = model(seeded(2, 3, 96, 160), samples, mode='predict', mask=mask)
    assert 'image' in outs[0] and 'image' not in samples[0]  # copies were written
    for out, unsampled, hidden in zip(outs, mask.unsampled(), mask.hidden(), strict=True):
        assert torch.equal(out.unsampled.flatten(), unsampled)
        assert torch.equal(out.hidden.flatten(), hidden)


@all_cases
@torch.no_grad()
def test_predict_tells_what_the_encoder_saw(kind: str, sampling: str) -> None:
    """Without a secondary token ``mask.secondary`` hides nothing, so nothing but the unsampled units is hidden."""
    model = made_ummae(kind, sampling, backbone=dict(secondary_token=False), secondary_ratio=0).eval()
    mask = draw(sampling, 2, (64, 64))
    assert secondary_units(mask).any()
    for out in model(seeded(2, 3, 64, 64), mode='predict', mask=mask):
        assert torch.equal(out.hidden, out.unsampled)


class PerfectPrediction(nn.Module):
    """Stands in for the last linear layer and returns the targets of all units."""

    def __init__(self, images: Tensor, norm_pix: bool) -> None:
        super().__init__()
        rows, columns = images.shape[2] // 16, images.shape[3] // 16
        self.targets = torch.stack(
            [
                torch.stack([slow_target(image, row, column, norm_pix) for column in range(columns)])
                for image in images
                for row in range(rows)
            ]
        ).view(len(images), rows, columns, 768)

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[:3] == self.targets.shape[:3]
        return self.targets


@pytest.mark.parametrize('norm_pix', [True, False])
def test_perfect_prediction_reconstructs_the_image(norm_pix: bool) -> None:
    """Unit layout, standardisation and normalisation are undone in the right order."""
    model = made_ummae(norm_pix=norm_pix, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    pictures = (50 * seeded(2, 3, 64, 96) + 128).clamp(0, 255)
    images = (pictures - model.data_preprocessor.mean) / model.data_preprocessor.std
    model.head.pred = PerfectPrediction(images, norm_pix)
    for out, picture in zip(model(images, mode='predict'), pictures, strict=True):
        torch.testing.assert_close(out.reconstruction, picture, atol=1e-2, rtol=0)


def test_denormalize_without_preprocessing() -> None:
    """A model without mean and std gives the values back, clipped to pixel values."""
    values = torch.tensor([-3.0, 0.5, 300.0]).expand(1, 3, 3).reshape(1, 3, 3, 1)
    assert made_ummae().denormalize(values)[0, 0, :, 0].tolist() == [0, 0.5, 255]


@pytest.mark.parametrize('kind', BACKBONES)
def test_tensor_mode_is_the_dense_backbone(kind: str) -> None:
    """Features for probing come from whole images, without a mask."""
    model, images = made_ummae(kind), seeded(1, 3, 64, 96)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images)[0], model.backbone(images)[0])
        assert torch.equal(model(images, mode='tensor')[0], model.extract_feat(images)[0])


# Mask


@all_cases
def test_mask_is_drawn_each_step(kind: str, sampling: str) -> None:
    """Two steps on the same images see different masks; a seed brings a step back."""
    model, images = made_ummae(kind, sampling).eval(), seeded(2, 3, 128, 128)
    losses = []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)  # and what is drawn is the documented draw
    mask = DRAWS[sampling](2, (128, 128), secondary_ratio=0.25)
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]


@all_cases
@pytest.mark.parametrize('ratio', [0, 0.5])
def test_draw_mask(ratio: float, kind: str, sampling: str) -> None:
    """Three quarters of the units go, and the model's own share of the rest is hidden; generator and device count."""
    model = made_ummae(kind, sampling, secondary_ratio=ratio)
    mask = model.draw_mask(2, (128, 96), generator=torch.Generator().manual_seed(3))
    expected = draw(sampling, 2, (128, 96), ratio, seed=3)
    assert type(mask) is type(expected)
    assert torch.equal(mask.unsampled(), expected.unsampled()) and torch.equal(mask.hidden(), expected.hidden())
    assert mask.unsampled().sum(1).tolist() == [36, 36]
    assert secondary_units(mask).sum(1).tolist() == [12 * ratio, 12 * ratio]
    assert model.draw_mask(2, (128, 96), device='meta').secondary.device.type == 'meta'


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('kind', 'mask', 'message'),
    [
        ('swin', draw('uniform', 2, (128, 160)), r'mask\.offsets has shape \(2, 4, 5\)'),
        ('pvt', draw('uniform', 1, (128, 128)), r'mask\.offsets has shape \(1, 4, 4\)'),
        ('vit', draw('uniform', 2, (128, 128))._replace(offsets=torch.full((2, 4, 4), 4)), r'mask\.offsets spans 4'),
        ('swin', draw('uniform', 2, (128, 128))._replace(secondary=torch.zeros(2, 4, 4)), r'secondary is torch\.float'),
        ('vit', draw('random', 2, (128, 160)), r'mask\.grid is \(8, 10\)'),
        ('vit', draw('random', 1, (128, 128)), r"'kept': \(1, 16\)"),
        ('vit', draw('random', 2, (128, 128))._replace(kept=torch.zeros(2, 16).long()), 'each unit .* once'),
        ('swin', draw('random', 2, (128, 128)), 'mask is a UnitMask, but UMSwin .* UniformMask'),
        ('pvt', draw('random', 2, (128, 128)), 'mask is a UnitMask, but UMPVT .* UniformMask'),
    ],
    ids=['size', 'batch', 'high', 'dtype', 'grid', 'few', 'twice', 'swin-random', 'pvt-random'],
)
def test_explicit_mask_is_checked(kind: str, mask: Mask, message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_ummae(kind)(seeded(2, 3, 128, 128), mode=mode, mask=mask)


@all_cases
@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_image_sides_are_checked(mode: str, kind: str, sampling: str) -> None:
    multiple = {'uniform': 32, 'random': 16}[sampling]
    with pytest.raises(ValueError, match=rf'image width is 100 px.*multiple of {multiple} px'):
        made_ummae(kind, sampling)(seeded(1, 3, 64, 100), mode=mode)


@pytest.mark.parametrize('ratio', [1, 1.5, -0.1])
def test_illegal_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf'secondary_ratio is {ratio}.*\[0, 1\)'):
        made_ummae(secondary_ratio=ratio)


@pyramids
def test_random_sampling_is_not_for_pyramids(kind: str) -> None:
    """The message names both, says why, and what to use instead."""
    name = {'swin': 'UMSwin', 'pvt': 'UMPVT'}[kind]
    message = f"sampling is 'random', but {name} takes uniform: .*mm_ummae.UMSimMIM.*mm_ummae.UMViT"
    with pytest.raises(ValueError, match=message):
        made_ummae(kind, 'random')


@pytest.mark.parametrize('kind', BACKBONES)
def test_unknown_sampling(kind: str) -> None:
    with pytest.raises(ValueError, match="sampling is 'grid', but it must be one of uniform, random"):
        made_ummae(kind, 'grid')


def test_backbone_that_takes_no_masks() -> None:
    with pytest.raises(ValueError, match="sampling is 'uniform', but ResNet takes none"):
        UMMAE(dict(type='mmpretrain.ResNet', depth=18), neck=DECODERS['swin'], head=dict(type='mm_ummae.UMMAEHead'))


@all_cases
def test_secondary_masking_needs_a_token(kind: str, sampling: str) -> None:
    """Otherwise hidden units would be seen and the ratio would have no effect."""
    no_token = dict(secondary_token=False)
    with pytest.raises(ValueError, match=r'secondary_ratio is 0\.25.*backbone\.secondary_token=True'):
        made_ummae(kind, sampling, backbone=no_token)
    model = made_ummae(kind, sampling, backbone=no_token, secondary_ratio=0)
    assert model(seeded(1, 3, 64, 64), mode='loss')['loss'].isfinite()


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'secondary_rate'"):
        made_ummae(secondary_rate=0.5)
    for kind in BACKBONES:
        with pytest.raises(TypeError, match="unexpected keyword argument 'num_layers'"):
            made_ummae(kind, neck=dict(num_layers=2))


# Training


def check_training(model: nn.Module, images: Tensor, mask: Mask) -> None:
    """One step: a finite loss, and every weight that is trained gets a gradient."""
    loss = model.train()(images, mode='loss', mask=mask)['loss']
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if name == 'backbone.pos_embed':
            assert parameter.grad is None
            continue
        # One window of one token has nothing to attend to, and softmax forgets what all keys share.
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if 'attn' not in name:
            assert parameter.grad.abs().max() > 0, name


@all_cases
@pytest.mark.parametrize('size', [(64, 64), (96, 160), (128, 128), (32, 224)], ids=str)
def test_any_size_trains(size: tuple[int, int], kind: str, sampling: str) -> None:
    """Other sizes than the nominal one, odd numbers of cells, oblong images."""
    check_training(made_ummae(kind, sampling), seeded(2, 3, *size), draw(sampling, 2, size, 0.5))


@pyramids
@pytest.mark.parametrize('size', [(64, 64), (96, 160)], ids=str)
def test_published_positions_train(size: tuple[int, int], kind: str) -> None:
    model = made_ummae(kind, neck=dict(published_positions=True))
    check_training(model, seeded(2, 3, *size), draw('uniform', 2, size, 0.5))


def test_random_sampling_needs_no_cells() -> None:
    """3 x 5 units: kept are int(15 / 4) = 3."""
    mask = draw('random', 2, (48, 80), 0.5)
    assert mask.kept.shape == (2, 3)
    check_training(made_ummae('vit', 'random'), seeded(2, 3, 48, 80), mask)


@all_cases
def test_images_of_a_batch_do_not_meet(kind: str, sampling: str) -> None:
    """The loss of a batch is the mean of the losses of its images alone, each with its own mask."""
    model, images, mask = made_ummae(kind, sampling).eval(), seeded(3, 3, 128, 96), draw(sampling, 3, (128, 96))
    losses = []
    for i in range(3):
        own = [field[i : i + 1] if isinstance(field, Tensor) else field for field in mask]
        losses.append(model(images[i : i + 1], mode='loss', mask=type(mask)(*own))['loss'])
    together = model(images, mode='loss', mask=mask)['loss']
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-5, atol=0)


@all_cases
def test_autocast(kind: str, sampling: str) -> None:
    """In bfloat16 the loss stays near that of float32, and every gradient is finite."""
    images, mask = seeded(2, 3, 96, 128), draw(sampling, 2, (96, 128))
    losses, gradients = [], []
    for enabled in (False, True):
        model = made_ummae(kind, sampling)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            loss = model(images, mode='loss', mask=mask)['loss']
        loss.backward()
        assert loss.dtype == torch.float32
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


def smooth_images(n: int, side: int) -> Tensor:
    """Random blobs: unlike noise they can be learned."""
    images = nn.functional.interpolate(seeded(n, 3, 8, 8), (side, side), mode='bicubic')
    return (images - images.mean()) / images.std()


def train_losses(model: nn.Module, steps: int, mask: Mask) -> list[float]:
    """Losses before and after each step on one batch, from the weights training starts with."""
    torch.manual_seed(0)
    model.init_weights()
    model.train()
    images = smooth_images(2, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps + 1):
        loss = model(images, mode='loss', mask=mask)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@all_cases
@pytest.mark.parametrize('norm_pix', [True, False])
def test_one_step_lowers_the_loss(norm_pix: bool, kind: str, sampling: str) -> None:
    before, after = train_losses(made_ummae(kind, sampling, norm_pix), 1, draw(sampling, 2, (64, 64)))
    assert after < before


def test_overfits_one_batch() -> None:
    """Some dozens of steps learn a batch by heart."""
    losses = train_losses(made_ummae(), 80, draw('uniform', 2, (64, 64)))
    assert losses[-1] < 0.5 * losses[0]


class Recorder(TorchDispatchMode):
    """Names of all operations, and of those whose result the host must wait for on a device."""

    WAITING = ('_local_scalar_dense', 'nonzero', 'masked_select', 'item', 'is_nonzero', 'equal', 'unique')

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.waiting: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        self.names.add(name)
        indices = args[1] if name.startswith(('index', '_index')) and len(args) > 1 else ()
        boolean = any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (indices if isinstance(indices, (list, tuple)) else (indices,))
        )
        # Without its output size, repeating by a tensor counts values on the host.
        counted = name == 'repeat_interleave' and (kwargs or {}).get('output_size') is None
        if name.startswith(self.WAITING) or boolean or counted:
            self.waiting.add(name)
        return func(*args, **(kwargs or {}))


def test_recorder_sees_synchronisation() -> None:
    """The check below can fail: each way of waiting for the device is caught."""
    x = torch.randn(4)
    for function in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x[x > 0],
        lambda: (x > 0).nonzero(),
        lambda: x.masked_select(x > 0),
        lambda: x.clone().index_put_((x > 0,), torch.tensor(1.0)),
        lambda: torch.arange(3).repeat_interleave(torch.tensor([1, 2, 1])),
    ):
        with Recorder() as recorder:
            function()
        assert recorder.waiting, recorder.names


@all_cases
@pytest.mark.parametrize('size', [(128, 128), (96, 160)], ids=str)
def test_a_step_never_waits_for_the_device(size: tuple[int, int], kind: str, sampling: str) -> None:
    """Draw, forward, loss and backward look at no value: the host may run ahead of a GPU (spec 8)."""
    necks = [dict()] if kind == 'vit' else [dict(published_positions=False), dict(published_positions=True)]
    for neck in necks:
        model = made_ummae(kind, sampling, backbone=dict(drop_path_rate=0.2), neck=neck).train()
        images = seeded(2, 3, *size)
        with Recorder() as recorder:
            model(images, mode='loss')['loss'].backward()
        assert 'addmm' in recorder.names and {'randint', 'rand', 'argsort', 'sort'} & recorder.names  # it did record
        assert not recorder.waiting


@pytest.mark.parametrize(
    ('kind', 'decoder', 'needed'), [('vit', 'UMMAEDecoder', 'UMViTDecoder'), ('pvt', 'UMViTDecoder', 'UMMAEDecoder')]
)
def test_a_decoder_of_the_other_kind_is_named(kind: str, decoder: str, needed: str) -> None:
    model = made_ummae(kind)
    channels = model.neck.expand.in_features
    cfg = dict(type=f'mm_ummae.{decoder}', in_channels=channels, embed_dims=32, depth=1, num_heads=2, img_size=64)
    model.neck = MODELS.build(cfg)
    with pytest.raises(ValueError, match=rf'latent has shape .*{decoder} takes .*{needed}'):
        model(seeded(1, 3, 64, 64), mode='loss')
