# GFL on UMPVT-S, COCO, 25 epochs of large-scale jitter, batch 16.
# The published recipe, from fine-tuned ImageNet weights. Recipe only: not trained here.
#   bash tools/dist_train.sh configs/gfl/gfl_um-pvt-small_fpn_8xb2-amp-lsj-25e_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = ['../_base_/gfl_lsj-25e_coco.py']

neck = _base_.model.neck
neck[0].in_channels = [64, 128, 320, 512]
model = dict(backbone=dict(type='mm_ummae.UMPVT', arch='small'), neck=neck)
