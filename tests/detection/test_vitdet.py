"""ViTDet: attention in windows, the detector of both recipes, and the checkpoints it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.selfsup import MAEViT
from torch import Tensor, nn

from mm_ummae.checkpoints import loading
from mm_ummae.models import LoMaRViT
from mm_ummae.models.layers import TokenPositions, bucket_map
from tests.builders import VIT, disturbed, maps, seeded
from tests.detection.detectors import batch, build, leaf, train_step

ARCH = dict(VIT, num_layers=4)
SIDE = 128  # pixels of the padded images
SIZES = [(128, 96), (100, 128)]
every_start = pytest.mark.parametrize('start', ['lomar', 'mae'])


def vit(**kwargs: Any) -> LoMaRViT:
    """A tiny backbone as ViTDet needs it."""
    torch.manual_seed(0)
    return LoMaRViT(ARCH, **{**dict(img_size=64, with_cls_token=False, final_norm=False), **kwargs})


# Attention in windows


def slow_block(layer: nn.Module, x: Tensor, size: int) -> Tensor:
    """One layer on (N, h, w, C), window by window; windows over the edge are filled with zeros after the norm."""
    normed, attended = layer.ln1(x), torch.zeros_like(x)
    buckets = bucket_map((size, size), class_token=False)
    for n in range(x.shape[0]):
        for top in range(0, x.shape[1], size):
            for left in range(0, x.shape[2], size):
                inside = normed[n, top : top + size, left : left + size]
                height, width = inside.shape[:2]
                window = torch.zeros(size, size, x.shape[3])
                window[:height, :width] = inside
                tokens = window.flatten(0, 1)[None]
                out = layer.attn(tokens, buckets) if layer.relative else layer.attn(tokens)
                attended[n, top : top + size, left : left + size] = out.view(size, size, -1)[:height, :width]
    x = x + attended
    return x + layer.ffn.layers(layer.ln2(x))


@pytest.mark.parametrize('positions', ['relative', 'absolute', 'both'])
@pytest.mark.parametrize('size', [(64, 96), (80, 112)], ids=str)
@torch.no_grad()
def test_windows_equal_a_loop(size: tuple[int, int], positions: str) -> None:
    """Also where the grid is no multiple of the window."""
    model = disturbed(vit(img_size=size, positions=positions, window_size=2, out_indices=[0, 1]))
    images = seeded(2, 3, *size)
    x, grid = model.patch_embed(images)
    x = x if positions == 'relative' else x + model.pos_embed
    x = x.unflatten(1, grid)
    for layer, out in zip(model.layers, maps(model, images), strict=False):
        x = slow_block(layer, x, 2)
        torch.testing.assert_close(out, x.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_window_as_large_as_the_map_is_global() -> None:
    """A larger one is not: the zeros beside the map are attended to, as in ViTDet."""
    whole, same, larger = (disturbed(vit(window_size=size)) for size in (0, 4, 5))
    images = seeded(2, 3, 64, 64)
    expected = maps(whole, images)[0]
    torch.testing.assert_close(maps(same, images)[0], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(maps(larger, images)[0], expected, atol=1e-2)


@torch.no_grad()
def test_only_global_layers_reach_beyond_a_window() -> None:
    """Before the first of them a pixel changes its own window and not a bit elsewhere, after it everything."""
    model = disturbed(vit(img_size=96, window_size=3, global_layers=(2,), out_indices=[0, 1, 2, 3]))
    images = seeded(1, 3, 96, 96)
    changed = images.clone()
    changed[0, :, 90, 4] += 5  # patch (5, 0): the lower left window
    window = torch.zeros(6, 6, dtype=torch.bool)
    window[3:, :3] = True
    moved = [(a != b).any(1)[0] for a, b in zip(maps(model, images), maps(model, changed), strict=True)]
    assert torch.equal(moved[0], window) and torch.equal(moved[1], window)
    assert moved[2].all() and moved[3].all()


def test_stochastic_depth_drops_attention_for_the_whole_image() -> None:
    """After the windows are put together, as in ViTDet."""
    model = vit(window_size=2, drop_path_rate=0.5, positions='absolute')
    model.train()  # returns nothing for MMPretrain's backbones
    layer, x = disturbed(model.layers[3]), seeded(64, 16, 16)
    nn.init.zeros_(layer.ffn.layers[1].weight)  # so that attention alone changes the tokens
    nn.init.zeros_(layer.ffn.layers[1].bias)
    moved = (layer(x, TokenPositions(None, (4, 4), 2)) != x).any(2)  # (images, patches)
    assert torch.equal(moved.any(1), moved.all(1))
    assert 0 < moved[:, 0].sum() < 64


# The detector


def small(start: str, **backbone: Any) -> nn.Module:
    """The detector of a leaf with a tiny network."""
    model = Config.fromfile(leaf(f'vitdet/*{start}-vit*')).model
    model.backbone.update(arch=ARCH, img_size=SIDE, window_size=3, global_layers=(1, 3), init_cfg=None, **backbone)
    model.neck.update(in_channels=ARCH['embed_dims'], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    head = model.roi_head
    head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 16
    head.bbox_head.update(in_channels=16, conv_out_channels=16, fc_out_channels=16, num_classes=10)
    head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=10)
    model.train_cfg.rcnn.sampler.num = 32
    model.test_cfg.rcnn.score_thr = 0.0  # random weights are sure of nothing
    model.data_preprocessor.pad_size_divisor = SIDE
    model = build(model)
    model.init_weights()
    return model


@pytest.mark.integration
@pytest.mark.parametrize(('start', 'with_cp'), [('lomar', False), ('lomar', True), ('mae', False)])
def test_a_step_reaches_every_parameter(start: str, with_cp: bool) -> None:
    """Distributed training stops where a parameter has no gradient."""
    model = small(start, with_cp=with_cp)
    terms = train_step(model, batch(*SIZES))
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} < set(terms)
    assert all(torch.isfinite(value) for value in terms.values()), terms
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f'{name} has no effect'


@pytest.mark.integration
@every_start
@torch.no_grad()
def test_predictions_stay_inside_images_that_are_not_square(start: str) -> None:
    """Although these are padded to the square that positions are made for."""
    model, data = small(start).eval(), batch(*SIZES)
    assert model.data_preprocessor(data, False)['inputs'].shape == (2, 3, SIDE, SIDE)
    for result, (height, width) in zip(model.test_step(data), SIZES, strict=True):
        found = result.pred_instances
        assert len(found) > 0 and found.masks.shape == (len(found), height, width)
        assert found.bboxes.min() >= 0
        assert found.bboxes[:, 0::2].max() <= width and found.bboxes[:, 1::2].max() <= height


@pytest.mark.parametrize('training', [True, False])
def test_images_are_padded_to_the_square_of_the_recipe(training: bool) -> None:
    """Masks too; the smallest jitter leaves a tenth of the side."""
    options = dict(Config.fromfile(leaf('vitdet/*lomar-vit*')).model.data_preprocessor)
    del options['type']
    data = DetDataPreprocessor(**options)(batch((102, 77)), training)
    (sample,) = data['data_samples']
    assert data['inputs'].shape == (1, 3, 1024, 1024) and sample.img_shape == (102, 77)
    assert not data['inputs'][:, :, 102:].any() and not data['inputs'][:, :, :, 77:].any()
    if training:
        assert sample.gt_instances.masks.masks.shape[1:] == (1024, 1024)


# Checkpoints of pre-training


def pretrained_mae() -> MAEViT:
    torch.manual_seed(1)
    return disturbed(MAEViT(ARCH, img_size=64))


def started(tmp_path: Path, **kwargs: Any) -> LoMaRViT:
    """A detector's backbone with MAE's checkpoint."""
    state = {f'backbone.{name}': x for name, x in pretrained_mae().state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone')
    model = vit(**{**dict(img_size=SIDE, window_size=3, global_layers=(1, 3), init_cfg=init_cfg), **kwargs})
    model.init_weights()
    return model


def test_mae_starts_with_empty_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps are those of absolute positions alone, until the tables are trained. Changes are logged."""
    log: list[str] = []
    monkeypatch.setattr(loading, 'print_log', lambda message, logger: log.append(message))
    both, absolute = (started(tmp_path, positions=positions) for positions in ('both', 'absolute'))
    images = seeded(2, 3, SIDE, SIDE)
    torch.testing.assert_close(maps(both, images)[0], maps(absolute, images)[0], atol=1e-5, rtol=1e-5)
    assert 'resized: pos_embed (1, 17, 16) to (1, 64, 16)' in log[0]
    tables = ', '.join(f'layers.{i}.attn.position_table' for i in range(4))
    assert f'new: {tables}, not used: cls_token, ln1.bias, ln1.weight' in log[0]

    both.train()
    both(images)[0].square().sum().backward()
    assert all(layer.attn.position_table.grad.any() for layer in both.layers)


@torch.no_grad()
def test_mae_without_windows_is_the_vit_of_mmpretrain(tmp_path: Path) -> None:
    """From the same file, whose positions MMPretrain resizes in the same way."""
    ours = started(tmp_path, positions='both', window_size=0, global_layers=())
    expected = VisionTransformer(ARCH, img_size=64, with_cls_token=False, out_type='featmap', final_norm=False)
    state = pretrained_mae().state_dict()
    state = {name: x for name, x in state.items() if name in expected.state_dict()}
    expected.load_state_dict({**state, 'pos_embed': state['pos_embed'][:, 1:]})
    images = seeded(2, 3, SIDE, SIDE)
    torch.testing.assert_close(maps(ours, images)[0], maps(expected, images)[0], atol=1e-5, rtol=1e-5)
