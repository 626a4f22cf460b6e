# Mask R-CNN as in ViTDet (arXiv 2203.16527) on COCO: 25 epochs, batch 64, large-scale jitter at 1024 px. A leaf says
# which positions its start has.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './schedules/coco_adamw_1x.py',
    './coco_runtime.py',
]

image_size = (1024, 1024)  # pixels
norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
model = dict(
    # In training and in tests, on the right and below: positions and windows are always those of 64x64 patches
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='mm_ummae.LoMaRViT',
        arch='base',
        img_size=1024,
        with_cls_token=False,
        window_size=14,  # patches
        global_layers=(2, 5, 8, 11),
        final_norm=False,
        drop_path_rate=0.1,
        # Give the pre-trained weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=dict(_delete_=True, type='mm_ummae.SimpleFeaturePyramid', in_channels=768),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# All images have one size: no need to group them by aspect ratio
train_dataloader = dict(batch_size=8, num_workers=8, batch_sampler=None, dataset=dict(pipeline=train_pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
# Mirrored only: a larger image would leave the square
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=image_size, keep_ratio=True)]

max_epochs = 25
optim_wrapper = dict(optimizer=dict(weight_decay=0.1), paramwise_cfg=dict(layer_decay_rate=0.7))
# Steps at 8/9 and 26/27 of the training, as in ViTDet, in whole epochs
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 250  # iterations
param_scheduler[1].update(milestones=[22, 24], end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=64)
