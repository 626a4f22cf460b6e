"""UMMAE: which pixels the loss is about, what ``predict`` gives back, and that training steps work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mm_ummae.masking import UniformMask, draw_uniform_mask
from mm_ummae.models import UMMAE, UMMAEDecoder, UMMAEHead
from mm_ummae.models.position import sincos_position
from mm_ummae.registry import MODELS

SMALL = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), position_dims=4)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    return draw_uniform_mask(n, size, ratio, generator=torch.Generator().manual_seed(seed))


def made_ummae(norm_pix: bool = True, swin: dict | None = None, neck: dict | None = None, **kwargs: Any) -> UMMAE:
    """A model built as from a config, whose every parameter matters."""
    torch.manual_seed(0)
    backbone = dict(type='mm_ummae.UMSwin', arch=SMALL, img_size=128, secondary_token=True)
    decoder = dict(type='mm_ummae.UMMAEDecoder', in_channels=64, embed_dims=32, depth=1, num_heads=2, img_size=128)
    model = MODELS.build(
        dict(
            type='mm_ummae.UMMAE',
            backbone={**backbone, **(swin or {})},
            neck={**decoder, **(neck or {})},
            head=dict(type='mm_ummae.UMMAEHead', in_channels=32, norm_pix=norm_pix),
            **kwargs,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1 if 'position_bias' in name else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def pixels(units: Tensor, height: int) -> Tensor:
    """(N, L) bool over units -> (N, 1, H, W) over pixels."""
    units = units.view(len(units), 1, height // 16, -1)
    return units.repeat_interleave(16, 2).repeat_interleave(16, 3)


def slow_target(image: Tensor, row: int, column: int, norm_pix: bool) -> Tensor:
    """Pixels of a unit by (row, column, channel), standardised by its unbiased variance."""
    unit = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].permute(1, 2, 0).flatten()
    if not norm_pix:
        return unit
    mean = unit.sum() / 768
    variance = (unit - mean).square().sum() / 767
    return (unit - mean) / (variance + 1e-6).sqrt()


# Loss


@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('size', [(64, 64), (96, 128)])
def test_loss_equals_loop(norm_pix: bool, size: tuple[int, int]) -> None:
    """The whole loss from its description: mean over unsampled units, in raster order, of squared errors."""
    torch.manual_seed(0)
    head = UMMAEHead(12, norm_pix)
    images, mask = 2 * seeded(2, 3, *size) + 1, draw(2, size)
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
    head, mask = UMMAEHead(4), draw(1, (32, 32))
    with torch.no_grad():
        head.pred.weight.zero_()
        head.pred.bias.zero_()
    tokens = torch.zeros(1, 2, 2, 4)
    assert head.loss(tokens, torch.full((1, 3, 32, 32), 3.0), mask) < 1e-6
    # Standardised by the unbiased variance, the mean square of a unit is 767 / 768.
    loss = head.loss(tokens, 5 * seeded(1, 3, 32, 32), mask)
    torch.testing.assert_close(loss, torch.tensor(767 / 768), rtol=1e-5, atol=0)


def test_loss_ignores_tokens_of_sampled_units() -> None:
    """Exactly the tokens of unsampled units get a gradient."""
    torch.manual_seed(0)
    head, mask = UMMAEHead(12), draw(2, (96, 128))
    tokens = seeded(2, 6, 8, 12).requires_grad_()
    head.loss(tokens, seeded(2, 3, 96, 128, seed=1), mask).backward()
    touched = (tokens.grad != 0).flatten(1, 2)
    assert torch.equal(touched.all(-1), mask.unsampled())
    assert torch.equal(touched.any(-1), mask.unsampled())


@pytest.mark.parametrize('norm_pix', [True, False])
def test_secondary_pixels_are_in_neither_input_nor_target(norm_pix: bool) -> None:
    """Secondary units are seen by nobody: whatever their pixels, the loss is the same to the last bit."""
    model, mask = made_ummae(norm_pix), draw(2, (128, 128))
    images = seeded(2, 3, 128, 128)
    secondary = pixels(mask.hidden() & mask.unsampled().logical_not(), 128)
    assert secondary.sum() == 2 * 4 * 256
    changed = torch.where(secondary, 50 * seeded(2, 3, 128, 128, seed=1), images)
    losses = [model(x, mode='loss', mask=mask)['loss'] for x in (images, changed)]
    assert torch.equal(*losses)


def test_gradient_of_the_loss_by_pixel() -> None:
    """Unsampled pixels count as target, visible ones as input, secondary ones not at all."""
    model, mask = made_ummae(), draw(2, (96, 128))
    images = seeded(2, 3, 96, 128).requires_grad_()
    model(images, mode='loss', mask=mask)['loss'].backward()
    secondary = pixels(mask.hidden() & ~mask.unsampled(), 96).expand_as(images)
    assert torch.equal(images.grad == 0, secondary)


def test_sampled_content_and_secondary_mask_matter() -> None:
    """The loss does depend on what is seen, and on which units are hidden."""
    model, mask = made_ummae(), draw(2, (128, 128))
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
    decoder, mask = UMMAEDecoder(6, 8, depth=0, num_heads=1, img_size=64), draw(2, size)
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


@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('to_rgb', [True, False])
def test_predict(norm_pix: bool, to_rgb: bool) -> None:
    """Through the data preprocessor and back: ``image`` is the picture that went in, in pixel values."""
    model = made_ummae(norm_pix, data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=to_rgb)).eval()
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


def test_predict_uses_the_mask() -> None:
    model, mask = made_ummae().eval(), draw(2, (96, 160))
    with torch.no_grad():
        samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
        outs = model(seeded(2, 3, 96, 160), samples, mode='predict', mask=mask)
    assert 'image' in outs[0] and 'image' not in samples[0]  # copies were written
    for out, unsampled, hidden in zip(outs, mask.unsampled(), mask.hidden(), strict=True):
        assert torch.equal(out.unsampled.flatten(), unsampled)
        assert torch.equal(out.hidden.flatten(), hidden)


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
    model = made_ummae(norm_pix, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    pictures = (50 * seeded(2, 3, 64, 96) + 128).clamp(0, 255)
    images = (pictures - model.data_preprocessor.mean) / model.data_preprocessor.std
    model.head.pred = PerfectPrediction(images, norm_pix)
    for out, picture in zip(model(images, mode='predict'), pictures, strict=True):
        torch.testing.assert_close(out.reconstruction, picture, atol=1e-2, rtol=0)


def test_denormalize_without_preprocessing() -> None:
    """A model without mean and std gives the values back, clipped to pixel values."""
    values = torch.tensor([-3.0, 0.5, 300.0]).expand(1, 3, 3).reshape(1, 3, 3, 1)
    assert made_ummae().denormalize(values)[0, 0, :, 0].tolist() == [0, 0.5, 255]


def test_tensor_mode_is_the_dense_backbone() -> None:
    """Features for probing come from whole images, without a mask."""
    model, images = made_ummae().eval(), seeded(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images)[0], model.backbone(images)[0])
        assert torch.equal(model(images, mode='tensor')[0], model.extract_feat(images)[0])


# Mask


def test_mask_is_drawn_each_step() -> None:
    """Two steps on the same images see different masks; a seed brings a step back."""
    model, images = made_ummae().eval(), seeded(2, 3, 128, 128)
    losses = []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)  # and what is drawn is the documented draw
    mask = draw_uniform_mask(2, (128, 128), 0.25)
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]


@pytest.mark.parametrize('ratio', [0, 0.5])
def test_secondary_ratio_is_used(ratio: float) -> None:
    model, images = made_ummae(secondary_ratio=ratio).eval(), seeded(2, 3, 128, 128)
    out = model(images, mode='predict')[0]
    assert out.hidden.sum() - out.unsampled.sum() == 16 * ratio


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (draw(2, (128, 160)), r'mask\.offsets has shape \(2, 4, 5\)'),
        (draw(1, (128, 128)), r'mask\.offsets has shape \(1, 4, 4\)'),
        (draw(2, (128, 128))._replace(offsets=torch.full((2, 4, 4), 4)), r'mask\.offsets spans 4\.\.4'),
        (draw(2, (128, 128))._replace(offsets=torch.full((2, 4, 4), -1)), r'mask\.offsets spans -1\.\.-1'),
        (draw(2, (128, 128))._replace(secondary=torch.zeros(2, 4, 4)), r'mask\.secondary is torch\.float32'),
    ],
    ids=['size', 'batch', 'high', 'low', 'dtype'],
)
def test_explicit_mask_is_checked(mode: str, mask: UniformMask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_ummae()(seeded(2, 3, 128, 128), mode=mode, mask=mask)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_image_sides_are_checked(mode: str) -> None:
    with pytest.raises(ValueError, match=r'image width is 100 px.*multiple of 32'):
        made_ummae()(seeded(1, 3, 64, 100), mode=mode)


@pytest.mark.parametrize('ratio', [1, 1.5, -0.1])
def test_illegal_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf'secondary_ratio is {ratio}.*\[0, 1\)'):
        made_ummae(secondary_ratio=ratio)


def test_secondary_masking_needs_a_token() -> None:
    """Otherwise hidden units would be seen and the ratio would have no effect."""
    with pytest.raises(ValueError, match=r'secondary_ratio is 0\.25.*backbone\.secondary_token=True'):
        made_ummae(swin=dict(secondary_token=False))
    model = made_ummae(swin=dict(secondary_token=False), secondary_ratio=0)
    assert model(seeded(1, 3, 64, 64), mode='loss')['loss'].isfinite()


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'secondary_rate'"):
        made_ummae(secondary_rate=0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_layers'"):
        made_ummae(neck=dict(num_layers=2))


# Training


@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize('size', [(64, 64), (96, 160), (128, 128), (32, 224)], ids=str)
def test_any_size_trains(size: tuple[int, int], published: bool) -> None:
    """Other sizes than the nominal one, odd numbers of cells, oblong images: all weights get gradients."""
    model = made_ummae(neck=dict(published_positions=published)).train()
    loss = model(seeded(2, 3, *size), mode='loss', mask=draw(2, size, 0.5))['loss']
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        # One window of one token has nothing to attend to, and softmax forgets what all keys share.
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if 'attn' not in name:
            assert parameter.grad.abs().max() > 0, name


def test_images_of_a_batch_do_not_meet() -> None:
    """The loss of a batch is the mean of the losses of its images alone, each with its own mask."""
    model, images, mask = made_ummae().eval(), seeded(3, 3, 128, 96), draw(3, (128, 96))
    losses = [
        model(images[i : i + 1], mode='loss', mask=UniformMask(*(field[i : i + 1] for field in mask)))['loss']
        for i in range(3)
    ]
    together = model(images, mode='loss', mask=mask)['loss']
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-5, atol=0)


def smooth_images(n: int, side: int) -> Tensor:
    """Random blobs: unlike noise they can be learned."""
    images = nn.functional.interpolate(seeded(n, 3, 8, 8), (side, side), mode='bicubic')
    return (images - images.mean()) / images.std()


@pytest.mark.parametrize('norm_pix', [True, False])
def test_overfits_one_batch(norm_pix: bool) -> None:
    """One small step lowers the loss on its batch, and some dozens learn the batch by heart."""
    torch.manual_seed(0)
    model = made_ummae(norm_pix)
    model.init_weights()
    model.train()
    images, mask = smooth_images(2, 64), draw(2, (64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = model(images, mode='loss', mask=mask)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
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


@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize('size', [(128, 128), (96, 160)], ids=str)
def test_a_step_never_waits_for_the_device(size: tuple[int, int], published: bool) -> None:
    """Draw, forward, loss and backward look at no value: the host may run ahead of a GPU (spec 8)."""
    model = made_ummae(swin=dict(drop_path_rate=0.2), neck=dict(published_positions=published)).train()
    images = seeded(2, 3, *size)
    with Recorder() as recorder:
        model(images, mode='loss')['loss'].backward()
    assert {'addmm', 'randint', 'index_select'} & recorder.names  # it did record
    assert not recorder.waiting
