"""The published ImageNet fine-tuning (arXiv 2205.10063, 2206.00790), number by number.

These numbers may not change: they are what the configs claim to reproduce.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.models.utils.batch_augments import CutMix, Mixup
from torch import nn

from .leaves import (
    CONFIGS,
    backbone_kind,
    build_optimizer,
    config,
    full_model,
    leaf,
    learning_rates,
    optimizer_groups,
)

FINETUNING = sorted((CONFIGS / 'imagenet').glob('*.py'))
SWIN = leaf('um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px')
# Layer decay, drop path, blocks
PUBLISHED = {
    ('LoMaRViT', 'base'): (0.65, 0.1, 12),
    ('UMViT', 'base'): (0.8, 0.1, 12),
    ('UMPVT', 'small'): (0.85, 0.1, 16),
    ('UMSwin', 'tiny'): (0.85, 0.1, 12),
    ('UMSwin', 'large'): (0.7, 0.2, 24),
}

# Images per GPU and accumulated iterations, on 8 GPUs; the others have 128
SPLITS = {
    leaf('lomar-vit-base-p16_8xb64x2-amp-coslr-100e_in1k-384px'): (64, 2),
    leaf('lomar-vit-base-p8_8xb32x4-amp-coslr-100e_in1k-224px'): (32, 4),
}

every_finetuning = pytest.mark.parametrize('path', FINETUNING, ids=lambda path: path.stem)


def base_rate(path: Path) -> float:
    """For 256 images; LoMaR's is that of its paper."""
    return 1e-3 if path.stem.startswith('lomar') else 5e-4


def published_layer(name: str, depths: tuple[int, ...], blocks: int) -> int:
    """0: patch embedding, positions, class token; 1, 2, ...: blocks through all stages; last: what follows them."""
    part, *rest = name.removeprefix('backbone.').split('.')
    if not name.startswith('backbone.'):
        return blocks + 1
    if part == 'layers':
        return int(rest[0]) + 1
    if part == 'stages':  # a merging is part of the first block of its stage
        return sum(depths[: int(rest[0])]) + (int(rest[2]) if rest[1] == 'blocks' else 0) + 1
    assert part in ('patch_embed', 'pos_embed', 'cls_token')
    return 0


@every_finetuning
def test_finetuning_optimizer(path: Path) -> None:
    """AdamW (0.9, 0.999), 5e-4 or 1e-3 for 256 images, decayed by layer; weight decay 0.05 where it is due."""
    cfg = config(path)
    decay, _, blocks = PUBLISHED[backbone_kind(cfg)]
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.optimizer.type) == ('AmpOptimWrapper', 'AdamW')
    model = full_model(path)
    depths = getattr(model.backbone, 'depths', None)
    layers = set()
    for name, group in optimizer_groups(path).items():
        parameter = model.get_parameter(name)
        layer = published_layer(name, depths, blocks)
        layers.add(layer)
        assert tuple(group['betas']) == (0.9, 0.999)
        assert group['lr'] == pytest.approx(base_rate(path) * 1024 / 256 * decay ** (blocks + 1 - layer), rel=1e-9), (
            name
        )
        exempt = parameter.ndim == 1 or name in ('backbone.pos_embed', 'backbone.cls_token')
        assert group['weight_decay'] == (0 if exempt else 0.05), name
    assert layers == set(range(blocks + 2))


@every_finetuning
def test_finetuning_schedule(path: Path) -> None:
    """5 of 100 epochs up from 0, half a cosine down to 1e-6; the layer's scale goes over the whole curve."""
    cfg = config(path)
    length, lr, min_lr = 13, base_rate(path) * 1024 / 256, 1e-6
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs) == ('EpochBasedTrainLoop', 100)
    decay, _, blocks = PUBLISHED[backbone_kind(cfg)]
    scales = (1.0, decay, decay ** (blocks + 1))
    start, end = 5 * length, 100 * length
    for i, rates in enumerate(learning_rates(cfg, length, tuple(lr * scale for scale in scales))):
        if i < start:
            expected = lr * i / (start - 1)
        else:
            expected = min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (i - start) / (end - start)))
        for rate, scale in zip(rates, scales, strict=True):
            assert rate == pytest.approx(scale * expected, rel=1e-6, abs=1e-11), f'iteration {i}'
    assert rates[0] == pytest.approx(min_lr, rel=0.01), 'the last iteration'


@every_finetuning
def test_finetuning_batch(path: Path) -> None:
    cfg = config(path)
    images, accumulated = SPLITS.get(path, (128, 1))
    assert 8 * images * accumulated == 1024
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (images, 8 * images)
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == accumulated
    assert cfg.train_dataloader.drop_last and not cfg.val_dataloader.get('drop_last', False)


def test_layer_decay_survives_automatic_scaling() -> None:
    """``--auto-scale-lr`` on half of the GPUs halves the rate of every layer, and schedules start from that."""
    cfg = config(SWIN)
    wrapper = build_optimizer(cfg, full_model(SWIN))
    before = [group['lr'] for group in wrapper.optimizer.param_groups]
    runner = SimpleNamespace(
        _train_dataloader=cfg.train_dataloader, world_size=4, param_schedulers=None, logger=SimpleNamespace(info=print)
    )
    Runner.scale_lr(runner, wrapper, dict(enable=True, **cfg.auto_scale_lr))
    after = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert after == pytest.approx([rate / 2 for rate in before]) and len(set(after)) == 12 + 2


