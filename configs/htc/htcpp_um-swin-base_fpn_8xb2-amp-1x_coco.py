# HTC++ on UMSwin-B with the semantic branch, COCO, 12 epochs instead of 72.
# Recipe only: not trained here.
#   bash tools/dist_train.sh configs/htc/htcpp_um-swin-base_fpn_8xb2-amp-1x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./htcpp_um-swin-base_fpn_8xb2-amp-6x_coco.py']

max_epochs = 12
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(milestones=[8, 11], end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
