"""The published recipes, number by number: these may not change, because the configs claim to reproduce them.

UM-MAE and its detectors and segmentors: arXiv 2205.10063; LoMaR: arXiv 2206.00790; HTC++: arXiv 2103.14030, appendix
A2.2. Mask R-CNN follows MMDetection's 1x and 3x schedules with the optimizer of the published detectors.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.models.selfsup import MAE
from mmpretrain.models.utils.batch_augments import CutMix, Mixup
from torch import nn

from mm_ummae.models import UMMAE, GlobalAttention, LoMaR, UMSimMIM
from tests.configs.leaves import (
    LEAVES,
    WIDTHS,
    backbone_kind,
    build_model,
    build_optimizer,
    config,
    full_model,
    leaf,
    learning_rates,
    optimizer_groups,
)

SWIN = leaf('um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px')
LOMAR = leaf('lomar_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px')
HTCPP_SMALL = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')


def of(*folders: str) -> pytest.MarkDecorator:
    """The leaves of some folders, but for LoMaR in BEiT, which is MMPretrain's recipe of BEiT."""
    paths = [path for path in LEAVES if path.parent.name in folders and not path.stem.startswith('lomar-beit_')]
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


def has(part: Any, **facts: Any) -> None:
    """These values of a part of a config; None is no value."""
    assert {key: part.get(key) for key in facts} == facts


def steps_of(cfg: Config, split: str = 'train') -> dict[str, Any]:
    """The steps of a pipeline by their type."""
    return {step.type.removeprefix('mm_ummae.'): step for step in cfg[f'{split}_dataloader'].dataset.pipeline}


def check_decay(path: Path, decay: float, positions: tuple[str, ...] = ()) -> dict[str, dict]:
    """Weight decay on all parameters but biases, others of one dimension, and positions; returns the groups."""
    groups, model = optimizer_groups(path), full_model(path)
    for name, group in groups.items():
        without = (
            model.get_parameter(name).ndim == 1 or name.endswith('bias') or any(word in name for word in positions)
        )
        assert group['weight_decay'] == (0 if without else decay), name
    return groups


def check_layers(path: Path, groups: dict[str, dict], lr: float, decay: float) -> None:
    """The learning rate falls from block to block below the head; patch embedding and positions have the lowest."""
    backbone, layers = full_model(path).backbone, set()
    depths = getattr(backbone, 'depths', ())
    blocks = sum(depths) or len(backbone.layers)
    for name, group in groups.items():
        part, *rest = name.removeprefix('backbone.').split('.')
        layer = 0
        if not name.startswith('backbone.') or part == 'norm':
            layer = blocks + 1
        elif part == 'layers':
            layer = int(rest[0]) + 1
        elif part == 'stages':  # a merging is part of the first block of its stage
            layer = sum(depths[: int(rest[0])]) + (int(rest[2]) if rest[1] == 'blocks' else 0) + 1
        else:
            assert part in ('patch_embed', 'pos_embed', 'cls_token')
        assert group['lr'] == pytest.approx(lr * decay ** (blocks + 1 - layer), rel=1e-9), name
        layers.add(layer)
    assert layers == set(range(blocks + 2))


def check_line_and_cosine(
    cfg: Config, warmup: int, epochs: int, lr: float, low: float = 0.0, scales: tuple[float, ...] = (1.0,)
) -> None:
    """A line from 0, then half a cosine, stepped by iteration; MMEngine reaches the top one iteration early."""
    length = 11
    start, end = warmup * length, epochs * length
    i = np.arange(end)
    cosine = low + (lr - low) * 0.5 * (1 + np.cos(np.pi * (i - start) / (end - start)))
    expected = np.where(i < start, lr * i / (start - 1), cosine)[:, None] * np.array(scales)
    rates = learning_rates(cfg, length, tuple(lr * scale for scale in scales))
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop' and len(rates) == end
    np.testing.assert_allclose(np.array(rates), expected, rtol=1e-6, atol=1e-8 * lr)


