# ViTDet: Mask R-CNN on LoMaR's ViT-B/16, COCO, 25 epochs of large-scale jitter at 1024 px, batch 64.
# Published: 51.4 box AP, 45.7 mask AP from LoMaR at 224 px; 51.6 and 45.9 from LoMaR at 384 px (arXiv 2206.00790).
# Not reproduced here: recipe only.
# The pre-training's relative positions serve maps of any size; there are no others, so nothing is resized.
#   bash tools/dist_train.sh configs/vitdet/vitdet_mask-rcnn_lomar-vit-base-p16_8xb8-amp-lsj-25e_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['../_base_/mask-rcnn_vitdet_lsj-25e_coco.py']

model = dict(backbone=dict(positions='relative'))
