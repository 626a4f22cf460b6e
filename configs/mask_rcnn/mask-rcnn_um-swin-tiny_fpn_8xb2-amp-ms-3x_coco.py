# Mask R-CNN on UMSwin-T, COCO, 36 epochs, multi-scale 480-800.
#   bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_um-swin-tiny_fpn_8xb2-amp-ms-3x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/mask-rcnn_um-swin.py',
    '../_base_/datasets/coco_instance_ms-480-800.py',
    '../_base_/schedules/coco_adamw_3x.py',
    '../_base_/coco_runtime.py',
]

model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=_base_.num_classes),
        mask_head=dict(num_classes=_base_.num_classes),
    ),
)
