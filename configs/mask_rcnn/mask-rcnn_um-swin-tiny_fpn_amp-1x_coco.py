# Mask R-CNN on UMSwin-T, COCO, 12 epochs, batch 16. Recipe only: not trained here.
#   bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_um-swin-tiny_fpn_amp-1x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/mask-rcnn_um-swin.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_adamw_1x.py',
    '../_base_/coco_runtime.py',
]
