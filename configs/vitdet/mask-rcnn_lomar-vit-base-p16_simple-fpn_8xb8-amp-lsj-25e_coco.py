# ViTDet: Mask R-CNN on LoMaR's ViT-B/16, COCO, 25 epochs of large-scale jitter (arXiv 2206.00790). The relative
# positions of the pre-training fit feature maps of any size.
#   bash tools/dist_train.sh configs/vitdet/mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/mask-rcnn_vitdet.py',
    '../_base_/datasets/coco_instance_lsj-1024px.py',
    '../_base_/schedules/coco_adamw_vitdet-25e.py',
    '../_base_/vitdet_runtime.py',
]

model = dict(
    # Padded at the right and the bottom, in tests too, so that positions and windows are always those of 64x64 patches
    data_preprocessor=dict(pad_size_divisor=_base_.image_size),
    backbone=dict(img_size=_base_.image_size, positions='relative'),
    roi_head=dict(
        bbox_head=dict(num_classes=_base_.num_classes),
        mask_head=dict(num_classes=_base_.num_classes),
    ),
)