def check_steps(cfg: Config, epochs: int, first: int, second: int, warmup: int) -> None:
    """A line from a thousandth over some iterations; a tenth from the first epoch on, a hundredth from the second."""
    length = warmup + 1
    rates = np.array(learning_rates(cfg, length))[:, 0]
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop' and len(rates) == epochs * length
    np.testing.assert_allclose(rates[:warmup], np.linspace(0.001, 1, warmup), rtol=1e-6)
    epoch = np.arange(warmup, len(rates)) // length
    expected = np.where(epoch < first, 1.0, np.where(epoch < second, 0.1, 0.01))
    np.testing.assert_allclose(rates[warmup:], expected, rtol=1e-6)


# Pre-training

WARMUPS = {  # by epochs; that of LoMaR's 300 is not in the paper: as of 400
    'ummae': {200: 10, 800: 40},
    'simmim': {200: 10},
    'mae': {200: 10, 400: 40, 800: 40, 1600: 40},
    'lomar': {300: 10, 400: 10, 800: 20, 1600: 40},
}


@of(*WARMUPS)
def test_pretraining(path: Path) -> None:
    """AdamW 1.5e-4 for 256 images, batch 4096, cosine; crops and mirror images; a seed for each rank."""
    cfg, model, method = config(path), full_model(path), path.parent.name
    epochs, side = (int(re.search(pattern, path.stem)[1]) for pattern in (r'-(\d+)e_', r'-(\d+)px$'))
    lr, images = 1.5e-4 * 4096 / 256, cfg.train_dataloader.batch_size
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    has(cfg.optim_wrapper, loss_scale='dynamic', clip_grad=None, accumulative_counts=4096 // (8 * images))
    check_line_and_cosine(cfg, WARMUPS[method][epochs], epochs, lr)
    crop = dict(type='mm_ummae.TorchRandomResizedCrop', scale=side, crop_ratio_range=(0.2, 1.0))
    has(steps_of(cfg)['TorchRandomResizedCrop'], **crop, interpolation='bicubic', flip_prob=0.5)
    has(cfg.model.data_preprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    assert model.data_preprocessor._channel_conversion, 'images are read as BGR'
    assert cfg.train_dataloader.drop_last, 'the last batch of an epoch would be smaller'
    assert cfg.randomness.diff_rank_seed, 'all ranks would draw the same masks'
    groups = check_decay(path, 0.05)
    assert {group['lr'] for group in groups.values()} == {lr}
    assert not any('pos_embed' in name or 'positions' in name for name in groups), 'positions are fixed'
    # Tokens are (1, 1, C), so the published rule does not exempt them
    tokens = {'backbone.mask_token' if method in ('simmim', 'lomar') else 'neck.mask_token'}
    tokens |= {'backbone.secondary_token'} if method == 'ummae' else set()
    tokens |= {'backbone.cls_token'} if 'vit' in path.stem else set()
    assert {name for name in groups if name.endswith('token')} == tokens
    hooks = [hook['type'] for hook in [*cfg.custom_hooks, *cfg.default_hooks.values()]]
    assert not any('EMA' in hook for hook in hooks)
    if type(model) is not MAE:  # MMPretrain's shows no reconstructions
        assert epochs % cfg.custom_hooks[hooks.index('mm_ummae.ReconstructionHook')].interval == 0


@of('ummae', 'simmim', 'mae', 'lomar')
def test_pretraining_model(path: Path) -> None:
    """Sampling and Secondary Masking, target, decoder and windows of each method."""
    cfg, model = config(path), full_model(path)
    side, large = cfg.model.backbone.img_size, backbone_kind(cfg)[1] in ('base', 'large') and 'swin' in path.stem
    if isinstance(model, UMMAE):
        random = path.parent.name == 'mae'
        assert (model.sampling, model.secondary_ratio) == (('random', 0) if random else ('uniform', 0.25))
        assert (model.backbone.secondary_token is None) == random and model.head.norm_pix
        assert (model.neck.embed_dims, len(model.neck.blocks)) == (512, 8 if large else 2)
        assert {block.attn.num_heads for block in model.neck.blocks} == {16} and cfg.model.neck.img_size == side
        assert not getattr(model.neck, 'published_positions', False)
        if 'swin' in path.stem:  # on the compact image 8 tokens, none shifted where they span it
            windows = [stage.window_and_shift(True) for stage in model.backbone.stages]
            assert windows == [(8, 4), (8, 4), (8, 0), (4, 0)]
    elif isinstance(model, UMSimMIM):
        assert model.sampling == 'random' and model.backbone.secondary_token is None and not model.head.norm_pix
        if 'swin' in path.stem:
            windows = [stage.window_and_shift(False) for stage in model.backbone.stages]
            assert windows == [(16, 8), (16, 8), (16, 0), (8, 0)]
        else:
            assert [stage.sr_ratio for stage in model.backbone.stages] == [8, 4, 2, 1]
    elif isinstance(model, LoMaR):
        patch = 8 if '-p8_' in path.stem else 16
        assert model.head.norm_pix and not model.with_neck and model.backbone.positions == 'relative'
        assert model.backbone.patch_size == model.head.patch_size == patch
        windows = {224: 4, 384: 6, 448: 9}[side]
        has(cfg.model, window_size=7, num_windows=windows, mask_ratio=0.8, pairing='all')
        mask = model.draw_mask(2, (side, side))
        assert mask.masked.shape == (2 * windows, 39), 'of 49 patches'
        assert (mask.by_image() // windows).tolist() == [[i] * windows for i in range(2)]
    else:
        assert type(model) is MAE and model.backbone.mask_ratio == 0.75 and model.head.norm_pix
        assert (len(model.neck.decoder_blocks), model.neck.decoder_norm.normalized_shape) == (8, (512,))
        assert cfg.model.neck.num_patches == (side // 16) ** 2


@of('ummae')
def test_secondary_masking_and_sampling_are_options(path: Path) -> None:
    for ratio in (0.0, 0.5):
        assert build_model(config(path, {'model.secondary_ratio': ratio})).secondary_ratio == ratio
    cfg = config(path, {'model.sampling': 'random'})
    if backbone_kind(cfg)[0] == 'UMViT':
        assert build_model(cfg).sampling == 'random'
    else:
        with pytest.raises(ValueError, match=r"sampling is 'random', but UM(Swin|PVT) takes uniform"):
            build_model(cfg)


@pytest.mark.parametrize(
    ('window', 'number', 'ratio'),
    [(5, 8, 0.8), (9, 3, 0.8), (11, 2, 0.8), (14, 1, 0.8), (7, 4, 0.3), (7, 4, 0.6), (7, 4, 0.9)],
)
def test_windows_of_lomar_are_options(window: int, number: int, ratio: float) -> None:
    """Those of the paper's ablations."""
    options = {'model.window_size': window, 'model.num_windows': number, 'model.mask_ratio': ratio}
    mask = build_model(config(LOMAR, options)).draw_mask(2, (224, 224))
    assert mask.masked.shape == (2 * number, int(window**2 * ratio))


@pytest.mark.parametrize('positions', ['relative', 'absolute'])
@pytest.mark.parametrize('asymmetric', [False, True])
def test_architectures_of_lomar_are_options(positions: str, asymmetric: bool) -> None:
    """The arms of the paper's ablation, from one config."""
    options = {'model.backbone.positions': positions, 'model.backbone.learn_positions': False}
    if asymmetric:
        neck = dict(type='mm_ummae.LoMaRDecoder', in_channels=768, positions=positions)
        options |= {'model.backbone.mask_token': False, 'model.neck': neck, 'model.head.in_channels': 512}
    model = build_model(config(LOMAR, options))
    tables = [name for name, _ in model.named_parameters() if name.endswith('position_table')]
    assert len(tables) == (12 + 8 * asymmetric if positions == 'relative' else 0)
    assert (model.backbone.pos_embed is None) == (positions == 'relative')
    with torch.device('meta'):
        assert model.loss(torch.empty(2, 3, 224, 224))['loss'].shape == ()


def test_lomar_in_beit() -> None:
    """MMPretrain's recipe of BEiT on four windows of 7x7 patches; the tokenizer's image has half the side."""
    cfg = config(leaf('lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px'))
    has(cfg.model, window_size=7, num_windows=4, mask_ratio=0.8)
    has(steps_of(cfg)['RandomResizedCropAndInterpolationWithTwoPic'], size=224, second_size=112)
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (300, 256)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), weight_decay=0.05)


# Fine-tuning on ImageNet

FINETUNING = {  # base learning rate, layer decay, drop path
    ('LoMaRViT', 'base'): (1e-3, 0.65, 0.1),
    ('UMViT', 'base'): (5e-4, 0.8, 0.1),
    ('UMPVT', 'small'): (5e-4, 0.85, 0.1),
    ('UMSwin', 'tiny'): (5e-4, 0.85, 0.1),
    ('UMSwin', 'large'): (5e-4, 0.7, 0.2),
}


@of('classification')
def test_finetuning(path: Path) -> None:
    """Batch 1024, learning rates by layer over 100 epochs, augmentation, mixup and cutmix, drop path."""
    cfg, model = config(path), full_model(path)
    base, decay, drop_path = FINETUNING[backbone_kind(cfg)]
    lr, side = base * 1024 / 256, (384 if '384px' in path.stem else 224) if 'vit' in path.stem else 256
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert 8 * cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1) == 1024
    groups = check_decay(path, 0.05, ('backbone.pos_embed', 'backbone.cls_token'))
    check_layers(path, groups, lr, decay)
    check_line_and_cosine(cfg, 5, 100, lr, low=1e-6, scales=(1.0, decay, decay**13))
    train, test, bicubic = steps_of(cfg), steps_of(cfg, 'val'), dict(backend='pillow', interpolation='bicubic')
    has(train['RandomResizedCrop'], scale=side, **bicubic)
    has(train['RandAugment'], policies='timm_increasing', num_policies=2, magnitude_level=9, magnitude_std=0.5)
    has(train['RandomErasing'], erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3)
    has(test['ResizeEdge'], scale=max(side, 256), edge='short', **bicubic)
    assert test['CenterCrop'].crop_size == side == cfg.model.backbone.img_size and steps_of(cfg, 'test') == test
    assert cfg.train_dataloader.drop_last and not cfg.val_dataloader.get('drop_last', False)
    assert cfg.model.head.init_cfg.std == 2e-5
    if hasattr(model.backbone, 'stages'):
        drops = [block.drop_path for stage in model.backbone.stages for block in stage.blocks]
        assert model.backbone.norm is None, 'the only norm after the last block is that of the neck'
    else:
        drops = [getattr(layer, 'drop_path', None) or layer.ffn.dropout_layer for layer in model.backbone.layers]
        assert not model.backbone.final_norm
    assert [getattr(drop, 'drop_prob', 0.0) for drop in drops] == pytest.approx(np.linspace(0, drop_path, len(drops)))
    augments = model.data_preprocessor.batch_augments
    assert [(type(augment), augment.alpha) for augment in augments.augments] == [(Mixup, 0.8), (CutMix, 1.0)]
    assert augments.probs is None and model.data_preprocessor.to_rgb and model.neck.norm.eps == 1e-6


def test_layer_decay_survives_automatic_scaling() -> None:
    """``--auto-scale-lr`` on half of the GPUs halves the learning rate of every layer; schedules start from that."""
    cfg = config(SWIN)
    wrapper = build_optimizer(cfg, full_model(SWIN))
    before = [group['lr'] for group in wrapper.optimizer.param_groups]
    runner = SimpleNamespace(
        _train_dataloader=cfg.train_dataloader, world_size=4, param_schedulers=None, logger=SimpleNamespace(info=print)
    )
    Runner.scale_lr(runner, wrapper, dict(enable=True, **cfg.auto_scale_lr))
    after = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert after == pytest.approx([rate / 2 for rate in before]) and len(set(after)) == 12 + 2


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


def test_erased_pixels_are_normal_noise_for_the_network() -> None:
    """As published: N(0, 1) in place of normalised pixels (clipped to what an image can hold)."""
    cfg = config(SWIN)
    (erase,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomErasing')
    erase.update(erase_prob=1.0, min_area_ratio=1.0, max_area_ratio=1.0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        transform = TRANSFORMS.build(erase)
    transform.random_patch = lambda height, width: (0, 0, height, width)
    np.random.seed(0)
    image = transform.transform(dict(img=np.zeros((64, 64, 3), np.uint8)))['img'].astype(np.float64)
    preprocessor = cfg.model.data_preprocessor
    pixels = (image[..., ::-1] - preprocessor.mean) / preprocessor.std  # BGR -> RGB
    assert pixels.mean((0, 1)) == pytest.approx(0, abs=0.05)
    assert pixels.std((0, 1)) == pytest.approx(1, abs=0.06)


# Detection and segmentation


@of('gfl', 'mask_rcnn', 'htc', 'upernet', 'vitdet')
def test_dense(path: Path) -> None:
    """AdamW 1e-4 and batch 16, ViTDet 64; all stages without a norm, windows of 16, drop path by size."""
    cfg, folder = config(path), path.parent.name
    vitdet, (kind, arch) = folder == 'vitdet', backbone_kind(cfg)
    decay, batch = (0.1, 64) if vitdet else (0.05, 16)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=decay)
    assert 8 * cfg.train_dataloader.batch_size == batch and 'accumulative_counts' not in cfg.optim_wrapper
    # Swin's detectors free their table of biases from decay, so what makes it here is free as well
    positions = ('pos_embed',) if folder in ('gfl', 'upernet') else ('pos_embed', '.position_bias.')
    check_layers(path, check_decay(path, decay, positions), 1e-4, 0.7 if vitdet else 1.0)
    larger = arch in ('base', 'large') and not vitdet
    drop_path = (0.3 if larger else 0.2) if folder == 'htc' else 0.2 if larger else 0.1
    window = {'UMSwin': 16, 'UMPVT': None, 'LoMaRViT': 14}[kind]
    has(cfg.model.backbone, final_norm=False, drop_path_rate=drop_path, window_size=window)
    has(cfg.model.backbone, out_indices=None if vitdet else (0, 1, 2, 3))
    if isinstance(cfg.model.neck, list):
        projection, fpn = cfg.model.neck
        has(projection, out_channels=768, with_norm=None)  # norm by default
        has(fpn, in_channels=4 * [768], num_outs=5, start_level=1 if folder == 'gfl' else None)


def test_layer_decay_is_an_option() -> None:
    path = leaf('mask-rcnn_um-pvt-small_fpn_8xb2-amp-1x_coco')
    cfg = config(path, {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.9})
    groups = build_optimizer(cfg, full_model(path)).optimizer.param_groups
    check_layers(path, {group['param_name']: group for group in groups}, 1e-4, 0.9)


def check_large_scale_jitter(cfg: Config) -> None:
    train = steps_of(cfg)
    has(train['RandomResize'], scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True)
    has(train['RandomCrop'], crop_size=(1024, 1024), crop_type='absolute_range')
    has(train['RandomCrop'], allow_negative_crop=True, recompute_bbox=True)
    has(cfg.train_dataloader.dataset, type='CocoDataset', ann_file='annotations/instances_train2017.json')


@of('gfl')
def test_gfl(path: Path) -> None:
    """25 epochs on a cosine to 0.01, times a warm-up of 2000 iterations; jitter of 0.1 to 2 with crops of 1024 px."""
    cfg = config(path)
    length = 2000
    rates = np.array(learning_rates(cfg, length))[:, 0]
    i = np.arange(25 * length)
    cosine = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * i / len(i)))
    np.testing.assert_allclose(rates, np.minimum(0.001 + 0.999 * i / (length - 1), 1) * cosine, rtol=2e-3)
    check_large_scale_jitter(cfg)
    assert cfg.model.data_preprocessor.batch_augments == [dict(type='BatchFixedSizePad', size=(1024, 1024))]
    has(cfg.model.neck[1], add_extra_convs='on_output', norm_cfg=dict(type='SyncBN', requires_grad=True))
    # Stage 1 is projected as published, though the FPN begins at stage 2; boxes without masks have a TTA of their own
    assert cfg.find_unused_parameters and cfg.tta_model.type == 'DetTTAModel'


