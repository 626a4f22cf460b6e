# Mask R-CNN on MMDetection's Swin-T, COCO, 12 epochs.
#   bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_stock-swin-tiny-w7_fpn_8xb2-amp-1x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_adamw_1x.py',
    '../_base_/models/mask-rcnn_stock-swin.py',
    '../_base_/coco_runtime.py',
]

model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=_base_.num_classes),
        mask_head=dict(num_classes=_base_.num_classes),
    ),
)
