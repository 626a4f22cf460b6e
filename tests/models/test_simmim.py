"""UMSimMIM: all tokens go in, those of masked units replaced; L1 loss over their pixels."""

from __future__ import annotations

import pytest
import torch

from mm_ummae.models import UMSimMIMHead
from tests.builders import SAMPLINGS, draw, draw_mask, made_simmim, pixels, seeded, slow_target

pyramids = pytest.mark.parametrize('kind', ['swin', 'pvt'])


@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('size', [(96, 160), (80, 48)], ids=str)
def test_loss_equals_loop(size: tuple[int, int], norm_pix: bool) -> None:
    """From its description: L1 over masked units; channel 4 c + i of the linear layer is value c of sub-unit i.

    80 and 48 px are odd numbers of units, where the last map is cropped.
    """
    torch.manual_seed(0)
    head, mask = UMSimMIMHead(6, norm_pix), draw_mask('random', 2, size, 0)
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
@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_gradient_of_the_loss_by_pixel(sampling: str, kind: str) -> None:
    """Kept pixels count as input; masked ones as target alone, with a gradient of one size."""
    model, mask = made_simmim(kind, sampling), draw_mask(sampling, 2, (64, 96), 0)
    images = seeded(2, 3, 64, 96).requires_grad_()
    model(images, mode='loss', mask=mask)['loss'].backward()
    masked = pixels(mask.unsampled(), 64).expand_as(images)
    assert (images.grad != 0).all()
    # As target a pixel has the gradient -sign(error) / number of targets, whatever its value
    share = torch.tensor(1 / masked.sum().item())
    torch.testing.assert_close(images.grad[masked].abs(), share.expand(int(masked.sum())), rtol=1e-4, atol=0)
    assert images.grad[~masked].abs().unique().numel() > 100


@pyramids
@torch.no_grad()
def test_secondary_units_are_visible(kind: str) -> None:
    """Only unsampled units are replaced, so a mask that would hide more in UM-MAE hides no more here."""
    model = made_simmim(kind, 'uniform', backbone=dict(secondary_token=True)).eval()
    mask, images = draw(2, (64, 64), 0.5), seeded(2, 3, 64, 64)
    plain = mask._replace(secondary=torch.zeros_like(mask.secondary))
    for out, other in zip(*(model(images, mode='predict', mask=m) for m in (mask, plain)), strict=True):
        assert torch.equal(out.reconstruction, other.reconstruction)
        assert torch.equal(out.hidden, out.unsampled)
