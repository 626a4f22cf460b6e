# Mask R-CNN of the demo. Objects span 40 to 100 of 128 px and the training is short: levels of stride 16 and 32 only,
# with anchors of 64 and 128 px, batch norm in FPN and heads, few RoIs.
# A leaf sets the nominal size of the backbone to that of its images, as the published one is that of the crops. At
# 128 px only stage 1 has several windows of 16 tokens, and shifts them; from stage 2 on one window is the whole map. A
# larger nominal size would cut that window into four by a shift, and pad the maps of stages 3 and 4 to 16x16 tokens.
_base_ = ['./mask-rcnn_um-swin.py']

strides = [16, 32]
norm_cfg = dict(type='BN', requires_grad=True)
projection = dict(type='mm_ummae.StageProjection', in_channels=[128, 256], out_channels=64)
fpn = dict(type='FPN', in_channels=[64, 64], out_channels=64, num_outs=2, norm_cfg=norm_cfg)
model = dict(
    backbone=dict(arch='test', out_indices=(2, 3), drop_path_rate=0.0),
    neck=[projection, fpn],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=56, featmap_strides=strides),
        bbox_head=dict(
            _delete_=True,
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            reg_class_agnostic=True,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        mask_roi_extractor=dict(out_channels=64, finest_scale=56, featmap_strides=strides),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, class_agnostic=True, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
