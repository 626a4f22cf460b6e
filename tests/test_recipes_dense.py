"""The recipes of detection and segmentation, number by number: GFL and UperNet as published (arXiv 2205.10063).

Mask R-CNN follows MMDetection's 1x and 3x schedules with the optimiser of the published detectors.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import nn

from .leaves import (
    CONFIGS,
    backbone_kind,
    build_optimizer,
    config,
    full_model,
    is_demo,
    learning_rates,
    optimizer_groups,
)

GFL = sorted((CONFIGS / 'gfl').glob('*.py'))
MASK_RCNN = sorted((CONFIGS / 'mask_rcnn').glob('*.py'))
UPERNET = sorted((CONFIGS / 'upernet').glob('*.py'))
HTCPP = sorted(path for path in (CONFIGS / 'htc').glob('*.py') if not is_demo(path))
SWIN_RECIPES = [*MASK_RCNN, *HTCPP]
DENSE = [*GFL, *MASK_RCNN, *HTCPP, *UPERNET]

every_gfl = pytest.mark.parametrize('path', GFL, ids=lambda path: path.stem)
every_mask_rcnn = pytest.mark.parametrize('path', MASK_RCNN, ids=lambda path: path.stem)
every_upernet = pytest.mark.parametrize('path', UPERNET, ids=lambda path: path.stem)
every_dense = pytest.mark.parametrize('path', DENSE, ids=lambda path: path.stem)


# All of them


@every_dense
def test_dense_optimizer(path: Path) -> None:
    """AdamW 1e-4 (0.9, 0.999), weight decay 0.05; none on norms, biases, other 1-D parameters and positions.

    What makes the position bias is free of it where the recipe is Swin's, which frees its table of biases.
    """
    cfg, model = config(path), full_model(path)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.optimizer.type) == ('AmpOptimWrapper', 'AdamW')
    for name, group in optimizer_groups(path).items():
        parameter = model.get_parameter(name)
        assert (group['lr'], tuple(group['betas'])) == (1e-4, (0.9, 0.999)), 'no layer decay'
        positions = 'pos_embed' in name or (path in SWIN_RECIPES and 'position_bias' in name)
        without = parameter.ndim == 1 or positions
        assert group['weight_decay'] == (0 if without else 0.05), name
    assert ('pvt' in path.stem) == ('backbone.pos_embed' in optimizer_groups(path))


@every_dense
def test_dense_batch(path: Path) -> None:
    cfg = config(path)
    assert 8 * cfg.train_dataloader.batch_size == 16 == cfg.auto_scale_lr.base_batch_size
    assert 'accumulative_counts' not in cfg.optim_wrapper


@every_dense
def test_dense_backbone(path: Path) -> None:
    """All four stages, no norm after the last, windows of 16 on the full image, more drop path for larger ones."""
    cfg = config(path)
    backbone, kind = cfg.model.backbone, backbone_kind(cfg)
    assert tuple(backbone.out_indices) == (0, 1, 2, 3) and not backbone.final_norm
    larger = (0.3 if kind[1] in ('base', 'large') else 0.2) if path in HTCPP else 0.2 if kind[1] == 'large' else 0.1
    assert backbone.drop_path_rate == larger
    assert kind[0] == 'UMPVT' or backbone.window_size == 16
    assert kind[0] == 'UMSwin' or full_model(path).backbone.pos_embed.requires_grad


@every_dense
def test_dense_layer_decay_is_one_option(path: Path) -> None:
    """Rate 0.9 for each block below the head; heads and necks keep the full rate."""
    cfg, model = config(path), full_model(path)
    cfg.merge_from_dict({'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.9})
    groups = build_optimizer(cfg, model).optimizer.param_groups
    rates = {name: group['lr'] for group in groups for name in [group['param_name']]}
    depth = sum(model.backbone.depths)
    for name, rate in rates.items():
        if not name.startswith('backbone.'):
            assert rate == 1e-4, name
    assert rates['backbone.patch_embed.projection.weight'] == pytest.approx(1e-4 * 0.9 ** (depth + 1))
    assert rates['backbone.stages.0.blocks.0.norm1.weight'] == pytest.approx(1e-4 * 0.9**depth)
    last = model.backbone.depths[-1] - 1
    assert rates[f'backbone.stages.3.blocks.{last}.norm1.weight'] == pytest.approx(1e-4 * 0.9)


# GFL


@every_gfl
def test_gfl_schedule(path: Path) -> None:
    """25 epochs; 2000 iterations up from 0.001 of the rate, on a cosine down to 0.01 of it, by iteration."""
    cfg = config(path)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs) == ('EpochBasedTrainLoop', 25)
    length = 2000
    rates = learning_rates(cfg, length)
    last = 25 * length
    for i in [0, 1, 500, 1998, 1999, 2000, 2001, length, 10 * length, last // 2, last - 1]:
        warmup = 0.001 + 0.999 * min(i / 1999, 1)
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / last))
        assert rates[i][0] == pytest.approx(warmup * cosine, rel=2e-3), f'iteration {i}'
    assert rates[0][0] == pytest.approx(0.001) and rates[-1][0] == pytest.approx(0.01, rel=1e-4)
    assert rates[3 * length][0] > rates[3 * length + 1][0], 'constant within an epoch'


@every_gfl
def test_gfl_model(path: Path) -> None:
    """LayerNorm and linear to 768 channels; an FPN of 5 outputs from stage 2 on, with SyncBN."""
    cfg = config(path)
    projection, fpn = cfg.model.neck
    assert projection.type == 'mm_ummae.StageProjection' and projection.get('with_norm', True)
    assert projection.out_channels == 768 and list(fpn.in_channels) == 4 * [768]
    assert (fpn.type, fpn.start_level, fpn.add_extra_convs, fpn.num_outs) == ('FPN', 1, 'on_output', 5)
    assert fpn.norm_cfg == dict(type='SyncBN', requires_grad=True)
    model = full_model(path)
    assert type(model).__name__ == 'GFL' and model.bbox_head.num_classes == 80
    assert all(isinstance(norm, nn.LayerNorm) for norm in model.neck[0].norms)


@every_gfl
def test_gfl_pictures(path: Path) -> None:
    """Large-scale jitter of 0.1 to 2.0 with crops of 1024 px; whole COCO once an epoch."""
    cfg = config(path)
    pipeline = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    jitter, crop = pipeline['RandomResize'], pipeline['RandomCrop']
    assert (tuple(jitter.scale), tuple(jitter.ratio_range), jitter.keep_ratio) == ((1024, 1024), (0.1, 2.0), True)
    assert (tuple(crop.crop_size), crop.crop_type) == ((1024, 1024), 'absolute_range')
    assert crop.allow_negative_crop and crop.recompute_bbox
    assert cfg.train_dataloader.dataset.type == 'CocoDataset', 'not repeated'
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    (padding,) = cfg.model.data_preprocessor.batch_augments
    assert padding.type == 'BatchFixedSizePad' and tuple(padding.size) == (1024, 1024)


# Mask R-CNN


@every_mask_rcnn
def test_mask_rcnn_schedule(path: Path) -> None:
    """A tenth from epoch 8 (1x) or 27 (3x) on, a hundredth from epoch 11 or 33 on; 1000 iterations of warm-up."""
    cfg = config(path)
    epochs, first, second = (36, 27, 33) if '3x' in path.stem else (12, 8, 11)
    length = 1001
    rates = [rate for (rate,) in learning_rates(cfg, length)]
    assert len(rates) == epochs * length
    for epoch in range(1, epochs):
        expected = 1.0 if epoch < first else 0.1 if epoch < second else 0.01
        assert rates[epoch * length] == pytest.approx(expected), f'epoch {epoch}'
        assert rates[epoch * length] == pytest.approx(rates[(epoch + 1) * length - 1])
    assert rates[0] == pytest.approx(0.001) and rates[999] == pytest.approx(1.0)


@every_mask_rcnn
def test_mask_rcnn_pictures(path: Path) -> None:
    """1x at 800 px; 3x at a short side of 480 to 800 px, the long one at most 1333."""
    pipeline = {step.type: step for step in config(path).train_dataloader.dataset.pipeline}
    assert pipeline['LoadAnnotations'].with_mask and pipeline['RandomFlip'].prob == 0.5
    if '3x' in path.stem:
        sides = pipeline['RandomChoiceResize'].scales
        assert [tuple(side) for side in sides] == [(1333, side) for side in range(480, 801, 32)]
        assert len(sides) == 11 and pipeline['RandomChoiceResize'].keep_ratio
    else:
        assert tuple(pipeline['Resize'].scale) == (1333, 800) and pipeline['Resize'].keep_ratio


@every_mask_rcnn
def test_mask_rcnn_model(path: Path) -> None:
    projection, fpn = config(path).model.neck
    assert (projection.out_channels, list(fpn.in_channels), fpn.num_outs) == (768, 4 * [768], 5)
    model = full_model(path)
    assert model.roi_head.bbox_head.num_classes == model.roi_head.mask_head.num_classes == 80


# UperNet


@every_upernet
def test_upernet_model(path: Path) -> None:
    """1x1 convolutions to 768 channels without norm, UPerHead on 4 x 768, FCN on level 2, 150 classes."""
    model = config(path).model
    assert not model.neck.with_norm and model.neck.out_channels == 768
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert (head.type, head.channels, head.num_classes) == ('UPerHead', 768, 150)
    assert list(head.in_channels) == 4 * [768] and list(head.in_index) == [0, 1, 2, 3]
    assert (auxiliary.type, auxiliary.in_index, auxiliary.num_classes) == ('FCNHead', 2, 150)


@every_upernet
def test_upernet_test(path: Path) -> None:
    """Sliding windows as published, or the whole image; nothing else differs between the two."""
    cfg = config(path)
    if path.stem.endswith('-whole'):
        assert cfg.model.test_cfg == dict(mode='whole')
        sliding = config(path.with_stem(path.stem.removesuffix('-whole')))
        sliding.model.test_cfg = dict(mode='whole')
        assert cfg.to_dict() == sliding.to_dict()
    else:
        side, stride = (640, 426) if '640x640' in path.stem else (512, 341)
        assert cfg.model.test_cfg == dict(mode='slide', crop_size=(side, side), stride=(stride, stride))


def test_upernet_schedule() -> None:
    """160k iterations: 1500 up from 1e-6 of the rate, then a line to 0."""
    cfg = config(UPERNET[0])
    rates = [rate for (rate,) in learning_rates(cfg, 1)]
    assert len(rates) == 160000
    for i in [0, 1, 700, 1499]:
        assert rates[i] == pytest.approx(1e-6 + (1 - 1e-6) * i / 1499, rel=1e-6)
    for i in [1500, 2000, 80000, 159999]:
        assert rates[i] == pytest.approx(1 - (i - 1500) / (160000 - 1500), rel=1e-4, abs=1e-5)
    for path in UPERNET[1:]:
        assert config(path).param_scheduler == cfg.param_scheduler and config(path).train_cfg == cfg.train_cfg


@every_upernet
def test_upernet_pictures(path: Path) -> None:
    """Crops of the side that the name says, from images whose short side is half to twice of it."""
    cfg = config(path)
    side = 640 if '640x640' in path.stem else 512
    pipeline = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert tuple(pipeline['RandomResize'].scale) == (4 * side, side)
    assert tuple(pipeline['RandomResize'].ratio_range) == (0.5, 2.0)
    assert tuple(pipeline['RandomCrop'].crop_size) == (side, side) == tuple(cfg.model.data_preprocessor.size)
    assert pipeline['LoadAnnotations'].reduce_zero_label
    for split in ('val', 'test'):
        tested = {step.type: step for step in cfg[f'{split}_dataloader'].dataset.pipeline}
        assert tuple(tested['Resize'].scale) == (4 * side, side) and tested['Resize'].keep_ratio


@every_upernet
def test_upernet_tta(path: Path) -> None:
    """Six sizes around that of the single test, each also mirrored, averaged by MMSegmentation."""
    cfg = config(path)
    side = 640 if '640x640' in path.stem else 512
    resizes, flips, (load,), (pack,) = cfg.tta_pipeline[1].transforms
    assert [tuple(resize.scale) for resize in resizes] == [
        (int(4 * side * ratio), int(side * ratio)) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    ]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert load.reduce_zero_label and pack.type == 'PackSegInputs' and cfg.tta_model.type == 'SegTTAModel'
