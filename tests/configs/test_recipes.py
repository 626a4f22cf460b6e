"""The published recipes, number by number: these may not change, because the configs claim to reproduce them.

UM-MAE and its detectors and segmentors: arXiv 2205.10063; LoMaR: arXiv 2206.00790; HTC++: arXiv 2103.14030, appendix
A2.2. Mask R-CNN follows MMDetection's 1x and 3x schedules with the optimizer of the published detectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from mm_ummae.masking import WindowSampler
from tests.configs.leaves import LEAVES, build_model, build_optimizer, config, full_model, is_demo, leaf

LOMAR = leaf('lomar_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px')
HTCPP = leaf('htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco')
PRETRAINING = r'^(ummae|simmim|mae|lomar)/(?!lomar-beit)'
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SYNC_BN = dict(type='SyncBN', requires_grad=True)
SOFT_NMS = dict(type='soft_nms', iou_threshold=0.5)
KEYS_HOOK = dict(type='mm_ummae.CheckpointKeysHook')


def adamw(lr: float, weight_decay: float, second_beta: float = 0.999) -> dict:
    return dict(type='AdamW', lr=lr, betas=(0.9, second_beta), weight_decay=weight_decay)


# By patterns of `folder/leaf`: what the leaves have at a dotted place. `batch` is the total batch, `net` the model at
# full size; `train`, `val` and `test` are the pipelines. A step goes by its type, `*` is each item of a list.
FACTS: dict[str, dict[str, Any]] = {
    # Channels of the stages
    r'swin-test': {'net.backbone.num_features': [32, 64, 128, 256]},
    r'swin-tiny': {'net.backbone.num_features': [96, 192, 384, 768]},
    r'swin-base': {'net.backbone.num_features': [128, 256, 512, 1024]},
    r'swin-large': {'net.backbone.num_features': [192, 384, 768, 1536]},
    r'pvt-small': {'net.backbone.num_features': [64, 128, 320, 512]},
    r'vit-test': {'net.backbone.embed_dims': 96},
    r'(vit|beit)-base': {'net.backbone.embed_dims': 768},
    r'swin': {'model.backbone.window_size': 16},
    # Pre-training: no augmentation but crops and mirror images, no average of the weights
    PRETRAINING: {
        'batch': 4096,
        'optim_wrapper': dict(optimizer=adamw(1.5e-4 * 4096 / 256, 0.05, 0.95), loss_scale='dynamic', clip_grad=None),
        'train.*.type': ['mm_ummae.LoadCompleteImage', 'mm_ummae.TorchRandomResizedCrop', 'PackInputs'],
        'train.TorchRandomResizedCrop': dict(crop_ratio_range=(0.2, 1.0), interpolation='bicubic', flip_prob=0.5),
        'train_dataloader.drop_last': True,  # the last batch of an epoch would be smaller
        'model.data_preprocessor': dict(mean=MEAN, std=STD),
        'net.data_preprocessor._channel_conversion': True,  # images are read as BGR
        'randomness.diff_rank_seed': True,  # all ranks would draw the same masks
    },
    **{rf'{PRETRAINING}.*-{side}px': {'train.TorchRandomResizedCrop.scale': side} for side in (224, 256, 384, 448)},
    r'^(ummae|simmim|lomar/lomar_|mae/.*-200e)': {
        'custom_hooks': [KEYS_HOOK, dict(type='mm_ummae.ReconstructionHook', interval=20)],
    },
    r'^ummae/': {
        'net': dict(sampling='uniform', secondary_ratio=0.25),
        'model.backbone.secondary_token': True,
        'model.head.norm_pix': True,
    },
    r'^ummae/.*(tiny|small|vit)': {'model.neck': dict(embed_dims=512, depth=2, num_heads=16)},
    r'^ummae/.*swin-(base|large)': {'model.neck': dict(embed_dims=512, depth=8, num_heads=16)},
    r'^ummae/.*(swin|pvt)': {'model.neck.img_size': 256, 'net.neck.published_positions': False},
    r'^ummae/.*vit': {'model.neck.img_size': 224},
    r'^simmim/': {'net.sampling': 'random', 'net.backbone.secondary_token': None, 'model.head.norm_pix': False},
    r'^simmim/.*pvt': {'net.backbone.stages.*.sr_ratio': [8, 4, 2, 1]},
    # MAE with the decoder of UM-MAE, and MMPretrain's, which shows no reconstructions
    r'^mae/.*-200e': {
        'net': dict(sampling='random', secondary_ratio=0),
        'net.backbone.secondary_token': None,
        'model.neck': dict(embed_dims=512, depth=2, num_heads=16, img_size=224),
        'model.head.norm_pix': True,
    },
    r'^mae/(?!.*-200e)': {
        'model': dict(type='MAE', neck=dict(decoder_depth=8)),
        'net': dict(backbone=dict(mask_ratio=0.75), head=dict(norm_pix=True)),
        'net.neck.decoder_norm.normalized_shape': (512,),
        'custom_hooks': [KEYS_HOOK],
    },
    **{rf'^mae/(?!.*-200e).*-{side}px': {'model.neck.num_patches': (side // 16) ** 2} for side in (224, 384, 448)},
    r'^lomar/lomar_': {'model.head.norm_pix': True, 'model.neck': None, 'net.backbone.positions': 'relative'},
    r'^lomar/.*-224px': {'net.sampler': WindowSampler(7, 4, 0.8, 'all')},
    r'^lomar/.*-384px': {'net.sampler': WindowSampler(7, 6, 0.8, 'all')},
    r'^lomar/.*-448px': {'net.sampler': WindowSampler(7, 9, 0.8, 'all')},
    r'^lomar/lomar_.*-p16': {'model': dict(backbone=dict(patch_size=16), head=dict(patch_size=16))},
    r'^lomar/lomar_.*-p8': {'model': dict(backbone=dict(patch_size=8), head=dict(patch_size=8))},
    # MMPretrain's recipe of BEiT; the tokenizer's image has half the side
    r'^lomar/lomar-beit': {
        'batch': 2048,
        'train_cfg.max_epochs': 300,
        'optim_wrapper.optimizer': adamw(1.5e-3, 0.05),
        'train.RandomResizedCropAndInterpolationWithTwoPic': dict(size=224, second_size=112),
    },
    # Fine-tuning on ImageNet
    r'^classification/': {
        'batch': 1024,
        'train.RandAugment': dict(policies='timm_increasing', num_policies=2, magnitude_level=9, magnitude_std=0.5),
        'train.RandomErasing': dict(erase_prob=0.25, min_area_ratio=0.02, max_area_ratio=1 / 3, mode='rand'),
        # Normal noise once the image is normalised, in the order of an image in memory, which is BGR
        'train.RandomErasing.fill_color': MEAN[::-1],
        'train.RandomErasing.fill_std': STD[::-1],
        'train_dataloader.drop_last': True,
        'val_dataloader.drop_last': None,
        'model.backbone.final_norm': False,  # the only norm after the last block is that of the neck
        'model.head.loss': dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        'model.head.init_cfg.std': 2e-5,
        'model.train_cfg.augments': [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
        'net.data_preprocessor': dict(to_rgb=True, batch_augments=dict(probs=None)),  # equal chances
        'net.neck.norm.eps': 1e-6,
    },
    **{
        rf'^classification/.*-{side}px': {
            'train.RandomResizedCrop': dict(scale=side, backend='pillow', interpolation='bicubic'),
            'val.ResizeEdge': dict(scale=max(side, 256), edge='short', backend='pillow', interpolation='bicubic'),
            'val.CenterCrop.crop_size': side,
        }
        for side in (224, 256, 384)
    },
    r'^classification/um-': {'optim_wrapper.optimizer': adamw(5e-4 * 1024 / 256, 0.05)},
    r'^classification/lomar': {'optim_wrapper.optimizer': adamw(1e-3 * 1024 / 256, 0.05)},
    r'^classification/um-(pvt|swin-tiny)': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.85},
    r'^classification/um-swin-large': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.7},
    r'^classification/um-vit': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.8},
    r'^classification/lomar-vit': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.65},
    # Detection and segmentation
    r'^(gfl|mask_rcnn|htc|upernet)/': {
        'batch': 16,
        'optim_wrapper': dict(optimizer=adamw(1e-4, 0.05), paramwise_cfg=dict(layer_decay_rate=1.0)),
        'model.backbone': dict(out_indices=(0, 1, 2, 3), final_norm=False),
    },
    r'^(classification/(?!.*large)|(gfl|mask_rcnn|upernet)/.*(tiny|small)|vitdet/)': {
        'model.backbone.drop_path_rate': 0.1
    },
    r'^(classification|mask_rcnn|upernet)/.*large': {'model.backbone.drop_path_rate': 0.2},
    r'^(gfl|mask_rcnn|htc)/': {
        'model.neck.0': dict(out_channels=768, with_norm=None),  # True by default
        'model.neck.1': dict(in_channels=[768, 768, 768, 768], num_outs=5),
    },
    r'^(gfl|vitdet)/': {  # large-scale jitter
        'train.RandomResize': dict(scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
        'train.RandomCrop': dict(crop_size=(1024, 1024), crop_type='absolute_range', recompute_bbox=True),
        'train.RandomCrop.allow_negative_crop': True,
        'train_dataloader.dataset': dict(type='CocoDataset', ann_file='annotations/instances_train2017.json'),
    },
    r'^gfl/': {
        'model.data_preprocessor.batch_augments': [dict(type='BatchFixedSizePad', size=(1024, 1024))],
        'model.neck.1': dict(start_level=1, add_extra_convs='on_output', norm_cfg=SYNC_BN),
        'find_unused_parameters': True,  # stage 1 is projected as published, though the FPN begins at stage 2
        'tta_model.type': 'DetTTAModel',  # boxes without masks
    },
    r'^(mask_rcnn|htc)/': {'model.neck.1.start_level': None},
    r'^mask_rcnn/.*-1x': {'train.Resize': dict(scale=(1333, 800), keep_ratio=True)},
    r'^mask_rcnn/.*-3x': {
        'train.RandomChoiceResize': dict(scales=[(1333, 480 + 32 * i) for i in range(11)], keep_ratio=True),
    },
    r'^vitdet/': {  # all images on one square
        'batch': 64,
        'optim_wrapper': dict(optimizer=adamw(1e-4, 0.1), paramwise_cfg=dict(layer_decay_rate=0.7)),
        'model.data_preprocessor.pad_size_divisor': 1024,
        'model.backbone': dict(img_size=1024, window_size=14, global_layers=(2, 5, 8, 11)),
        'test.Resize.scale': (1024, 1024),
        'tta_pipeline.1.transforms.0.*.scale': [(1024, 1024)],
    },
    r'^vitdet/.*_lomar': {'model.backbone': dict(positions='relative', final_norm=False, out_indices=None)},
    r'^vitdet/.*_mae': {'model.backbone': dict(positions='both', final_norm=False, out_indices=None)},
    r'^(htc|vitdet|upernet)/': {'tta_pipeline.1.transforms.1.*.prob': [0.0, 1.0]},  # mirrored as well
    # HTC with mask information flow, soft-NMS in both tests, InstaBoost
    r'^(htc|demo)/htcpp': {
        'model.type': 'HybridTaskCascade',
        'net.roi_head': dict(interleaved=True, mask_info_flow=True, stage_loss_weights=[1, 0.5, 0.25]),
        'model.train_cfg.rcnn.*.assigner.pos_iou_thr': [0.5, 0.6, 0.7],
        'model.roi_head.bbox_head.0.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
        'model.roi_head.bbox_head.1.bbox_coder.target_stds': [0.05, 0.05, 0.1, 0.1],
        'model.roi_head.bbox_head.2.bbox_coder.target_stds': [0.033, 0.033, 0.067, 0.067],
        'net.roi_head.mask_head.*.with_conv_res': [False, True, True],
        'model.test_cfg.rcnn': dict(nms=SOFT_NMS, score_thr=0.001, max_per_img=100),
        'tta_model': dict(type='mm_ummae.InstanceTTAModel', tta_cfg=dict(nms=SOFT_NMS, max_per_img=100)),
        'train.InstaBoost.aug_ratio': 0.5,
        'model.neck.0.extra_layer.type': 'mm_ummae.GlobalAttention',
    },
    # Global attention of 32 channels a head; memory is saved where it is short
    r'^demo/htcpp': {'model.neck.0.extra_layer': dict(in_channels=256, num_heads=16)},
    r'^htc/.*tiny': {
        'model.backbone': dict(drop_path_rate=0.2, with_cp=None),
        'model.neck.0.extra_layer': dict(in_channels=768, num_heads=24, with_cp=None),
    },
    r'^htc/.*(base|large)': {'model.backbone': dict(drop_path_rate=0.3, with_cp=True)},
    r'^htc/.*base': {'model.neck.0.extra_layer': dict(in_channels=1024, num_heads=32, with_cp=None)},
    r'^htc/.*large': {'model.neck.0.extra_layer': dict(in_channels=1536, num_heads=48, with_cp=True)},
    r'^htc/': {
        'train.RandomResize': dict(scale=[(1600, 400), (1600, 1400)], keep_ratio=True),
        'train.1': dict(type='mm_ummae.InstaBoost'),
        'train.2': dict(type='LoadAnnotations', with_mask=True),
        'tta_pipeline.1.transforms.0.*.scale': [(1333, 800), (1666, 1000), (2000, 1200), (2333, 1400)],
    },
    r'^htc/htcpp(?!-without)': {
        'train.LoadAnnotations.with_seg': True,
        'train.3.type': 'mm_ummae.MoveStuff',
        'train_dataloader.dataset.type': 'mm_ummae.CocoStuffDataset',
        'net.roi_head.semantic_head.fusion_level': 1,
        'net.data_preprocessor': dict(pad_seg=True, seg_pad_value=255),
    },
    r'^htc/htcpp-without': {
        'train.LoadAnnotations.with_seg': None,
        'train.MoveStuff': None,
        'train_dataloader.dataset.type': 'CocoDataset',
    },
    r'^htc/htcpp-giou': {
        'model.roi_head.bbox_head.*.type': 3 * ['Shared4Conv1FCBBoxHead'],
        'model.roi_head.bbox_head.*.norm_cfg': 3 * [SYNC_BN],
        'model.roi_head.bbox_head.*.loss_bbox': 3 * [dict(type='GIoULoss', loss_weight=10.0)],
        'model.roi_head.bbox_head.*.reg_decoded_bbox': 3 * [True],
    },
    r'^htc/(?!htcpp-giou)': {
        'model.roi_head.bbox_head.*.type': 3 * ['Shared2FCBBoxHead'],
        'model.roi_head.bbox_head.*.loss_bbox.type': 3 * ['SmoothL1Loss'],
    },
    r'^upernet/': {
        'model.neck': dict(with_norm=False, out_channels=768),
        'model.decode_head': dict(type='UPerHead', channels=768, in_channels=[768, 768, 768, 768]),
        'model.auxiliary_head': dict(type='FCNHead', in_index=2),
        'train.LoadAnnotations.reduce_zero_label': True,
        'tta_model.type': 'SegTTAModel',
        'param_scheduler': [
            dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
            dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
        ],
    },
    **{
        rf'^upernet/.*{side}x{side}': {
            'train.RandomResize': dict(scale=(4 * side, side), ratio_range=(0.5, 2.0)),
            'train.RandomCrop.crop_size': (side, side),
            'model.data_preprocessor.size': (side, side),
            'val.Resize': dict(scale=(4 * side, side), keep_ratio=True),
            'tta_pipeline.1.transforms.0.*.scale': [(side * i, side * i // 4) for i in range(2, 8)],
        }
        for side in (512, 640)
    },
    r'^upernet/.*-512x512$': {'model.test_cfg': dict(mode='slide', crop_size=(512, 512), stride=(341, 341))},
    r'^upernet/.*-640x640$': {'model.test_cfg': dict(mode='slide', crop_size=(640, 640), stride=(426, 426))},
    r'^upernet/.*-whole$': {'model.test_cfg': dict(mode='whole', stride=None)},
}

# Parts of names without weight decay, beside biases and all other parameters of one dimension
WITHOUT_DECAY = {
    r'^(classification/|lomar/lomar-beit)': ('backbone.pos_embed', 'backbone.cls_token'),
    r'^(gfl|upernet)/': ('pos_embed',),
    r'^(mask_rcnn|htc|vitdet)/': ('pos_embed', '.position_bias.'),  # Swin's detectors free their table of biases
}


def cosine(i: np.ndarray, length: int, warmup: int, epochs: int, low: float = 0.0) -> np.ndarray:
    """A line from 0, then half a cosine, stepped by iteration; MMEngine reaches the top one iteration early."""
    start = warmup * length
    angle = np.pi * (i - start) / (epochs * length - start)
    return np.where(i < start, i / (start - 1), low + (1 - low) * (1 + np.cos(angle)) / 2)


def line(i: np.ndarray, warmup: int) -> np.ndarray:
    """From 0.001 to 1 over some iterations."""
    return np.minimum(0.001 + 0.999 * i / (warmup - 1), 1)


def cosine_of_gfl(i: np.ndarray, length: int, warmup: int, epochs: int) -> np.ndarray:
    """A line, times a cosine over all epochs."""
    return line(i, warmup) * (0.505 + 0.495 * np.cos(np.pi * i / (epochs * length)))


def steps(i: np.ndarray, length: int, warmup: int, epochs: int, *milestones: int) -> np.ndarray:
    """A line, times a tenth from each milestone on."""
    return line(i, warmup) * 0.1 ** sum(i // length >= milestone for milestone in milestones)


# Warm-up (of detectors in iterations), epochs, and where the learning rate falls or ends
SCHEDULES: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    r'^(ummae|simmim|mae)/.*-200e': (cosine, (10, 200)),
    r'^lomar/lomar_.*-300e': (cosine, (10, 300)),  # not in the paper: as of 400
    r'^lomar/.*-400e': (cosine, (10, 400)),
    r'^mae/.*-400e': (cosine, (40, 400)),
    r'^lomar/.*-800e': (cosine, (20, 800)),
    r'^(ummae|mae)/.*-800e': (cosine, (40, 800)),
    r'^(lomar|mae)/.*-1600e': (cosine, (40, 1600)),
    r'^classification/um-': (cosine, (5, 100, 1e-6 / 2e-3)),
    r'^classification/lomar-': (cosine, (5, 100, 1e-6 / 4e-3)),
    r'^gfl/': (cosine_of_gfl, (2000, 25)),
    r'^mask_rcnn/.*-1x': (steps, (1000, 12, 8, 11)),
    r'^mask_rcnn/.*-3x': (steps, (1000, 36, 27, 33)),
    r'^htc/': (steps, (1000, 72, 63, 69)),
    r'^vitdet/': (steps, (250, 25, 22, 24)),
}


def rows(table: dict[str, Any], path: Path) -> list[Any]:
    """What a table has for a leaf."""
    return [row for pattern, row in table.items() if re.search(pattern, f'{path.parent.name}/{path.stem}')]


def value(part: Any, place: str) -> Any:
    """What is at a dotted place of a config or a model; None where a dict has no such key."""
    key, _, rest = place.partition('.')
    if key == '*':
        return [value(item, rest) for item in part]
    if isinstance(part, dict):
        part = part.get(key)
    elif not isinstance(part, list):
        part = getattr(part, key)
    elif key.isdigit():
        part = part[int(key)]
    else:
        part = next((step for step in part if step.type.removeprefix('mm_ummae.') == key), None)
    return value(part, rest) if rest else part


def found(part: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The values of a part at the places of the facts, and of its own parts where a fact is a dict."""
    values = {place: value(part, place) for place in facts}
    return {place: found(x, facts[place]) if isinstance(facts[place], dict) else x for place, x in values.items()}


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_recipe(path: Path) -> None:
    cfg = config(path)
    root = dict(cfg.items(), net=full_model(path))
    for split in ('train', 'val', 'test'):
        if cfg.get(f'{split}_dataloader'):
            root[split] = cfg[f'{split}_dataloader'].dataset.pipeline
    root['batch'] = 8 * cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    for facts in rows(FACTS, path):
        assert found(root, facts) == facts
    assert cfg.get('test_dataloader') == cfg.get('val_dataloader')
    check_parameters(path, cfg)
    schedules = rows(SCHEDULES, path)
    # Those of UperNet are facts above, that of BEiT is MMPretrain's
    assert len(schedules) == (not is_demo(path) and not re.match('upernet|lomar-beit', path.stem))
    for curve, numbers in schedules:
        check_learning_rates(cfg, curve, *numbers)


