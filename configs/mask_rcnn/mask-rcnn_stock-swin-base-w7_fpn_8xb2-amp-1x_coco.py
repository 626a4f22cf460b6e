# Mask R-CNN on MMDetection's Swin-B, COCO, 12 epochs.
#   bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_stock-swin-base-w7_fpn_8xb2-amp-1x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./mask-rcnn_stock-swin-tiny-w7_fpn_8xb2-amp-1x_coco.py']

model = dict(
    backbone=dict(network=dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
