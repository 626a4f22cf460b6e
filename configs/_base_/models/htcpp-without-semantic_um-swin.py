# HTC++ on UMSwin-T without the semantic branch: HTC, global self-attention on the last stage, soft-NMS. InstaBoost and
# large images come with the data (datasets/coco_htcpp-without-semantic.py).
_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', '../backbones/um-swin_dense.py']

extra_layer = dict(type='mm_ummae.GlobalAttention', in_channels=768, num_heads=24)
projection = dict(
    type='mm_ummae.StageProjection', in_channels=[96, 192, 384, 768], out_channels=768, extra_layer=extra_layer
)
fpn = dict(type='FPN', in_channels=[768, 768, 768, 768], out_channels=256, num_outs=5)
mask_head = dict(
    type='HTCMaskHead',
    num_convs=4,
    in_channels=256,
    conv_out_channels=256,
    loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
)
model = dict(
    type='HybridTaskCascade',
    backbone=dict(_base_.um_swin, _delete_=True, drop_path_rate=0.2),
    neck=[projection, fpn],
    roi_head=dict(
        # MMDetection's HTC head, but in tests masks are averaged over the stages
        type='mm_ummae.HTCRoIHead',
        interleaved=True,
        mask_info_flow=True,
        mask_head=[dict(mask_head, with_conv_res=False), mask_head, mask_head],
    ),
    # As in Mask R-CNN: with 0, an image that holds no whole anchor would stop the training
    train_cfg=dict(rpn=dict(allowed_border=-1)),
    test_cfg=dict(rcnn=dict(score_thr=0.001, nms=dict(type='soft_nms', iou_threshold=0.5))),
)
