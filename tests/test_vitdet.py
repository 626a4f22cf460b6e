"""ViTDet: the pyramid from one map, attention in windows, the detector, and what starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.selfsup import MAEViT
from torch import Tensor, nn

from mm_ummae.models import LoMaRViT, SimpleFeaturePyramid
from mm_ummae.checkpoints import loading as pretrained
from mm_ummae.models.layers import bucket_map

from .leaves import build_model, config, full_model, leaf, learning_rates, optimizer_groups
from .test_dense import batch, train_step
from tests.builders import disturbed, maps, seeded

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
LEAVES = {start: leaf(f'vitdet_mask-rcnn_{start}-vit-base-p16_8xb8-amp-lsj-25e_coco') for start in ('lomar', 'mae')}
SIDE = 128  # pixels of the small detector's images
SIZES = [(128, 96), (100, 128)]
every_leaf = pytest.mark.parametrize('path', LEAVES.values(), ids=LEAVES)


def vit(**kwargs: Any) -> LoMaRViT:
    """As ViTDet needs it."""
    torch.manual_seed(0)
    options = dict(img_size=64, with_cls_token=False, final_norm=False)
    return LoMaRViT(ARCH, **{**options, **kwargs})


# The pyramid


def slow_enlarge(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Each place becomes 2x2, each by a linear layer of its own."""
    n, _, height, width = x.shape
    out = x.new_empty(n, layer.out_channels, 2 * height, 2 * width)
    for row in range(2):
        for column in range(2):
            weight = layer.weight[:, :, row, column]  # (C, D)
            out[:, :, row::2, column::2] = torch.einsum('nchw,cd->ndhw', x, weight) + layer.bias.view(-1, 1, 1)
    return out