@of('mask_rcnn')
def test_mask_rcnn(path: Path) -> None:
    """1x at 800 px, steps at epochs 8 and 11; 3x at a short side of 480 to 800 px, steps at 27 and 33."""
    cfg = config(path)
    check_steps(cfg, *((36, 27, 33) if '3x' in path.stem else (12, 8, 11)), warmup=1000)
    if '3x' in path.stem:
        has(steps_of(cfg)['RandomChoiceResize'], scales=[(1333, 480 + 32 * i) for i in range(11)], keep_ratio=True)
    else:
        has(steps_of(cfg)['Resize'], scale=(1333, 800), keep_ratio=True)


@of('vitdet')
def test_vitdet(path: Path) -> None:
    """25 epochs with steps at 22 and 24, global attention in four layers, all images on a square of 1024 px."""
    cfg = config(path)
    check_steps(cfg, 25, 22, 24, warmup=250)
    check_large_scale_jitter(cfg)
    assert (
        steps_of(cfg, 'test')['Resize'].scale == (1024, 1024) and cfg.model.data_preprocessor.pad_size_divisor == 1024
    )
    positions = 'both' if '_mae-' in path.stem else 'relative'
    has(cfg.model.backbone, img_size=1024, global_layers=(2, 5, 8, 11), positions=positions)
    check_augmented_test(cfg, [(1024, 1024)])
    assert cfg.auto_scale_lr.base_batch_size == 64


