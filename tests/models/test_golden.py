"""Models against the published implementation, on weights that both can make from parameter names.

These numbers may never change: they tie the project to the published results and released checkpoints.
Tolerances are those the golden files were stated with: 1e-5 relative on outputs, 1e-4 on gradient norms.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, UnitMask, images_to_units, make_window_mask, take_units
from mm_ummae.models import (
    UMMAE,
    UMPVT,
    AvgPoolNorm,
    LoMaR,
    LoMaRHead,
    LoMaRViT,
    StageProjection,
    UMMAEDecoder,
    UMMAEHead,
    UMSimMIM,
    UMSimMIMHead,
    UMSwin,
    UMViT,
    UMViTDecoder,
)
from tests.golden import TINY, GoldenCase, made_images

PARTS = dict(backbone='backbone.', neck='neck.', head='head.')
PVT = dict(embed_dims=(32, 64, 80, 128), depths=(1, 1, 2, 1), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
VIT = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=384)
WIDTHS = dict(swin=[32, 64, 128, 256], pvt=[32, 64, 80, 128], vit=[96])  # by stage


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Largest deviation relative to the largest expected value."""
    assert actual.shape == expected.shape
    deviation = (actual - expected).abs().max() / expected.abs().max()
    assert deviation < rtol, f'relative deviation {deviation:.2e}'


def made_backbone(
    kind: str, pretraining: bool = False, img_size: int = 128, window_size: int = 16, **kwargs: Any
) -> nn.Module:
    """The encoder of the cases; positions are fixed in pre-training and learned in fine-tuning."""
    if kind == 'swin':
        return UMSwin(TINY, img_size, window_size, **kwargs)
    network, arch = (UMPVT, PVT) if kind == 'pvt' else (UMViT, VIT)
    return network(arch, img_size, learn_positions=not pretraining, **kwargs)


def check_training(case: GoldenCase, model: nn.Module, loss: Tensor, learned_positions: bool) -> None:
    """Loss and every gradient norm; a position embedding is trained or it is not."""
    assert loss.item() == pytest.approx(case.meta['loss'], rel=1e-5)
    loss.backward()
    case.check_gradients(model, PARTS)
    positions = getattr(model.backbone, 'pos_embed', None)
    if positions is not None:
        assert positions.requires_grad == (positions.grad is not None) == learned_positions


@pytest.mark.parametrize('name', ['ummae_swin', 'ummae_swin_nosm', 'ummae_pvt', 'ummae_vit'])
def test_pretraining(name: str) -> None:
    case, kind = GoldenCase(name), name.split('_')[1]
    token = 'vis_mask_token' in case.meta['params']
    decoder = dict(embed_dims=64, depth=1, num_heads=4, img_size=128)
    if kind == 'vit':
        neck = UMViTDecoder(96, **decoder)
    else:
        neck = UMMAEDecoder(WIDTHS[kind][-1], **decoder, published_positions=True)
    model = UMMAE(
        backbone=made_backbone(kind, pretraining=True, secondary_token=token),
        neck=neck,
        head=UMMAEHead(64, norm_pix=name != 'ummae_swin_nosm'),
        secondary_ratio=0.25 if token else 0,
    )
    case.load_into(model.eval(), PARTS)
    images, mask = made_images(0, 2, 128, 128), UniformMask(case.arrays['offsets'], None)
    sampled = mask.kept()  # in cell order
    hidden = case.arrays.get('secondary', torch.zeros(2, 64, dtype=torch.bool))
    mask = mask._replace(secondary=take_units(hidden, sampled).view(2, 4, 4))
    assert torch.equal(mask.unsampled(), case.arrays['mask'])

    latent = model.backbone(images, mask)[-1]
    is_map = latent.dim() == 4  # else the class token, then the sampled units in raster order
    assert_close(latent.flatten(2).transpose(1, 2) if is_map else latent, case.arrays['latent'])

    pred = model.head.pred(model.neck(latent, mask)).flatten(1, 2)
    units = mask.by_index()
    # Sampled units in cell order, or for ViT in raster order; then the others in raster order
    assert_close(take_units(pred, sampled if is_map else units.kept), case.arrays['pred'][:, :16])
    assert_close(take_units(pred, units.removed), case.arrays['pred'][:, 16:])

    check_training(case, model, model(images, mode='loss', mask=mask)['loss'], learned_positions=False)


