# HTC++ of the demo: every part at a small size, with levels from stride 8 on, anchors of 32 to 128 px, and the norms of
# demo_mask-rcnn.py.
_base_ = ['./htcpp_um-swin.py']

strides = [8, 16, 32]
norm_cfg = dict(type='BN', requires_grad=True)
extra_layer = dict(type='mm_ummae.GlobalAttention', in_channels=256, num_heads=16)
projection = dict(type='mm_ummae.StageProjection', in_channels=[64, 128, 256], out_channels=64, extra_layer=extra_layer)
fpn = dict(type='FPN', in_channels=[64, 64, 64], out_channels=64, num_outs=3, norm_cfg=norm_cfg)
narrow = dict(in_channels=64, conv_out_channels=64, norm_cfg=norm_cfg)
box_heads = [
    dict(
        type='ConvFCBBoxHead',
        num_shared_convs=1,
        num_shared_fcs=1,
        fc_out_channels=256,
        reg_class_agnostic=True,
        bbox_coder=head.bbox_coder,
        loss_cls=head.loss_cls,
        loss_bbox=head.loss_bbox,
        **narrow,
    )
    for head in _base_.model.roi_head.bbox_head
]
mask_heads = [dict(head, num_convs=2, class_agnostic=True, **narrow) for head in _base_.model.roi_head.mask_head]
model = dict(
    # Trained from random weights
    backbone=dict(arch='test', out_indices=(1, 2, 3), drop_path_rate=0.0, init_cfg=dict(_delete_=True)),
    neck=[projection, fpn],
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, featmap_strides=strides),
        bbox_head=box_heads,
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, featmap_strides=strides),
        mask_head=mask_heads,
        semantic_roi_extractor=dict(out_channels=64),
        semantic_head=dict(num_ins=3, fusion_level=0, num_convs=2, **narrow),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=[dict(stage, sampler=dict(stage.sampler, num=32)) for stage in _base_.model.train_cfg.rcnn],
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
