"""Our models against the published implementation, on weights both can make from parameter names.

These numbers may never change: they tie the project to the published results and released checkpoints.
Tolerances are those the golden files were stated with: 1e-5 relative on outputs, 1e-4 on gradient norms.
"""

from __future__ import annotations

import pytest
import torch
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, cells_to_raster, raster_to_cells, take_sampled, take_unsampled
from mm_ummae.models import UMMAE, StageProjection, UMMAEDecoder, UMMAEHead, UMSwin

from .golden import TINY, GoldenCase, made_images

PARTS = dict(backbone='backbone.', neck='neck.', head='head.')


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Largest deviation relative to the largest expected value."""
    deviation = (actual - expected).abs().max() / expected.abs().max()
    assert deviation < rtol, f'relative deviation {deviation:.2e}'


def pretraining(name: str, aligned: bool = False) -> tuple[GoldenCase, UMMAE, UniformMask]:
    case = GoldenCase(name)
    secondary = 'vis_mask_token' in case.meta['params']
    model = UMMAE(
        backbone=UMSwin(TINY, img_size=128, window_size=16, secondary_token=secondary),
        neck=UMMAEDecoder(256, 64, depth=1, num_heads=4, img_size=128, published_positions=not aligned),
        head=UMMAEHead(64, norm_pix=name == 'ummae_swin'),
        secondary_ratio=0.25 if secondary else 0,
    )
    case.load_into(model.eval(), PARTS)
    offsets = case.arrays['offsets']
    hidden = case.arrays.get('secondary', torch.zeros(2, 64, dtype=torch.bool)).view(2, 8, 8)
    return case, model, UniformMask(offsets, take_sampled(raster_to_cells(hidden), offsets))


@pytest.mark.parametrize('name', ['ummae_swin', 'ummae_swin_nosm'])
def test_pretraining(name: str) -> None:
    case, model, mask = pretraining(name)
    images = made_images(0, 2, 128, 128)
    assert torch.equal(mask.unsampled(), case.arrays['mask'])

    latent = model.backbone(images, mask)[-1]
    assert_close(latent.flatten(2).transpose(1, 2), case.arrays['latent'])

    tokens = model.neck(latent, mask)
    pred = model.head.pred(tokens)
    cells = raster_to_cells(pred)
    assert_close(take_sampled(cells, mask.offsets).flatten(1, 2), case.arrays['pred'][:, :16])  # cell order
    for ours, unsampled, theirs in zip(pred.flatten(1, 2), mask.unsampled(), case.arrays['pred'], strict=True):
        assert_close(ours[unsampled], theirs[16:])  # the others in raster order

    loss = model(images, mode='loss', mask=mask)['loss']
    assert loss.item() == pytest.approx(case.meta['loss'], rel=1e-5)
    loss.backward()
    case.check_gradients(model, PARTS)


def test_aligned_positions_differ_from_published() -> None:
    """The switch is real: aligned positions give another loss on the same weights and the same latent."""
    _, published, mask = pretraining('ummae_swin')
    _, aligned, _ = pretraining('ummae_swin', aligned=True)
    images = made_images(0, 2, 128, 128)
    losses = [model(images, mode='loss', mask=mask)['loss'].item() for model in (published, aligned)]
    assert abs(losses[0] - losses[1]) > 1e-3
    # Where all units of a row of cells have the same row offset, cell order is raster order and they agree.
    regular = UniformMask(torch.zeros_like(mask.offsets), mask.secondary)
    tokens = [model.neck(model.backbone(images, regular)[-1], regular) for model in (published, aligned)]
    torch.testing.assert_close(*tokens)


def test_unsampled_order() -> None:
    """The loss drops sampled units; the three that stay are the unsampled ones of the published mask."""
    case, _, mask = pretraining('ummae_swin')
    units = torch.arange(64).view(1, 8, 8).expand(2, 8, 8)
    stay = take_unsampled(raster_to_cells(units), mask.offsets).flatten(1).sort(1).values
    expected = [row.nonzero().flatten() for row in case.arrays['mask']]
    assert torch.equal(stay, torch.stack(expected))
    kept = torch.arange(4) == mask.offsets[..., None]
    assert torch.equal(cells_to_raster(~kept).flatten(1), case.arrays['mask'])


def test_classification() -> None:
    case = GoldenCase('cls_swin')
    model = ImageClassifier(
        backbone=UMSwin(TINY, img_size=128, window_size=16, final_norm=False),
        neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=256),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
    )
    case.load_into(model.eval(), PARTS)
    logits = model(made_images(3, 2, 128, 128))
    assert_close(logits, case.arrays['logits'])
    loss = (logits * case.arrays['cotangent']).sum()
    assert loss.item() == pytest.approx(case.meta['loss'], rel=1e-5)
    loss.backward()
    case.check_gradients(model, PARTS)


def test_detection_maps() -> None:
    """Sides that no window divides: 160x224 px with windows of 8 tokens."""
    case = GoldenCase('det_swin')
    model = nn.ModuleDict(
        dict(
            backbone=UMSwin(TINY, img_size=256, window_size=8, out_indices=(0, 1, 2, 3), final_norm=False),
            neck=StageProjection([32, 64, 128, 256], 48),
        )
    )
    case.load_into(model.eval(), PARTS)
    maps = model['neck'](model['backbone'](made_images(5, 2, 160, 224)))
    for i, out in enumerate(maps):
        assert_close(out, case.arrays[f'out{i}'])
