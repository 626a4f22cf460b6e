# HTC++ on UMSwin-T with the semantic branch, COCO, 72 epochs. Options: configs/README.md.
#   bash tools/dist_train.sh configs/htc/htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/htcpp_um-swin.py',
    '../_base_/datasets/coco_htcpp.py',
    '../_base_/schedules/coco_adamw_6x.py',
    '../_base_/htcpp_runtime.py',
]

model = dict(
    roi_head=dict(
        bbox_head=[dict(head, num_classes=_base_.num_classes) for head in _base_.model.roi_head.bbox_head],
        mask_head=[dict(head, num_classes=_base_.num_classes) for head in _base_.model.roi_head.mask_head],
        semantic_head=dict(num_classes=_base_.num_stuff_classes),
    ),
)
