# ViTDet: Mask R-CNN on MAE's ViT-B/16, COCO, 25 epochs of large-scale jitter (arXiv 2206.00790). The absolute positions
# are resized to 64x64; LoMaR's relative ones, which start from zero, stand in for ViTDet's decomposed ones.
#   bash tools/dist_train.sh configs/vitdet/mask-rcnn_mae-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco.py']

model = dict(backbone=dict(positions='both'))
