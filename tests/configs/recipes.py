"""The published recipes, number by number: these may not change, because the configs claim to reproduce them.

UM-MAE and its detectors and segmentors: arXiv 2205.10063; LoMaR: arXiv 2206.00790; HTC++: arXiv 2103.14030, appendix
A2.2. Mask R-CNN follows MMDetection's 1x and 3x schedules with the optimizer of the published detectors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SEGMENTATION_PALETTE
from mm_ummae.masking import WindowSampler

PRETRAINING = r'^(ummae|simmim|mae|lomar)/(?!lomar-beit)'
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SYNC_BN = dict(type='SyncBN', requires_grad=True)
LN2D = dict(type='mmpretrain.LN2d', eps=1e-6)
NMS = dict(type='nms', iou_threshold=0.5)
SOFT_NMS = dict(type='soft_nms', iou_threshold=0.5)
META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')  # what tests need of an image
KEYS_HOOK = dict(type='mm_ummae.CheckpointKeysHook')  # a checkpoint that does not fit would load without it
SHOW_HOOK = dict(type='mm_ummae.ReconstructionHook', interval=20)
LEARNING_HOOK = dict(type='mm_ummae.LearningHook', interval=20)


def pretrained(run: str, epoch: int) -> dict:
    return dict(type='Pretrained', checkpoint=f'work_dirs/{run}_demo-128px/epoch_{epoch}.pth', prefix='backbone')


def warmup(iterations: int) -> dict:
    return dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=iterations)


def adamw(lr: float, weight_decay: float, second_beta: float = 0.999) -> dict:
    return dict(type='AdamW', lr=lr, betas=(0.9, second_beta), weight_decay=weight_decay)


# By patterns of `folder/leaf`: what the leaves have at a dotted place. `batch` is the total batch, `net` the model at
# full size, `outputs` are images and channels of its losses or heads; `train` and `val` are pipelines, `order` is that
# of the steps between the first and the last of `train`; `*` is each item of a list.
FACTS: dict[str, dict[str, Any]] = {
    r'': {'train_dataloader.sampler.shuffle': True, 'runner_type': 'mm_ummae.ResumableRunner'},
    r'^(?!.*stock).*swin': {'model.backbone.window_size': 16},
    # The windows that follow are in test_windows.py
    **{
        rf'^(?!.*lomar-beit|demo/(mask|htcpp|upernet)).*-{side}px$': {'model.backbone.img_size': side}
        for side in (128, 224, 256, 384, 448)
    },
    r'^gfl/.*swin': {'model.backbone.img_size': (1024, 1024)},
    r'^(mask_rcnn|htc)/(?!.*stock).*swin': {'model.backbone.img_size': 1024},
    **{rf'^upernet/.*um-swin.*-{side}x{side}': {'model.backbone.img_size': (side, side)} for side in (512, 640)},
    r'^(gfl|mask_rcnn|upernet)/.*pvt': {'model.backbone.img_size': 256},
    r'-\d+(k|it)_': {
        'default_hooks': dict(checkpoint=dict(by_epoch=False), logger=dict(log_metric_by_epoch=False)),
        'log_processor.by_epoch': False,
    },
    # Pre-training: no augmentation but crops and mirror images, no average of the weights
    PRETRAINING: {
        'batch': 4096,
        'optim_wrapper': dict(optimizer=adamw(1.5e-4 * 4096 / 256, 0.05, 0.95), loss_scale='dynamic', clip_grad=None),
        'order': 'TorchRandomResizedCrop',
        'train.TorchRandomResizedCrop': dict(crop_ratio_range=(0.2, 1.0), interpolation='bicubic', flip_prob=0.5),
        'param_scheduler.*.convert_to_iter_based': [True, True],  # stepped every iteration
        'train_dataloader.drop_last': True,  # the last batch of an epoch would be smaller
        'train_dataloader.dataset': dict(data_root='data/imagenet/', data_prefix='train', repeats=1),
        'model': dict(data_preprocessor=dict(mean=MEAN, std=STD), backbone=dict(init_cfg=None)),
        'net.data_preprocessor._channel_conversion': True,  # images are read as BGR
        'randomness.diff_rank_seed': True,  # all ranks would draw the same masks
    },
    **{rf'{PRETRAINING}.*-{side}px': {'train.TorchRandomResizedCrop.scale': side} for side in (224, 256, 384, 448)},
    # MMPretrain's algorithms show no reconstructions
    r'^(ummae|simmim|lomar/lomar_|mae/.*-200e)': {'custom_hooks': [KEYS_HOOK, SHOW_HOOK, LEARNING_HOOK]},
    r'^(mae/(?!.*-200e)|lomar/lomar-beit)': {'custom_hooks': [KEYS_HOOK, LEARNING_HOOK]},
    r'^(classification|gfl|mask_rcnn|vitdet|upernet)': {'custom_hooks': [KEYS_HOOK]},
    r'^(?!demo|small|upernet)': {'default_hooks.checkpoint.max_keep_ckpts': 3},
    r'^(ummae|simmim|mae|lomar|small|demo/.*coslr)': {'outputs': [()]},
    r'^ummae/': {'net': dict(sampling='uniform', secondary_ratio=0.25, head=dict(norm_pix=True))},
    r'^(ummae/.*(tiny|small|vit)|mae/.*-200e)': {'model.neck': dict(embed_dims=512, depth=2, num_heads=16)},
    r'^ummae/.*swin-(base|large)': {'model.neck': dict(embed_dims=512, depth=8, num_heads=16)},
    r'^ummae/.*(swin|pvt)': {'net.neck.published_positions': False},
    **{rf'^(ummae/.*|mae/.*-200e.*)-{side}px': {'model.neck.img_size': side} for side in (224, 256)},
    r'^simmim/': {'net': dict(sampling='random', head=dict(norm_pix=False), backbone=dict(secondary_token=None))},
    r'^simmim/.*pvt': {'net.backbone.stages.*.sr_ratio': [8, 4, 2, 1]},
    # MAE with the decoder of UM-MAE, and MMPretrain's
    r'^mae/.*-200e': {'net': dict(sampling='random', secondary_ratio=0, head=dict(norm_pix=True))},
    r'^mae/(?!.*-200e)': {
        'net': dict(backbone=dict(mask_ratio=0.75), head=dict(norm_pix=True)),
        'model.neck': dict(decoder_depth=8, decoder_embed_dim=512),
    },
    r'^lomar/lomar_': {'model.neck': None, 'net': dict(backbone=dict(positions='relative'), head=dict(norm_pix=True))},
    r'^lomar/.*-224px': {'net.sampler': WindowSampler(7, 4, 0.8, 'all')},
    r'^lomar/.*-384px': {'net.sampler': WindowSampler(7, 6, 0.8, 'all')},
    r'^lomar/.*-448px': {'net.sampler': WindowSampler(7, 9, 0.8, 'all')},
    # MMPretrain's recipe of BEiT; the tokenizer's image has half the side
    r'^lomar/lomar-beit': {
        'batch': 2048,
        'optim_wrapper.optimizer': adamw(1.5e-3, 0.05),
        'train.RandomResizedCropAndInterpolationWithTwoPic': dict(size=224, second_size=112),
        'model.target_generator.init_cfg': dict(type='Pretrained', checkpoint=''),
        'find_unused_parameters': False,  # the tokenizer is frozen
    },
    # A forgotten checkpoint stops the run
    r'^(classification|gfl|mask_rcnn|htc|vitdet|upernet)/': {
        'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='', prefix='backbone'),
    },
    r'^(classification|gfl|mask_rcnn|htc|vitdet|upernet)/(?!.*stock)': {'model.backbone.final_norm': False},
    r'^(classification|gfl|mask_rcnn|upernet|vitdet)/(?!.*stock).*(tiny|small|vit)': {
        'model.backbone.drop_path_rate': 0.1,
    },
    r'^((classification|mask_rcnn|upernet)/(?!.*stock).*large|htc/.*tiny)': {'model.backbone.drop_path_rate': 0.2},
    # Networks of the hosts
    r'^(classification|mask_rcnn|upernet)/.*stock-(?!.*large)': {'model.backbone.network.drop_path_rate': 0.1},
    r'^(classification|mask_rcnn|upernet)/.*stock-.*large': {'model.backbone.network.drop_path_rate': 0.2},
    r'^ummae/.*stock-(?!swin-v2)': {'net.backbone.true_positions': False},
    r'^ummae/.*stock-swin-v2': {'net.backbone.true_positions': True},
    r'^ummae/.*stock-(?!resnet|convnext)': {'model.backbone.network.drop_path_rate': 0.0},
    r'^ummae/.*stock-swin-(tiny|small|base|large)': {'model.backbone.network.out_indices': (3,)},
    r'^(mask_rcnn|upernet)/.*stock-': {'model.backbone.network.out_indices': (0, 1, 2, 3)},
    r'^mask_rcnn/.*stock-.*(tiny|small)': {'model.neck': dict(in_channels=[96, 192, 384, 768], num_outs=5)},
    r'^upernet/.*stock-': {'model.neck': None, 'model.decode_head': dict(type='UPerHead', channels=512)},
    r'^classification/.*stock-': {'model.neck': dict(type='GlobalAveragePooling')},
    r'^classification/stock-': {'optim_wrapper.optimizer': adamw(5e-4 * 1024 / 256, 0.05)},
    r'^classification/stock-swin-(tiny|small|base)': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.85},
    r'^classification/stock-swin-large': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.7},
    r'^classification/stock-swin-v2': {'optim_wrapper.paramwise_cfg.layer_decay_rate': None},
    # Fine-tuning on ImageNet
    r'^classification/': {
        'batch': 1024,
        'param_scheduler.*.convert_to_iter_based': [True, True],  # stepped every iteration
        'order': 'RandomResizedCrop RandomFlip RandAugment RandomErasing',
        'train.RandAugment': dict(policies='timm_increasing', num_policies=2, magnitude_level=9, magnitude_std=0.5),
        'train.RandomErasing': dict(erase_prob=0.25, min_area_ratio=0.02, max_area_ratio=1 / 3, mode='rand'),
        # Normal noise once the image is normalised; in memory it is BGR
        'train.RandomErasing.fill_color': MEAN[::-1],
        'train.RandomErasing.fill_std': STD[::-1],
        'train_dataloader.drop_last': True,
        'val_dataloader.drop_last': None,
        'optim_wrapper.loss_scale': 'dynamic',
        'randomness.diff_rank_seed': True,  # all ranks would draw the same augmentation
        'model.head.loss': dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        'model.head.init_cfg': dict(type='TruncNormal', layer='Linear', std=2e-5),
        'model.train_cfg.augments': [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
        'net.data_preprocessor': dict(to_rgb=True, batch_augments=dict(probs=None)),  # equal chances
        'outputs': [(2, 1000)],
    },
    r'^classification/(?!stock)': {'net.neck.norm.eps': 1e-6},
    **{
        rf'^classification/.*-{side}px': {
            'train.RandomResizedCrop': dict(scale=side, backend='pillow', interpolation='bicubic'),
            'val.ResizeEdge': dict(scale=max(side, 256), edge='short', backend='pillow', interpolation='bicubic'),
            'val.CenterCrop.crop_size': side,
        }
        for side in (224, 256, 384)
    },
    r'^classification/um-': {'optim_wrapper.optimizer': adamw(5e-4 * 1024 / 256, 0.05)},
    r'^classification/um-vit': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.8},
    r'^classification/um-(pvt|swin-tiny)': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.85},
    r'^classification/um-swin-large': {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.7},
    r'^classification/lomar-vit': {
        'optim_wrapper': dict(optimizer=adamw(1e-3 * 1024 / 256, 0.05), paramwise_cfg=dict(layer_decay_rate=0.65)),
    },
    # Detection and segmentation
    r'^(gfl|mask_rcnn|htc|upernet)/': {
        'batch': 16,
        'optim_wrapper': dict(optimizer=adamw(1e-4, 0.05), paramwise_cfg=dict(layer_decay_rate=1.0)),
    },
    r'^(gfl|mask_rcnn|htc|upernet)/(?!.*stock)': {'model.backbone.out_indices': (0, 1, 2, 3)},
    r'^(gfl|mask_rcnn|htc)/(?!.*stock)': {
        'model.neck.0': dict(out_channels=768, with_norm=None),  # True by default
        'model.neck.1': dict(in_channels=[768, 768, 768, 768], num_outs=5),
    },
    r'^(gfl|mask_rcnn|htc)/': {
        'val.Resize': dict(scale=(1333, 800), keep_ratio=True),
        'tta_pipeline.1.transforms.0.*.scale': [(1333, 800), (1666, 1000), (2000, 1200), (2333, 1400)],
        'tta_pipeline.1.transforms.0.*.keep_ratio': 4 * [True],
    },
    r'^(gfl|mask_rcnn|htc|vitdet)/': {
        'train.LoadAnnotations.with_bbox': True,
        'train.RandomFlip.prob': 0.5,
        'tta_pipeline.1.transforms.1.*.prob': [0.0, 1.0],  # mirrored as well
        'tta_pipeline.1.transforms.2.0.meta_keys': (*META, 'flip', 'flip_direction'),
    },
    r'^(mask_rcnn|htc|vitdet)/': {'train.LoadAnnotations.with_mask': True},
    r'-lsj-': {
        'order': 'LoadAnnotations RandomResize RandomCrop FilterAnnotations RandomFlip',
        'train.RandomResize': dict(scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
        'train.RandomCrop': dict(crop_size=(1024, 1024), crop_type='absolute_range', recompute_bbox=True),
        'train.RandomCrop.allow_negative_crop': True,
        'train.FilterAnnotations.min_gt_bbox_wh': (1e-2, 1e-2),
        'train_dataloader.batch_sampler': None,  # crops need no grouping by aspect ratio
        'train_dataloader.dataset': dict(type='CocoDataset', ann_file='annotations/instances_train2017.json'),
    },
    r'^gfl/': {
        'model.data_preprocessor.batch_augments': [dict(type='BatchFixedSizePad', size=(1024, 1024))],
        'model.neck.1': dict(start_level=1, add_extra_convs='on_output', norm_cfg=SYNC_BN),
        'param_scheduler.0': warmup(2000),
        'find_unused_parameters': True,  # stage 1 is projected as published, though the FPN begins at stage 2
        'tta_model': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(iou_threshold=0.6))),  # boxes without masks
        'outputs': 5 * [(2, 80)],
    },
    r'^(mask_rcnn|htc)/': {'param_scheduler.0': warmup(1000)},
    r'^(mask_rcnn|htc)/(?!.*stock)': {'model.neck.1.start_level': None},
    r'^(mask_rcnn|vitdet)/': {
        'tta_model': dict(type='mm_ummae.InstanceTTAModel', tta_cfg=dict(nms=NMS, max_per_img=100)),
    },
    r'^(mask_rcnn|vitdet|htc/.*without-semantic)': {'outputs': 5 * [(2, 3)]},  # three anchors at each place
    r'^mask_rcnn/.*amp-1x': {
        'order': 'LoadAnnotations Resize RandomFlip',
        'train.Resize': dict(scale=(1333, 800), keep_ratio=True),
    },
    r'^mask_rcnn/.*amp-ms-3x': {
        'order': 'LoadAnnotations RandomChoiceResize RandomFlip',
        'train.RandomChoiceResize': dict(scales=[(1333, 480 + 32 * i) for i in range(11)], keep_ratio=True),
    },
    r'^vitdet/': {  # all images on one square
        'batch': 64,
        'optim_wrapper': dict(optimizer=adamw(1e-4, 0.1), paramwise_cfg=dict(layer_decay_rate=0.7)),
        'model.data_preprocessor.pad_size_divisor': 1024,
        'model.backbone': dict(img_size=1024, window_size=14, global_layers=(2, 5, 8, 11), out_indices=None),
        'param_scheduler.0': warmup(250),
        'model.roi_head': dict(bbox_head=dict(norm_cfg=LN2D), mask_head=dict(norm_cfg=LN2D)),
        'val.Resize': dict(scale=(1024, 1024), keep_ratio=True),
        'val.LoadAnnotations': dict(with_bbox=True, with_mask=True),
        'val.PackDetInputs.meta_keys': META,
        'tta_pipeline.1.transforms.0': [dict(type='Resize', scale=(1024, 1024), keep_ratio=True)],
    },
    r'^vitdet/.*_lomar': {'model.backbone.positions': 'relative'},
    r'^vitdet/.*_mae': {'model.backbone.positions': 'both'},
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
    r'^htc/': {
        'train.RandomResize': dict(scale=[(1600, 400), (1600, 1400)], keep_ratio=True),
        'custom_hooks': [dict(KEYS_HOOK, new_parts=('neck.0.extra_layer.',))],
    },
    # 32 channels a head of the extra layer; memory is saved where it is short
    r'^htc/.*tiny': {'model.neck.0.extra_layer': dict(in_channels=768, num_heads=24, with_cp=None)},
    r'^htc/.*base': {'model.neck.0.extra_layer': dict(in_channels=1024, num_heads=32, with_cp=None)},
    r'^htc/.*large': {'model.neck.0.extra_layer': dict(in_channels=1536, num_heads=48, with_cp=True)},
    r'^htc/.*(base|large)': {'model.backbone': dict(drop_path_rate=0.3, with_cp=True)},
    r'(tiny|small)': {'model.backbone.with_cp': None},
    r'^htc/htcpp(?!-without)': {
        'order': 'InstaBoost LoadAnnotations MoveStuff RandomResize RandomFlip',
        'train.LoadAnnotations.with_seg': True,
        'train_dataloader.dataset.type': 'mm_ummae.CocoStuffDataset',
        'train_dataloader.dataset.data_prefix': dict(img='train2017/', seg='stuffthingmaps/train2017/'),
        'net.roi_head.semantic_head.fusion_level': 1,
        'net.data_preprocessor': dict(pad_seg=True, seg_pad_value=255),
        'outputs': [*(5 * [(2, 3)]), (2, 183)],
    },
    r'^htc/htcpp-without': {
        'order': 'InstaBoost LoadAnnotations RandomResize RandomFlip',
        'train.LoadAnnotations.with_seg': None,
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
    r'^upernet/(?!.*stock)': {
        'model.neck': dict(with_norm=False, out_channels=768),
        'model.decode_head': dict(type='UPerHead', channels=768, in_channels=[768, 768, 768, 768]),
    },
    r'^upernet/': {
        'order': 'LoadAnnotations RandomResize RandomCrop RandomFlip PhotoMetricDistortion',
        'train.LoadAnnotations.reduce_zero_label': True,
        'val_dataloader.dataset.pipeline.2.type': 'LoadAnnotations',  # after Resize: the ground truth keeps its size
        'model.auxiliary_head': dict(type='FCNHead', in_index=2),
        'tta_pipeline.1.transforms.0.*.keep_ratio': 6 * [True],
        'tta_pipeline.1.transforms.1.*.prob': [0.0, 1.0],  # mirrored as well
        'outputs': 2 * [(2, 150)],
        'tta_model.type': 'SegTTAModel',
        'default_hooks.checkpoint.max_keep_ckpts': 2,
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
    # The demo: classes of the generated images, weights of its own pre-training
    r'^demo/(ummae|simmim)': {'default_hooks.checkpoint.interval': 4},  # of 20 epochs
    r'^demo/lomar_': {'default_hooks.checkpoint.interval': 5},  # of 10
    r'^demo/(um-|mask|upernet)': {'model.backbone.init_cfg': pretrained('ummae_swin-test_1xb16-coslr-20e', 20)},
    r'^demo/lomar-vit': {'model.backbone.init_cfg': pretrained('lomar_vit-test_1xb32-coslr-10e', 10)},
    r'^demo/(?!.*coslr)': {'default_hooks.checkpoint.save_last': True},
    r'^small': {'default_hooks.checkpoint': dict(interval=20, max_keep_ckpts=-1), 'randomness.seed': 10},
    r'^demo/.*classification': {'outputs': [(2, 10)]},
    r'^demo/(mask|htcpp)': {'train_dataloader.dataset.metainfo.classes': DIGIT_CLASSES},
    r'^demo/mask': {'outputs': 2 * [(2, 3)], 'model.roi_head': dict(bbox_head=dict(num_classes=10))},
    r'^demo/htcpp': {
        'model.backbone.init_cfg.checkpoint': None,
        'outputs': [*(3 * [(2, 3)]), (2, 20)],
        'model.neck.0.extra_layer': dict(in_channels=256, num_heads=16),
        'model.roi_head.bbox_head.*.num_classes': [10, 10, 10],
    },
    r'^demo/upernet': {
        'outputs': 2 * [(2, 10)],
        'train_dataloader.dataset.metainfo.classes': PHOTOGRAPH_CLASSES,
        'train_dataloader.dataset.metainfo.palette': [list(colour) for colour in SEGMENTATION_PALETTE],
    },
}

# Parts of names without weight decay, beside biases and all other parameters of one dimension
WITHOUT_DECAY = {
    r'stock-swin': ('relative_position_bias_table',),
    r'^(classification/|lomar/lomar-beit)': ('backbone.pos_embed', 'backbone.cls_token'),
    r'^(gfl|upernet)/': ('pos_embed',),
    r'^(mask_rcnn|htc|vitdet)/': ('pos_embed', '.position_bias.'),  # Swin's detectors free their table of biases
}


def cosine(warmup: int, epochs: int, low: float = 0.0) -> dict[float, float]:
    """By epoch: a line from 0, then half a cosine."""
    falling = {x: low + (1 - low) * (1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 0.75, 1)}
    return {0: 0.0, warmup / 2: 0.5} | {warmup + x * (epochs - warmup): factor for x, factor in falling.items()}


def steps(epochs: int, first: int, second: int, warmup: int = 4) -> dict[float, float]:
    """By epoch of 250 iterations: a line from 0.001, then a tenth and a hundredth from two epochs on."""
    line = {0: 0.001, warmup / 2: 0.5, warmup: 1.0}
    return line | {first - 0.01: 1.0, first: 0.1, second - 0.01: 0.1, second: 0.01, epochs: 0.01}


# Factors of the learning rate at some epochs; that of UperNet is a fact above, that of BEiT is MMPretrain's
SCHEDULES: dict[str, dict[float, float]] = {
    r'^(ummae|simmim|mae)/.*-200e': cosine(10, 200),
    r'^lomar/lomar_.*-300e': cosine(10, 300),  # not in the paper: as of 400
    r'^lomar/.*-400e': cosine(10, 400),
    r'^mae/.*-400e': cosine(40, 400),
    r'^lomar/.*-800e': cosine(20, 800),
    r'^(ummae|mae)/.*-800e': cosine(40, 800),
    r'^(lomar|mae)/.*-1600e': cosine(40, 1600),
    r'^classification/(um|stock)-': cosine(5, 100, 1e-6 / 2e-3),
    r'^classification/lomar-': cosine(5, 100, 1e-6 / 4e-3),
    # A line from 0.001 over 2000 iterations, times a cosine to 0.01 over all epochs
    r'^gfl/': {0: 0.001} | {t: min(t / 8, 1) * (0.505 + 0.495 * math.cos(math.pi * t / 25)) for t in (4, 8, 12.5, 25)},
    r'^mask_rcnn/.*-1x': steps(12, 8, 11),
    r'^mask_rcnn/.*-3x': steps(36, 27, 33),
    r'^htc/': steps(72, 63, 69),
    r'^vitdet/': steps(25, 22, 24, warmup=1),
}


def rows(table: dict[str, Any], path: Path) -> list[Any]:
    """What a table has for a leaf."""
    return [row for pattern, row in table.items() if re.search(pattern, f'{path.parent.name}/{path.stem}')]
