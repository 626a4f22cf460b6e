"""UMSimMIM: all tokens go in, those of masked units replaced; L1 loss over their pixels."""

from __future__ import annotations

import pytest
import torch

from mm_ummae.masking import UniformMask, UnitMask
from mm_ummae.models import UMSimMIM, UMSimMIMHead
from tests.builders import (
    BACKBONES,
    SAMPLINGS,
    draw,
    draw_mask,
    made_simmim,
    noisy,
    pixels,
    seeded,
    slow_target,
)

# 96 and 160 px are odd numbers of cells; 80 and 48 px odd numbers of units, where the last map is cropped
all_sizes = pytest.mark.parametrize('size', [(96, 160), (80, 48)], ids=str)
pyramids = pytest.mark.parametrize('kind', ['swin', 'pvt'])
both_samplings = pytest.mark.parametrize('sampling', SAMPLINGS)


def drawn(size: tuple[int, int], sampling: str = 'random', seed: int = 0) -> UniformMask | UnitMask:
    return draw_mask(sampling, 2, size, 0, seed)


@pytest.mark.parametrize('norm_pix', [True, False])
@all_sizes
def test_loss_equals_loop(size: tuple[int, int], norm_pix: bool) -> None:
    """From its description: L1 over masked units; channel 4 c + i of the linear layer is value c of sub-unit i."""
    torch.manual_seed(0)
    head, mask = UMSimMIMHead(6, norm_pix), drawn(size)
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


@pyramids
@both_samplings
def test_gradient_of_the_loss_by_pixel(sampling: str, kind: str) -> None:
    """Kept pixels count as input, masked ones as target, with a gradient of one size."""
    model, mask = made_simmim(kind, sampling), drawn((64, 96), sampling)
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
    model, mask = made_simmim(kind, sampling).eval(), drawn((96, 160), sampling)
    latents = []
    model.head.pred.register_forward_pre_hook(lambda _, args: latents.append(args[0]))
    images, masked = seeded(2, 3, 96, 160), pixels(mask.unsampled(), 96)
    with torch.no_grad():
        for x in (images, noisy(images, masked), torch.where(masked, images, images + 1)):
            model(x, mode='loss', mask=mask)
        model(images, mode='loss', mask=drawn((96, 160), sampling, seed=1))
    assert torch.equal(latents[0], latents[1])
    assert not torch.allclose(latents[0], latents[2], atol=1e-4)
    assert not torch.allclose(latents[0], latents[3], atol=1e-4)


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


def test_defaults() -> None:
    """Random sampling, and targets that are not standardised, as in the published baselines."""
    backbone = dict(BACKBONES['pvt'], img_size=64, mask_token=True)
    model = UMSimMIM(backbone, dict(type='mm_ummae.UMSimMIMHead', in_channels=32))
    assert model.sampling == 'random' and not model.head.norm_pix


@pyramids
def test_a_mask_token_is_needed(kind: str) -> None:
    with pytest.raises(ValueError, match=r'without a token to replace masked units.*backbone\.mask_token=True'):
        made_simmim(kind, backbone=dict(mask_token=False))


def test_not_for_vit() -> None:
    """UMViT has no mask token to switch on, so the message must name the backbones that have one."""
    with pytest.raises(ValueError, match=r'UMViT.*UMSwin.*UMPVT'):
        UMSimMIM(dict(BACKBONES['vit'], img_size=128), dict(type='mm_ummae.UMSimMIMHead', in_channels=16))