def check_parameters(path: Path, cfg: Config) -> None:
    """Each trained parameter is stepped once, with its weight decay; learning rates fall from block to block."""
    model = full_model(path)
    optimizer = build_optimizer(cfg, model).optimizer
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    free = [word for words in rows(WITHOUT_DECAY, path) for word in words]
    lr, weight_decay = optimizer.defaults['lr'], optimizer.defaults['weight_decay']
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names.pop(parameter)
            exempt = parameter.ndim == 1 or name.endswith('bias') or any(word in name for word in free)
            assert group['weight_decay'] == (0 if exempt else weight_decay), name
    assert not names
    blocks = sum(getattr(model.backbone, 'depths', ())) or len(model.backbone.layers)
    layer_decay = cfg.optim_wrapper.get('paramwise_cfg', {}).get('layer_decay_rate', 1.0)
    expected = np.unique(lr * layer_decay ** np.arange(blocks + 2))
    assert sorted({group['lr'] for group in optimizer.param_groups}) == pytest.approx(expected, rel=1e-9)


def check_learning_rates(cfg: Config, curve: Callable[..., np.ndarray], *numbers: float) -> None:
    """As MMEngine's runner steps the schedulers, the same for two layers of different learning rates."""
    length = {cosine: 4, steps: 125, cosine_of_gfl: 2000}[curve]  # iterations of an epoch
    bases = (1.0, 0.1)
    optimizer = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(1))], lr=base) for base in bases])
    default = dict(optimizer=optimizer, epoch_length=length)
    schedulers = [PARAM_SCHEDULERS.build(dict(part), default_args=default) for part in cfg.param_scheduler]
    rates = []
    optimizer.step()  # PyTorch asks for one before the first step of a schedule
    for iteration in range(1, cfg.train_cfg.max_epochs * length + 1):
        rates.append([group['lr'] for group in optimizer.param_groups])
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % length == 0:
                scheduler.step()
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop' and cfg.train_cfg.max_epochs == numbers[1]
    expected = curve(np.arange(len(rates)), length, *numbers)[:, None] * bases
    np.testing.assert_allclose(rates, expected, rtol=2e-3, atol=1e-8)