def check_augmented_test(cfg: Config, sizes: list[tuple[int, int]]) -> None:
    """These sizes, each also mirrored."""
    resizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [resize.scale for resize in resizes] == sizes and [flip.prob for flip in flips] == [0.0, 1.0]


@of('htc')
def test_htcpp(path: Path) -> None:
    """72 epochs, InstaBoost, short side of 400 to 1400 px; memory is saved where it is short; the open box heads."""
    cfg, model, semantic = config(path), full_model(path), 'without-semantic' not in path.stem
    check_steps(cfg, 72, 63, 69, warmup=1000)
    check_cascade(path)
    check_augmented_test(cfg, [(1333, 800), (1666, 1000), (2000, 1200), (2333, 1400)])
    train = steps_of(cfg)
    assert list(train).index('InstaBoost') == list(train).index('LoadAnnotations') - 1
    assert train['InstaBoost'].aug_ratio == 0.5 and ('MoveStuff' in train) is semantic
    has(train['RandomResize'], scale=[(1600, 400), (1600, 1400)], keep_ratio=True)
    has(train['LoadAnnotations'], with_mask=True, with_seg=semantic or None)
    has(cfg.train_dataloader.dataset, type='mm_ummae.CocoStuffDataset' if semantic else 'CocoDataset')
    if semantic:
        assert model.roi_head.semantic_head.fusion_level == 1
        assert model.data_preprocessor.pad_seg and model.data_preprocessor.seg_pad_value == 255
    arch = backbone_kind(cfg)[1]
    has(cfg.model.backbone, with_cp=arch != 'tiny' or None)
    has(cfg.model.neck[0].extra_layer, with_cp=arch == 'large' or None)
    for head in cfg.model.roi_head.bbox_head:
        if path.stem.startswith('htcpp-giou-4conv1fc'):
            has(head, type='Shared4Conv1FCBBoxHead', norm_cfg=dict(type='SyncBN', requires_grad=True))
            has(head, loss_bbox=dict(type='GIoULoss', loss_weight=10.0), reg_decoded_bbox=True)
        else:
            assert (head.type, head.loss_bbox.type) == ('Shared2FCBBoxHead', 'SmoothL1Loss')


