# HTC++ on UMSwin-L, COCO, 72 epochs, with other box heads, an option that is not in the paper: four convolutions
# with SyncBN and one linear layer, GIoU loss on decoded boxes. Options: configs/README.md.
#   bash tools/dist_train.sh configs/htc/htcpp-giou-4conv1fc_um-swin-large_fpn_8xb2-amp-6x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./htcpp_um-swin-large_fpn_8xb2-amp-6x_coco.py']

changes = dict(
    type='Shared4Conv1FCBBoxHead',
    conv_out_channels=256,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    reg_decoded_bbox=True,
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)
model = dict(roi_head=dict(bbox_head=[dict(head, **changes) for head in _base_.model.roi_head.bbox_head]))