# Options of configs/README.md


def test_secondary_masking_is_an_option() -> None:
    path = leaf('ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px')
    assert build_model(config(path, {'model.secondary_ratio': 0.5})).secondary_ratio == 0.5


@pytest.mark.parametrize(
    ('sampler', 'positions', 'asymmetric'),
    [
        (WindowSampler(5, 8, 0.3), 'relative', True),
        (WindowSampler(9, 3, 0.6), 'absolute', True),
        (WindowSampler(11, 2, 0.9), 'absolute', False),
        (WindowSampler(14, 1, 0.8, 'published'), 'relative', False),
    ],
)
def test_ablations_of_lomar_are_options(sampler: WindowSampler, positions: str, asymmetric: bool) -> None:
    """Windows, mask ratios, positions and architectures of the paper, from one config."""
    options = {f'model.{key}': setting for key, setting in sampler._asdict().items()}
    options |= {'model.backbone.positions': positions, 'model.backbone.learn_positions': False}
    if asymmetric:
        neck = dict(type='mm_ummae.LoMaRDecoder', in_channels=768, positions=positions)
        options |= {'model.backbone.mask_token': False, 'model.neck': neck, 'model.head.in_channels': 512}
    model = build_model(config(LOMAR, options))
    tables = [name for name, _ in model.named_parameters() if name.endswith('position_table')]
    assert len(tables) == (12 + 8 * asymmetric if positions == 'relative' else 0)
    assert (model.backbone.pos_embed is None) == (positions == 'relative') and model.sampler == sampler
    with torch.device('meta'):
        assert model.loss(torch.empty(2, 3, 224, 224))['loss'].shape == ()


