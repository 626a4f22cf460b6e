# Mask R-CNN on MMDetection's Swin-L, COCO, 12 epochs.
#   bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_stock-swin-large-w7_fpn_8xb2-amp-1x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./mask-rcnn_stock-swin-tiny-w7_fpn_8xb2-amp-1x_coco.py']

model = dict(
    backbone=dict(network=dict(embed_dims=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], drop_path_rate=0.2)),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
