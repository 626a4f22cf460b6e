# HTC++ for a laptop: all of its parts, small, on the generated COCO data with stuff maps, from scratch.
#   python tools/make_demo_data.py
#   python tools/train.py configs/htc/htcpp_um-swin-test_fpn_1xb8-200it_demo-128px.py
# Other starting weights: --cfg-options model.backbone.init_cfg.type=Pretrained \
#   model.backbone.init_cfg.checkpoint=PRETRAINED.pth model.backbone.init_cfg.prefix=backbone
_base_ = [
    '../_base_/models/htcpp_um-swin.py',
    '../_base_/datasets/demo_coco.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    '../_base_/htcpp_runtime.py',
]

# As in the demo's Mask R-CNN: no stride-4 level, anchors of 32 to 128 px, batch norm in FPN and heads, few RoIs
strides = [8, 16, 32]
norm_cfg = dict(type='BN', requires_grad=True)
box_heads = [
    dict(
        type='ConvFCBBoxHead',
        num_shared_convs=1,
        num_shared_fcs=1,
        in_channels=64,
        conv_out_channels=64,
        fc_out_channels=256,
        num_classes=10,
        norm_cfg=norm_cfg,
        reg_class_agnostic=True,
        bbox_coder=head.bbox_coder,
        loss_cls=head.loss_cls,
        loss_bbox=head.loss_bbox,
    )
    for head in _base_.model.roi_head.bbox_head
]
mask_heads = [
    dict(
        head, num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10, class_agnostic=True, norm_cfg=norm_cfg
    )
    for head in _base_.model.roi_head.mask_head
]
model = dict(
    backbone=dict(arch='test', img_size=128, out_indices=(1, 2, 3), drop_path_rate=0.0, init_cfg=dict(_delete_=True)),
    neck=[
        dict(
            type='mm_ummae.StageProjection',
            in_channels=[64, 128, 256],
            out_channels=64,
            extra_layer=dict(type='mm_ummae.GlobalAttention', in_channels=256, num_heads=16),
        ),
        dict(type='FPN', in_channels=[64, 64, 64], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    ],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, featmap_strides=strides),
        bbox_head=box_heads,
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, featmap_strides=strides),
        mask_head=mask_heads,
        semantic_roi_extractor=dict(out_channels=64),
        semantic_head=dict(
            num_ins=3,
            fusion_level=0,
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=20,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=[dict(stage, sampler=dict(stage.sampler, num=32)) for stage in _base_.model.train_cfg.rcnn],
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

# The pipeline of HTC++ with sides that suit images of 128 px; no mirror images of digits
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mm_ummae.MoveStuff'),
    dict(type='RandomResize', scale=[(128, 96), (128, 128)], keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(
        type='mm_ummae.CocoStuffDataset',
        data_prefix=dict(seg='stuffthingmaps/train2017/'),
        pipeline=train_pipeline,
    )
)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[:2] = [
    [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (112, 128, 144)],
    [dict(type='RandomFlip', prob=0.0)],
]

max_iters = 200
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_iters - _base_.warmup_iters, end=max_iters)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
log_processor = dict(by_epoch=False)
default_hooks = dict(**_base_.finetune_hooks, visualization=dict(draw=True, interval=2, score_thr=0.1))
