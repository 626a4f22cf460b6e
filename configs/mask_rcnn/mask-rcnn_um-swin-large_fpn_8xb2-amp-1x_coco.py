# Mask R-CNN on UMSwin-L, COCO, 12 epochs.
#   bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_um-swin-large_fpn_8xb2-amp-1x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco.py']

projection = dict(_base_.projection, in_channels=[192, 384, 768, 1536])
model = dict(backbone=dict(arch='large', drop_path_rate=0.2, with_cp='ffn'), neck=[projection, _base_.fpn])