@every_finetuning
def test_finetuning_model(path: Path) -> None:
    """Drop path rises linearly; the only norm after the last block is the neck's; mixup and cutmix."""
    _, drop_path, blocks = PUBLISHED[backbone_kind(config(path))]
    model = full_model(path)
    if hasattr(model.backbone, 'stages'):
        drops = [block.drop_path for stage in model.backbone.stages for block in stage.blocks]
        assert model.backbone.norm is None
    else:
        drops = [layer.ffn.dropout_layer for layer in model.backbone.layers]
        assert not model.backbone.final_norm
    assert [getattr(drop, 'drop_prob', 0.0) for drop in drops] == pytest.approx(np.linspace(0, drop_path, blocks))
    assert model.neck.norm.eps == 1e-6
    augments = model.data_preprocessor.batch_augments
    assert [(type(augment), augment.alpha) for augment in augments.augments] == [(Mixup, 0.8), (CutMix, 1.0)]
    assert augments.probs is None, 'equal chances'
    assert model.data_preprocessor.to_rgb


@every_finetuning
@torch.no_grad()
def test_first_outputs_are_near_zero(path: Path) -> None:
    """The published head starts at a standard deviation of 2e-5."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = MMENGINE_MODELS.build(config(path).model.head)
    head.init_weights()
    assert float(head.fc.weight.std()) == pytest.approx(2e-5, rel=0.01) and not head.fc.bias.any()


def test_label_smoothing_is_that_of_mixed_smoothed_labels() -> None:
    """MAE smooths each label, mixes, and takes the soft cross entropy; the config smooths what was mixed."""
    classes, smoothing, share = 1000, 0.1, 0.3
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(4, classes, generator=rng)
    labels = torch.randint(classes, (4,), generator=rng)
    hard = nn.functional.one_hot(labels, classes).float()
    low = smoothing / classes
    smooth = torch.full((4, classes), low).scatter(1, labels[:, None], 1 - smoothing + low)
    target = share * smooth + (1 - share) * smooth.flip(0)
    expected = -(target * scores.log_softmax(-1)).sum(-1).mean()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loss = MMENGINE_MODELS.build(config(SWIN).model.head.loss)
    mixed = share * hard + (1 - share) * hard.flip(0)
    assert loss(scores, mixed) == pytest.approx(float(expected), rel=1e-6)
    assert loss(scores, hard) != pytest.approx(float(expected), rel=1e-3)


@every_finetuning
def test_finetuning_pictures(path: Path) -> None:
    side = (384 if '384px' in path.stem else 224) if 'vit' in path.stem else 256
    cfg = config(path)
    assert cfg.model.backbone.img_size == side
    load, crop, flip, augment, erase, pack = cfg.train_dataloader.dataset.pipeline
    assert load.imdecode_backend == 'pillow'
    assert (crop.type, crop.scale, crop.backend, crop.interpolation) == (
        'RandomResizedCrop',
        side,
        'pillow',
        'bicubic',
    )
    assert flip == dict(type='RandomFlip', prob=0.5)
    assert (augment.type, augment.policies, augment.num_policies) == ('RandAugment', 'timm_increasing', 2)
    assert (augment.magnitude_level, augment.magnitude_std, augment.total_level) == (9, 0.5, 10)
    assert (erase.type, erase.erase_prob, erase.mode) == ('RandomErasing', 0.25, 'rand')
    assert (erase.min_area_ratio, erase.max_area_ratio) == (0.02, pytest.approx(1 / 3))
    assert pack.type == 'PackInputs'
    load, resize, centre, pack = cfg.val_dataloader.dataset.pipeline
    assert (resize.type, resize.scale, resize.edge) == ('ResizeEdge', max(side, 256), 'short')
    assert (resize.backend, resize.interpolation) == ('pillow', 'bicubic')
    assert centre == dict(type='CenterCrop', crop_size=side)
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    assert cfg.train_dataloader.dataset.split == 'train' and cfg.val_dataloader.dataset.split == 'val'


def test_erased_pixels_are_normal_noise_for_the_network() -> None:
    """As published: N(0, 1) in place of normalised pixels (clipped to what an image can hold)."""
    cfg = config(SWIN)
    erase = cfg.train_dataloader.dataset.pipeline[4]
    erase.update(erase_prob=1.0, min_area_ratio=1.0, max_area_ratio=1.0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        transform = TRANSFORMS.build(erase)
    transform.random_patch = lambda height, width: (0, 0, height, width)
    np.random.seed(0)
    picture = transform.transform(dict(img=np.zeros((64, 64, 3), np.uint8)))['img'].astype(np.float64)
    preprocessor = cfg.model.data_preprocessor
    pixels = (picture[..., ::-1] - preprocessor.mean) / preprocessor.std  # BGR -> RGB
    assert pixels.mean((0, 1)) == pytest.approx(0, abs=0.05)
    assert pixels.std((0, 1)) == pytest.approx(1, abs=0.06)