@pytest.mark.parametrize('kind', ['swin', 'pvt'])
def test_simmim(kind: str) -> None:
    case = GoldenCase(f'simmim_{kind}')
    model = UMSimMIM(made_backbone(kind, pretraining=True, mask_token=True), UMSimMIMHead(WIDTHS[kind][-1]))
    assert model.sampling == 'random'  # by default, as in the published baselines
    case.load_into(model.eval(), PARTS)
    images, masked = made_images(0, 2, 128, 128), case.arrays['mask'].bool()
    kept, removed = (torch.stack([row.nonzero().flatten() for row in rows]) for rows in (~masked, masked))
    mask = UnitMask(kept, removed, torch.zeros_like(kept, dtype=torch.bool), (8, 8))
    assert removed.shape == (2, 48) and torch.equal(mask.unsampled(), masked)

    latent = model.backbone(images, replaced=masked.view(2, 8, 8))[-1]
    assert_close(latent.flatten(2).transpose(1, 2), case.arrays['latent'])
    pred = images_to_units(model.head.predict(latent, images)).flatten(1, 2)  # raster order
    assert_close(pred, case.arrays['pred'])

    check_training(case, model, model(images, mode='loss', mask=mask)['loss'], learned_positions=False)


def test_lomar() -> None:
    """In the published pairing: sequences are (image 0, window 0), (1, 1), (0, 0), (1, 1)."""
    case, images = GoldenCase('lomar_vit'), made_images(21, 2, 160, 160)
    backbone = LoMaRViT(VIT, 160, mask_token=True)
    model = LoMaR(backbone, LoMaRHead(96), num_windows=2, pairing='published')
    case.load_into(model.eval(), PARTS)
    corners = torch.stack((case.arrays['top'], case.arrays['left']), 1)
    mask = make_window_mask(corners, case.arrays['noise'], (10, 10), 0.8, 'published')
    masked = torch.zeros(4, 49, dtype=torch.bool).scatter(1, mask.masked, True)
    assert torch.equal(masked, case.arrays['mask'])
    assert mask.image.tolist() == [0, 1, 0, 1] and torch.equal(mask.corner, corners.repeat(2, 1))

    tokens = model.backbone(images, mask)[0]
    assert_close(model.head.pred(tokens[:, 1:]), case.arrays['pred'])

    check_training(case, model, model(images, mode='loss', mask=mask)['loss'], learned_positions=False)


@pytest.mark.parametrize('kind', ['swin', 'pvt'])
def test_classification(kind: str) -> None:
    case, width = GoldenCase(f'cls_{kind}'), WIDTHS[kind][-1]
    model = ImageClassifier(
        backbone=made_backbone(kind, final_norm=False),
        neck=AvgPoolNorm(width),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=width),
    )
    case.load_into(model.eval(), PARTS)
    logits = model(made_images(3, 2, 128, 128))
    assert_close(logits, case.arrays['logits'])
    check_training(case, model, (logits * case.arrays['cotangent']).sum(), learned_positions=True)


@pytest.mark.parametrize(('kind', 'sizes'), [('swin', dict(img_size=256, window_size=8)), ('pvt', dict(img_size=128))])
@torch.no_grad()
def test_detection_maps(kind: str, sizes: dict[str, int]) -> None:
    """160x224 px: sides that no window of 8 tokens divides, and another size than that of PVT's positions."""
    case = GoldenCase(f'det_{kind}')
    model = nn.ModuleDict(
        dict(
            backbone=made_backbone(kind, **sizes, out_indices=(0, 1, 2, 3), final_norm=False),
            neck=StageProjection(WIDTHS[kind], 48),
        )
    )
    case.load_into(model.eval(), PARTS)
    maps = model['neck'](model['backbone'](made_images(5, 2, 160, 224)))
    assert len(maps) == 4
    for i, out in enumerate(maps):
        assert_close(out, case.arrays[f'out{i}'])