def slow_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    deviation = x - x.mean(1, keepdim=True)
    x = deviation / (deviation.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def slow_output(one: nn.Conv2d, norm: nn.LayerNorm, three: nn.Conv2d, last_norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """What all levels end with: 1x1, norm, 3x3 as the sum of nine shifted 1x1, norm."""
    assert one.bias is None and three.bias is None
    x = slow_norm(norm, torch.einsum('nchw,dc->ndhw', x, one.weight[:, :, 0, 0]))
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    x = sum(
        torch.einsum('nchw,dc->ndhw', padded[:, :, i : i + height, j : j + width], three.weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    return slow_norm(last_norm, x)


def slow_pyramid(neck: SimpleFeaturePyramid, x: Tensor) -> list[Tensor]:
    (first, norm, _, second, *ends4), (enlarge, *ends2), ends1, (_, *ends_half) = neck.levels
    x4 = slow_enlarge(second, F.gelu(slow_norm(norm, slow_enlarge(first, x))))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    half = x[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2)).amax((3, 5))
    scaled = ((ends4, x4), (ends2, slow_enlarge(enlarge, x)), (ends1, x), (ends_half, half))
    outs = [slow_output(*ends, scale) for ends, scale in scaled]
    return [*outs, outs[-1][:, :, ::2, ::2]]


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (3, 2)], ids=str)
@torch.no_grad()
def test_pyramid_equals_the_slow_formulation(size: tuple[int, int]) -> None:
    """Its strides are 4, 8, 16, 32 and 64 where the map's is 16; what is odd is rounded."""
    torch.manual_seed(0)
    neck, x = disturbed(SimpleFeaturePyramid(8, out_channels=6)).double(), seeded(2, 8, *size).double()
    outs = neck((x,))
    height, width = size
    halves = (height // 2, width // 2)
    sides = [(4 * height, 4 * width), (2 * height, 2 * width), size, halves, tuple((side + 1) // 2 for side in halves)]
    assert [tuple(out.shape) for out in outs] == [(2, 6, *side) for side in sides]
    for out, expected in zip(outs, slow_pyramid(neck, x), strict=True):
        torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_pyramid_is_contiguous_whatever_comes() -> None:
    """MMCV's RoIAlign misreads other layouts, without an error."""
    neck = SimpleFeaturePyramid(8, out_channels=6)
    x = seeded(2, 8, 4, 6)
    expected = neck((x,))
    for out, other in zip(neck((x.contiguous(memory_format=torch.channels_last),)), expected, strict=True):
        assert out.is_contiguous()
        torch.testing.assert_close(out, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('channels', [0, -4, 6])
def test_channels_that_cannot_be_halved_twice(channels: int) -> None:
    with pytest.raises(ValueError, match=rf'in_channels is {channels}, but it must be a positive multiple of 4'):
        SimpleFeaturePyramid(channels)


@pytest.mark.parametrize('count', [0, 2])
def test_other_numbers_of_maps(count: int) -> None:
    with pytest.raises(ValueError, match=rf'{count} maps came, but the pyramid is made from one'):
        SimpleFeaturePyramid(8)(count * (seeded(1, 8, 4, 4),))


# Attention in windows


def slow_block(model: LoMaRViT, layer: nn.Module, x: Tensor, size: int) -> Tensor:
    """One layer on (N, h, w, C), window by window; those over the edge are filled up with zeros after the norm."""
    normed, attended = layer.ln1(x), torch.zeros_like(x)
    buckets = bucket_map((size, size), class_token=False)
    for n in range(x.shape[0]):
        for top in range(0, x.shape[1], size):
            for left in range(0, x.shape[2], size):
                inside = normed[n, top : top + size, left : left + size]
                window = torch.zeros(size, size, x.shape[3])
                window[: inside.shape[0], : inside.shape[1]] = inside
                tokens = window.flatten(0, 1)[None]
                out = layer.attn(tokens, buckets) if layer.relative else layer.attn(tokens)
                attended[n, top : top + size, left : left + size] = out.view(size, size, -1)[
                    : inside.shape[0], : inside.shape[1]
                ]
    x = x + attended
    return x + layer.ffn.layers(layer.ln2(x))


@pytest.mark.parametrize('positions', ['relative', 'absolute', 'both'])
@pytest.mark.parametrize('size', [(64, 96), (80, 112)], ids=str)
@torch.no_grad()
def test_windows_equal_a_loop_over_them(size: tuple[int, int], positions: str) -> None:
    """Also where the grid is no multiple of the window."""
    model = disturbed(vit(img_size=size, positions=positions, window_size=2, out_indices=[0, 1]))
    images = seeded(2, 3, *size)
    x, grid = model.patch_embed(images)
    x = x if positions == 'relative' else x + model.pos_embed
    x = x.unflatten(1, grid)
    for layer, out in zip(model.layers, maps(model, images), strict=False):
        x = slow_block(model, layer, x, 2)
        torch.testing.assert_close(out, x.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_window_as_large_as_the_map_is_global() -> None:
    """A larger one is not: zeros beside the map are attended to, as in ViTDet."""
    whole, same, larger = (disturbed(vit(window_size=size)) for size in (0, 4, 5))
    images = seeded(2, 3, 64, 64)
    expected = maps(whole, images)[0]
    torch.testing.assert_close(maps(same, images)[0], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(maps(larger, images)[0], expected, atol=1e-2)


@torch.no_grad()
def test_only_global_layers_carry_further_than_a_window() -> None:
    """A pixel moves its own window alone until the first of them, not a bit elsewhere, and everything after it."""
    model = disturbed(vit(img_size=96, window_size=3, global_layers=(2,), out_indices=[0, 1, 2, 3]))
    images = seeded(1, 3, 96, 96)
    changed = images.clone()
    changed[0, :, 90, 4] += 5  # patch (5, 0): the lower left window
    window = torch.zeros(6, 6, dtype=torch.bool)
    window[3:, :3] = True
    moved = [(a != b).any(1)[0] for a, b in zip(maps(model, images), maps(model, changed), strict=True)]
    assert torch.equal(moved[0], window) and torch.equal(moved[1], window)
    assert moved[2].all() and moved[3].all()


@every_leaf
def test_every_third_layer_is_global(path: Path) -> None:
    """Four of twelve, evenly spread, and windows of 14 patches."""
    backbone = full_model(path).backbone
    assert [i for i in range(12) if i in backbone.global_layers] == [2, 5, 8, 11]
    assert backbone.window_size == 14 and backbone.cls_token is None and not backbone.final_norm


# The detector


def small(start: str, **backbone: Any) -> Config:
    """A leaf with its own recipe and a tiny network."""
    cfg = config(LEAVES[start])
    model = cfg.model
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
    return cfg


def build(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu')
    model.init_weights()
    return model


@pytest.mark.parametrize('with_cp', [False, True], ids=['kept', 'recomputed'])
@pytest.mark.parametrize('start', LEAVES)
def test_a_step_reaches_every_parameter(start: str, with_cp: bool) -> None:
    """Of the whole detector, on images that are not square; several GPUs stop where one has no gradient."""
    model = build(small(start, with_cp=with_cp))
    terms = train_step(model, batch('detector', SIZES))
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} < set(terms)
    assert all(torch.isfinite(value) for value in terms.values()), terms
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f'{name} has no effect'


@pytest.mark.parametrize('start', LEAVES)
@torch.no_grad()
def test_boxes_stay_in_pictures_that_are_not_square(start: str) -> None:
    """They are padded to the square that positions are made for, which no box or mask shows."""
    model = build(small(start)).eval()
    data = model.data_preprocessor(batch('detector', SIZES), False)
    assert data['inputs'].shape == (2, 3, SIDE, SIDE)
    results = model(data['inputs'], data['data_samples'], mode='predict')
    for result, (height, width) in zip(results, SIZES, strict=True):
        found = result.pred_instances
        assert len(found) > 0 and found.masks.shape == (len(found), height, width)
        assert found.bboxes.min() >= 0
        assert found.bboxes[:, 0::2].max() <= width and found.bboxes[:, 1::2].max() <= height


@pytest.mark.parametrize('training', [True, False])
def test_pictures_of_one_batch_have_the_square_of_the_recipe(training: bool) -> None:
    """Its masks too; the smallest jitter leaves a tenth of the side."""
    options = {key: value for key, value in config(LEAVES['lomar']).model.data_preprocessor.items() if key != 'type'}
    data = DetDataPreprocessor(**options)(batch('detector', [(102, 77)]), training)
    (sample,) = data['data_samples']
    assert data['inputs'].shape == (1, 3, 1024, 1024) and sample.img_shape == (102, 77)
    assert not data['inputs'][:, :, 102:].any() and not data['inputs'][:, :, :, 77:].any()
    if training:
        assert sample.gt_instances.masks.masks.shape[1:] == (1024, 1024)


# The recipe


@every_leaf
def test_the_recipe_is_that_of_vitdet(path: Path) -> None:
    """arXiv 2203.16527, appendix A.2, in the 25 epochs of arXiv 2206.00790."""
    cfg = config(path)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 64
    assert cfg.train_cfg.max_epochs == 25 and cfg.model.backbone.drop_path_rate == 0.1
    rates = [rate for (rate,) in learning_rates(cfg, epoch_length=300)]
    assert rates[0] == pytest.approx(1e-3) and rates[248] < 0.999
    assert rates[249] == rates[22 * 300 - 1] == pytest.approx(1)  # warm-up over 250 iterations, from a thousandth
    assert rates[22 * 300] == rates[24 * 300 - 1] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.01)
    model = full_model(path)
    assert len(model.rpn_head.rpn_conv) == 2
    box, mask = model.roi_head.bbox_head, model.roi_head.mask_head
    assert len(box.shared_convs) == len(mask.convs) == 4 and len(box.shared_fcs) == 1
    for block in [*box.shared_convs, *mask.convs]:
        assert isinstance(block.norm, nn.LayerNorm) and block.norm.eps == 1e-6 and block.conv.bias is None


@every_leaf
def test_layer_decay_goes_back_from_the_last_layer(path: Path) -> None:
    """0.7 a layer; what follows the backbone has the full rate. Positions, norms and biases do not decay."""
    groups = optimizer_groups(path)
    depths = {f'backbone.layers.{i}.': i + 1 for i in range(12)}
    for name, group in groups.items():
        depth = next((depth for start, depth in depths.items() if name.startswith(start)), None)
        if depth is None:
            depth = 0 if name.startswith('backbone.') else 13
        assert group['lr'] == pytest.approx(1e-4 * 0.7 ** (13 - depth)), name
        free = name == 'backbone.pos_embed' or group['params'][0].dim() == 1
        assert group['weight_decay'] == (0 if free else 0.1), name
    assert ('backbone.pos_embed' in groups) == (path == LEAVES['mae'])
    assert 'backbone.layers.0.attn.position_table' in groups and 'neck.levels.0.0.weight' in groups


def test_pictures_of_the_test_fit_the_square() -> None:
    """Also mirrored ones of the augmented test."""
    cfg = config(LEAVES['mae'])
    for split in ('val', 'test'):
        (resize,) = (step for step in cfg[f'{split}_dataloader'].dataset.pipeline if step.type == 'Resize')
        assert tuple(resize.scale) == (1024, 1024) and resize.keep_ratio
    resizes, flips, _ = cfg.tta_pipeline[1].transforms
    assert [(step.scale, step.keep_ratio) for step in resizes] == [((1024, 1024), True)]
    assert [flip.prob for flip in flips] == [0.0, 1.0]


# What starts it


def started(tmp_path: Path, source: nn.Module, **kwargs: Any) -> LoMaRViT:
    """A backbone from a pre-training's checkpoint; the detector's where nothing else is said."""
    torch.save(dict(state_dict={f'backbone.{name}': x for name, x in source.state_dict().items()}), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone')
    model = vit(**{**dict(img_size=SIDE, window_size=3, global_layers=(1, 3), init_cfg=init_cfg), **kwargs})
    model.init_weights()
    return model


def pretrained_mae() -> MAEViT:
    """MMPretrain's, with other values than a start has."""
    torch.manual_seed(1)
    return disturbed(MAEViT(ARCH, img_size=64))


def pretrained_lomar() -> LoMaRViT:
    torch.manual_seed(1)
    return disturbed(LoMaRViT(ARCH, img_size=64, mask_token=True))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What loading says."""
    messages: list[str] = []
    monkeypatch.setattr(pretrained, 'print_log', lambda message, logger: messages.append(message))
    return messages


def test_mae_starts_it_as_if_it_had_no_tables(tmp_path: Path, log: list[str]) -> None:
    """Those start from zero, so that the map is the one of absolute positions alone; from there they learn."""
    both, absolute = (started(tmp_path, pretrained_mae(), positions=positions) for positions in ('both', 'absolute'))
    images = seeded(2, 3, SIDE, SIDE)
    expected = maps(absolute, images)[0]
    torch.testing.assert_close(maps(both, images)[0], expected, atol=1e-5, rtol=1e-5)
    assert 'resized: pos_embed (1, 17, 16) to (1, 64, 16)' in log[0]
    tables = ', '.join(f'layers.{i}.attn.position_table' for i in range(4))
    assert f'new: {tables}, not used: cls_token, ln1.bias, ln1.weight' in log[0]

    both.train()
    both(images)[0].square().sum().backward()
    assert all(layer.attn.position_table.grad.any() for layer in both.layers)


@torch.no_grad()
def test_without_windows_that_is_the_vit_of_mmpretrain(tmp_path: Path) -> None:
    """Given the same file, whose positions MMPretrain resizes in the same way."""
    ours = started(tmp_path, pretrained_mae(), positions='both', window_size=0, global_layers=())
    theirs = VisionTransformer(ARCH, img_size=64, with_cls_token=False, out_type='featmap', final_norm=False)
    state = pretrained_mae().state_dict()
    state = {name: x for name, x in state.items() if name in theirs.state_dict()}
    theirs.load_state_dict({**state, 'pos_embed': state['pos_embed'][:, 1:]})
    images = seeded(2, 3, SIDE, SIDE)
    torch.testing.assert_close(maps(ours, images)[0], maps(theirs, images)[0], atol=1e-5, rtol=1e-5)


def test_lomar_starts_it_with_its_tables(tmp_path: Path, log: list[str]) -> None:
    """As they are, at any size; what only pre-training has is left, and that is said."""
    source = pretrained_lomar()
    model = started(tmp_path, source, positions='relative')
    state = source.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert all(layer.attn.position_table.any() for layer in model.layers)
    assert log[0].endswith('not used: cls_token, ln1.bias, ln1.weight, mask_token')


@pytest.mark.parametrize(
    ('source', 'positions', 'message'),
    [
        (pretrained_mae, 'relative', r'missing: layers\.0\.attn\.position_table.*unexpected: pos_embed'),
        (pretrained_lomar, 'both', r'missing: pos_embed'),
        (pretrained_lomar, 'absolute', r'missing: pos_embed; unexpected: layers\.0\.attn\.position_table'),
    ],
)
def test_a_start_with_other_positions_is_refused(source: Any, positions: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        started(tmp_path, source(), positions=positions)


def test_stochastic_depth_drops_a_layer_for_the_whole_picture() -> None:
    """Attention's part too: it is dropped after the windows are put together, as in ViTDet."""
    model = vit(window_size=2, drop_path_rate=0.5)
    model.init_weights()
    model.train()
    layer, x = model.layers[3], seeded(64, 16, 16)
    nn.init.zeros_(layer.ffn.layers[1].weight)  # attention alone moves the tokens
    moved = (layer(x, model._places((4, 4), 2)) != x).any(2)  # (images, patches)
    assert torch.equal(moved.any(1), moved.all(1))
    assert 0 < moved[:, 0].sum() < 64
