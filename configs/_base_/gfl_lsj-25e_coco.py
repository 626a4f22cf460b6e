# The published GFL recipe on COCO: 25 epochs, batch 16, large-scale jitter. A leaf sets the backbone and its widths.
# Head, losses, assigner and test are MMDetection's; images are tested at 1333x800, on which the paper is silent.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', './coco_tta.py']

crop_size = (1024, 1024)  # pixels
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # Images jittered to less than a crop are padded to one
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=crop_size)]),
    backbone=dict(
        _delete_=True,
        img_size=256,
        out_indices=(0, 1, 2, 3),
        final_norm=False,
        drop_path_rate=0.1,
        # Give the fine-tuned ImageNet weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=[
        dict(type='mm_ummae.StageProjection', in_channels=[96, 192, 384, 768], out_channels=768),
        dict(
            type='FPN',
            in_channels=[768, 768, 768, 768],
            out_channels=256,
            start_level=1,
            add_extra_convs='on_output',
            num_outs=5,
            norm_cfg=norm_cfg,
        ),
    ],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=crop_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# All crops have one size: no need to group images by aspect ratio
train_dataloader = dict(batch_size=2, batch_sampler=None, dataset=dict(pipeline=train_pipeline))

max_epochs = 25
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # No decay on biases, on norms and any other one-dimensional parameter, and on positions. A layer_decay_rate below 1
    # lowers the rate of each block of the backbone by that factor against the next one's.
    constructor='mm_ummae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.pos_embed': dict(decay_mult=0.0)},
    ),
)
# A cosine over the whole training, times a linear warm-up over its first 2000 iterations
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3))  # epochs
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
# The published network projects stage 1 too, though the FPN starts at stage 2: those parameters get no gradient, which
# several GPUs must be told.
find_unused_parameters = True
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(iou_threshold=0.6)))
