"""UMSimMIM: all tokens go in, those of masked units replaced; L1 loss over their pixels."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.structures import DataSample

from mm_ummae.masking import UniformMask, UnitMask
from mm_ummae.models import UMSimMIM, UMSimMIMHead
from tests.builders import (
    BACKBONES,
    MEAN,
    SAMPLINGS,
    STD,
    Recorder,
    check_training,
    draw,
    draw_mask,
    made_simmim,
    noisy,
    of_image,
    pixels,
    seeded,
    slow_target,
    train_losses,
)

# 96 and 160 px are odd numbers of cells; 80 and 48 px odd numbers of units, where the last map is cropped
SIZES = [(96, 160), (80, 48)]
all_sizes = pytest.mark.parametrize('size', SIZES, ids=str)
pyramids = pytest.mark.parametrize('kind', ['swin', 'pvt'])
both_samplings = pytest.mark.parametrize('sampling', SAMPLINGS)


def drawn(n: int, size: tuple[int, int], sampling: str = 'random', seed: int = 0) -> UniformMask | UnitMask:
    return draw_mask(sampling, n, size, 0, seed)


# Loss


@pytest.mark.parametrize('norm_pix', [True, False])
@all_sizes
def test_loss_equals_loop(size: tuple[int, int], norm_pix: bool) -> None:
    """From its description: L1 over masked units; channel 4 c + i of the linear layer is value c of sub-unit i."""
    torch.manual_seed(0)
    head, mask = UMSimMIMHead(6, norm_pix), drawn(2, size)
    images, latent = 2 * seeded(2, 3, *size) + 1, seeded(2, 6, -(-size[0] // 32), -(-size[1] // 32), seed=1)
    errors = []
    for n in range(2):
        for unit, masked in enumerate(mask.unsampled()[n].tolist()):
            row, column = divmod(unit, size[1] // 16)
            if masked:
                wide = head.pred.weight @ latent[n, :, row // 2, column // 2] + head.pred.bias
                pred = wide[row % 2 * 2 + column % 2 :: 4]
                errors.append((pred - slow_target(images[n], row, column, norm_pix)).abs())
    assert len(errors) == mask.unsampled().sum() == mask.removed.numel()
    torch.testing.assert_close(head.loss(latent, images, mask), torch.cat(errors).mean())
    assert not UMSimMIMHead(6).norm_pix  # off by default


@pyramids
@both_samplings
def test_gradient_of_the_loss_by_pixel(sampling: str, kind: str) -> None:
    """Kept pixels count as input, masked ones as target, with a gradient of one size."""
    model, mask = made_simmim(kind, sampling), drawn(2, (64, 96), sampling)
    images = seeded(2, 3, 64, 96).requires_grad_()
    model(images, mode='loss', mask=mask)['loss'].backward()
    masked = pixels(mask.unsampled(), 64).expand_as(images)
    assert (images.grad != 0).all()
    # As target a pixel has the gradient -sign(error) / number of targets, whatever its value
    share = torch.tensor(1 / masked.sum().item())
    torch.testing.assert_close(images.grad[masked].abs(), share.expand(int(masked.sum())), rtol=1e-4, atol=0)
    assert images.grad[~masked].abs().unique().numel() > 100


@pyramids
@both_samplings
def test_masked_pixels_are_not_in_the_input(sampling: str, kind: str) -> None:
    """The input of the head does not depend on them, to the last bit; on kept ones and on the mask it does."""
    model, mask = made_simmim(kind, sampling).eval(), drawn(2, (96, 160), sampling)
    latents = []
    model.head.pred.register_forward_pre_hook(lambda _, args: latents.append(args[0]))
    images, masked = seeded(2, 3, 96, 160), pixels(mask.unsampled(), 96)
    with torch.no_grad():
        for x in (images, noisy(images, masked), torch.where(masked, images, images + 1)):
            model(x, mode='loss', mask=mask)
        model(images, mode='loss', mask=drawn(2, (96, 160), sampling, seed=1))
    assert torch.equal(latents[0], latents[1])
    assert not torch.allclose(latents[0], latents[2], atol=1e-4)
    assert not torch.allclose(latents[0], latents[3], atol=1e-4)


@pyramids
def test_images_of_a_batch_do_not_meet(kind: str) -> None:
    model, images, mask = made_simmim(kind).eval(), seeded(3, 3, 80, 96), drawn(3, (80, 96))
    losses = [model(images[i : i + 1], mode='loss', mask=of_image(mask, i))['loss'] for i in range(3)]
    together = model(images, mode='loss', mask=mask)['loss']
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-5, atol=0)


# Predictions


@pyramids
@all_sizes
def test_predict(size: tuple[int, int], kind: str) -> None:
    """Pixel values of the size of the image; hidden is what was masked."""
    model = made_simmim(kind, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    images = (50 * seeded(2, 3, *size) + 128).clamp(0, 255).byte()
    samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
    with torch.no_grad():
        outs = model.test_step(dict(inputs=images, data_samples=samples))
    assert [out.img_path for out in outs] == ['0.png', '1.png']
    units = size[0] * size[1] // 256
    for out, image in zip(outs, images, strict=True):
        torch.testing.assert_close(out.image, image.float(), atol=1e-3, rtol=0)
        assert out.reconstruction.shape == (3, *size) and out.reconstruction.dtype == torch.float32
        assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 255
        assert out.unsampled.shape == (size[0] // 16, size[1] // 16)
        assert out.unsampled.sum() == units - units // 4
        assert torch.equal(out.hidden, out.unsampled)


@all_sizes
@torch.no_grad()
def test_prediction_lies_at_its_unit(size: tuple[int, int]) -> None:
    """Sub-unit i of token (row, column) is shown at its place, also at the edge."""
    model = made_simmim(data_preprocessor=dict(mean=(0, 0, 0), std=(1, 1, 1))).eval()
    rows, columns = -(-size[0] // 32), -(-size[1] // 32)
    tokens = torch.arange(rows * columns).view(1, rows, columns, 1)
    model.head.pred.forward = lambda _: 4.0 * tokens + torch.arange(4).repeat(768)  # channel 4 c + i
    out = model(seeded(1, 3, *size), mode='predict')[0].reconstruction
    for y, x in ((0, 0), (size[0] - 1, size[1] - 1), (17, 31), (size[0] - 16, 5)):
        row, column = y // 16, x // 16
        expected = 4 * (row // 2 * columns + column // 2) + row % 2 * 2 + column % 2
        assert out[:, y, x].tolist() == [expected] * 3


@pyramids
@pytest.mark.parametrize('token', [False, True])
@torch.no_grad()
def test_secondary_units_are_visible(token: bool, kind: str) -> None:
    """Only unsampled units are replaced, so a mask that would hide more in UM-MAE hides no more here."""
    model = made_simmim(kind, 'uniform', backbone=dict(secondary_token=token)).eval()
    mask, images = draw(2, (64, 64), 0.5), seeded(2, 3, 64, 64)
    plain = mask._replace(secondary=torch.zeros_like(mask.secondary))
    for out, other in zip(*(model(images, mode='predict', mask=m) for m in (mask, plain)), strict=True):
        assert torch.equal(out.reconstruction, other.reconstruction)
        assert torch.equal(out.hidden, out.unsampled)


# Masks


@both_samplings
def test_masks_are_drawn_as_documented(sampling: str) -> None:
    """Each step draws another mask, without Secondary Masking; a seed repeats a step."""
    model, images, losses = made_simmim(sampling=sampling).eval(), seeded(2, 3, 64, 96), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)
    mask = SAMPLINGS[sampling](2, (64, 96), secondary_ratio=0.0)
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]
    own, expected = (
        model.draw_mask(2, (96, 64), generator=torch.Generator().manual_seed(4)),
        drawn(2, (96, 64), sampling, 4),
    )
    assert type(own) is type(expected)
    assert torch.equal(own.unsampled(), expected.unsampled()) and torch.equal(own.hidden(), expected.unsampled())


def test_random_sampling_is_the_default() -> None:
    backbone = dict(BACKBONES['pvt'], img_size=64, mask_token=True)
    assert UMSimMIM(backbone, dict(type='mm_ummae.UMSimMIMHead', in_channels=32)).sampling == 'random'


# Illegal settings


@pyramids
def test_illegal_settings(kind: str) -> None:
    with pytest.raises(ValueError, match=r'without a token to replace masked units.*backbone\.mask_token=True'):
        made_simmim(kind, backbone=dict(mask_token=False))
    with pytest.raises(ValueError, match=r'head\.in_channels is 48, .* have (64|32) channels: set model\.head\.in_'):
        made_simmim(kind, head=dict(type='mm_ummae.UMSimMIMHead', in_channels=48))
    with pytest.raises(ValueError, match="sampling is 'block', but it must be one of uniform, random"):
        made_simmim(kind, sampling='block')
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask_ratio'"):
        made_simmim(kind, mask_ratio=0.6)


def test_not_for_vit() -> None:
    """UMViT has no mask token to switch on, so the message must name the backbones that have one."""
    with pytest.raises(ValueError, match=r'UMViT.*UMSwin.*UMPVT'):
        UMSimMIM(dict(BACKBONES['vit'], img_size=128), dict(type='mm_ummae.UMSimMIMHead', in_channels=16))


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(('sampling', 'multiple'), [('random', 16), ('uniform', 32)])
def test_image_sides_are_checked(sampling: str, multiple: int, mode: str) -> None:
    with pytest.raises(ValueError, match=rf'image height is 72 px.*multiple of {multiple} px'):
        made_simmim(sampling=sampling)(seeded(1, 3, 72, 64), mode=mode)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (drawn(2, (64, 96)), r'mask\.grid is \(4, 6\), but images of 64x64 px have \(4, 4\)'),
        (drawn(1, (64, 64)), r"'kept': \(1, 4\).*2 images"),
        (drawn(2, (64, 96), 'uniform'), r'mask\.offsets has shape \(2, 2, 3\)'),
    ],
    ids=['grid', 'batch', 'cells'],
)
def test_explicit_mask_is_checked(mask: UniformMask | UnitMask, message: str) -> None:
    for mode in ('loss', 'predict'):
        with pytest.raises(ValueError, match=message):
            made_simmim()(seeded(2, 3, 64, 64), mode=mode, mask=mask)


# Training


@pyramids
@all_sizes
def test_any_size_trains(size: tuple[int, int], kind: str) -> None:
    """Odd numbers of cells and of units, oblong images: all weights get gradients."""
    check_training(made_simmim(kind), seeded(2, 3, *size), drawn(2, size))


@pyramids
@both_samplings
def test_one_step_lowers_the_loss(sampling: str, kind: str) -> None:
    before, after = train_losses(made_simmim(kind, sampling), 1, drawn(2, (64, 64), sampling))
    assert after < before


@pyramids
def test_autocast(kind: str) -> None:
    """In bfloat16 the loss is float32 and near that of float32."""
    images, mask, losses = seeded(2, 3, 80, 96), drawn(2, (80, 96)), []
    for enabled in (False, True):
        model = made_simmim(kind)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            losses.append(model(images, mode='loss', mask=mask)['loss'])
        losses[-1].backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)


@pyramids
@both_samplings
def test_a_step_never_synchronises(sampling: str, kind: str) -> None:
    for with_cp in (False, 'ffn'):
        model = made_simmim(kind, sampling, backbone=dict(drop_path_rate=0.2, with_cp=with_cp)).train()
        with Recorder() as recorder:
            model(seeded(2, 3, 96, 160), mode='loss')['loss'].backward()
        assert {'addmm', 'where'} <= recorder.names
        assert not recorder.waiting
