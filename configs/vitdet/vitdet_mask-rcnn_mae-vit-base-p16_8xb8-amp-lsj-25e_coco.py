# ViTDet: Mask R-CNN on MAE's ViT-B/16, COCO, 25 epochs of large-scale jitter at 1024 px, batch 64.
# Published: 51.1 box AP, 45.4 mask AP (arXiv 2206.00790). Not reproduced here: recipe only.
# The pre-training's absolute positions are resized from 14x14 to 64x64. LoMaR's relative ones, which start from zero,
# stand in for ViTDet's decomposed ones.
#   bash tools/dist_train.sh configs/vitdet/vitdet_mask-rcnn_mae-vit-base-p16_8xb8-amp-lsj-25e_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['../_base_/mask-rcnn_vitdet_lsj-25e_coco.py']

model = dict(backbone=dict(positions='both'))
