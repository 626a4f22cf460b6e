# GFL on UMSwin-T as published with UM-MAE. Each stage goes through LayerNorm and a linear layer before the FPN.
# MMDetection defines GFL's head only in a whole recipe, which cannot be combined with other data and schedules, so its
# head, assigner and test settings are written out here. The published detectors start from weights fine-tuned on
# ImageNet-1K.
_base_ = ['../backbones/um-swin_dense.py']

projection = dict(type='mm_ummae.StageProjection', in_channels=[96, 192, 384, 768], out_channels=768)
fpn = dict(
    type='FPN',
    in_channels=[768, 768, 768, 768],
    out_channels=256,
    start_level=1,
    add_extra_convs='on_output',
    num_outs=5,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
)
model = dict(
    type='GFL',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=_base_.um_swin,
    neck=[projection, fpn],
    bbox_head=dict(
        type='GFLHead',
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        reg_max=16,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)
