# Mask R-CNN of the demo, on generated COCO data.
#   python tools/train.py configs/demo/mask-rcnn_um-swin-test_1xb8-200it_demo-128px.py
_base_ = [
    '../_base_/models/mask-rcnn_um-swin.py',
    '../_base_/datasets/demo_coco.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    'mmdet::_base_/default_runtime.py',
]

# Objects span 40 to 100 of 128 px and the time is short: no stride-4 level, and anchors of 32 to 128 px
strides = [8, 16, 32]
norm_cfg = dict(type='BN', requires_grad=True)  # in FPN and heads, for a schedule this short
model = dict(
    backbone=dict(
        arch='test',
        img_size=128,
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.pretrained, prefix='backbone'),
    ),
    neck=[
        dict(type='mm_ummae.StageProjection', in_channels=[64, 128, 256], out_channels=64),
        dict(type='FPN', in_channels=[64, 64, 64], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    ],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, featmap_strides=strides),
        bbox_head=dict(
            _delete_=True,
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            num_classes=10,
            norm_cfg=norm_cfg,
            reg_class_agnostic=True,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, featmap_strides=strides),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
            class_agnostic=True,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
max_iters = 200
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_iters - _base_.warmup_iters, end=max_iters)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)

# Images of predictions beside the truth, in vis_data/vis_image; few scores pass 0.3 after so short a training
log_processor = dict(by_epoch=False)
default_hooks = dict(**_base_.finetune_hooks, visualization=dict(draw=True, interval=2, score_thr=0.1))