def test_htcpp_of_the_demo() -> None:
    check_cascade(HTCPP_SMALL)


def check_cascade(path: Path) -> None:
    """HTC with mask information flow, global attention on the last stage, and soft-NMS in both tests."""
    cfg, model = config(path), full_model(path)
    head, layer = model.roi_head, model.neck[0].extra_layer
    assert type(model).__name__ == 'HybridTaskCascade' and head.interleaved and head.mask_info_flow
    assert head.stage_loss_weights == [1, 0.5, 0.25]
    assert [assigner.pos_iou_thr for assigner in head.bbox_assigner] == [0.5, 0.6, 0.7]
    stds = [tuple(part.bbox_coder.stds) for part in head.bbox_head]
    assert stds == [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    assert [part.with_conv_res for part in head.mask_head] == [False, True, True]
    channels = WIDTHS[backbone_kind(cfg)][-1]
    assert isinstance(layer, GlobalAttention) and layer.norm1.normalized_shape == (channels,)
    assert channels // layer.num_heads == (16 if path == HTCPP_SMALL else 32)
    soft_nms = dict(type='soft_nms', iou_threshold=0.5)
    has(cfg.model.test_cfg.rcnn, nms=soft_nms, score_thr=0.001, max_per_img=100)
    assert cfg.tta_model == dict(type='mm_ummae.InstanceTTAModel', tta_cfg=dict(nms=soft_nms, max_per_img=100))


@pytest.mark.parametrize(('epochs', 'milestones'), [(12, [8, 11]), (36, [27, 33])], ids=['12 epochs', '36 epochs'])
def test_shorter_schedules_of_htcpp_are_options(epochs: int, milestones: list[int]) -> None:
    options = {'train_cfg.max_epochs': epochs, 'param_scheduler.1.end': epochs}
    options['param_scheduler.1.milestones'] = milestones
    cfg = config(leaf('htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco'), options)
    check_steps(cfg, epochs, *milestones, warmup=1000)


def test_a_smaller_backbone_of_htcpp_is_an_option() -> None:
    """The open box heads, of which there is a leaf for UMSwin-L, on UMSwin-T."""
    options = {'arch': 'tiny', 'drop_path_rate': 0.2, 'with_cp': False}
    options = {f'model.backbone.{key}': value for key, value in options.items()}
    options['model.neck.0.in_channels'] = [96, 192, 384, 768]
    layer = {'in_channels': 768, 'num_heads': 24, 'with_cp': False}
    options |= {f'model.neck.0.extra_layer.{key}': value for key, value in layer.items()}
    large = leaf('htcpp-giou-4conv1fc_um-swin-large_fpn_8xb2-amp-6x_coco')
    model, tiny = build_model(config(large, options)), full_model(leaf('htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco'))
    for part in ('backbone', 'neck'):
        shapes = [
            {name: value.shape for name, value in getattr(net, part).state_dict().items()} for net in (model, tiny)
        ]
        assert shapes[0] == shapes[1]


@of('upernet')
def test_upernet(path: Path) -> None:
    """160k iterations; crops and tests of the side in the name; UPerHead on 4 x 768 channels, FCN on level 2."""
    cfg = config(path)
    side, stride = (640, 426) if '640x640' in path.stem else (512, 341)
    has(cfg.model.neck, with_norm=False, out_channels=768)
    has(cfg.model.decode_head, type='UPerHead', channels=768, in_channels=4 * [768])
    has(cfg.model.auxiliary_head, type='FCNHead', in_index=2)
    train = steps_of(cfg)
    has(train['RandomResize'], scale=(4 * side, side), ratio_range=(0.5, 2.0))
    assert train['RandomCrop'].crop_size == (side, side) == cfg.model.data_preprocessor.size
    assert train['LoadAnnotations'].reduce_zero_label and cfg.tta_model.type == 'SegTTAModel'
    for split in ('val', 'test'):
        has(steps_of(cfg, split)['Resize'], scale=(4 * side, side), keep_ratio=True)
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    check_augmented_test(cfg, [(int(4 * side * ratio), int(side * ratio)) for ratio in ratios])
    warmup, decay = cfg.param_scheduler
    assert warmup == dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
    assert decay == dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000)
    if not path.stem.endswith('-whole'):
        assert cfg.model.test_cfg == dict(mode='slide', crop_size=(side, side), stride=(stride, stride))
        return
    sliding = config(path.with_stem(path.stem.removesuffix('-whole')))
    sliding.model.test_cfg = dict(mode='whole')
    assert cfg.to_dict() == sliding.to_dict(), 'the training is the same'
