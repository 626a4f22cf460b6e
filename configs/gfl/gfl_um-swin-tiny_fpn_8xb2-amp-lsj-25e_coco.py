# GFL on UMSwin-T, COCO, 25 epochs of large-scale jitter (arXiv 2205.10063), from fine-tuned ImageNet weights.
#   bash tools/dist_train.sh configs/gfl/gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = [
    '../_base_/models/gfl_um-swin.py',
    '../_base_/datasets/coco_lsj-1024px.py',
    '../_base_/schedules/coco_adamw_gfl-25e.py',
    '../_base_/gfl_runtime.py',
]

model = dict(
    # Images that jitter makes smaller than the crop are padded to its size
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=_base_.crop_size)]),
    backbone=dict(img_size=_base_.crop_size),
    bbox_head=dict(num_classes=_base_.num_classes),
)