def test_layer_decay_of_detectors_is_an_option() -> None:
    path = leaf('mask-rcnn_um-pvt-small_fpn_8xb2-amp-1x_coco')
    check_parameters(path, config(path, {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.9}))


@pytest.mark.parametrize(('epochs', 'milestones'), [(12, [8, 11]), (36, [27, 33])])
def test_shorter_schedules_of_htcpp_are_options(epochs: int, milestones: list[int]) -> None:
    options = {'train_cfg.max_epochs': epochs, 'param_scheduler.1.end': epochs}
    cfg = config(HTCPP, options | {'param_scheduler.1.milestones': milestones})
    check_learning_rates(cfg, steps, 1000, epochs, *milestones)


def test_a_smaller_backbone_of_htcpp_is_an_option() -> None:
    """The open box heads, of which there is a leaf for UMSwin-L, on UMSwin-T."""
    options = {f'backbone.{key}': x for key, x in dict(arch='tiny', drop_path_rate=0.2, with_cp=False).items()}
    layer = dict(in_channels=768, num_heads=24, with_cp=False)
    options |= {'neck.0.in_channels': [96, 192, 384, 768]}
    options |= {f'neck.0.extra_layer.{key}': x for key, x in layer.items()}
    large = leaf('htcpp-giou-4conv1fc_um-swin-large_fpn_8xb2-amp-6x_coco')
    small = build_model(config(large, {f'model.{key}': x for key, x in options.items()}))
    for part in ('backbone', 'neck'):
        ours, tiny = (getattr(net, part).state_dict() for net in (small, full_model(HTCPP)))
        assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in tiny.items()}
