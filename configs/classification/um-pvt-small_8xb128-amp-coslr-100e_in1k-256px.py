# Fine-tuning of UMPVT-S on ImageNet-1K at 256 px, 100 epochs, after any pre-training (arXiv 2205.10063).
#   bash tools/dist_train.sh configs/classification/um-pvt-small_8xb128-amp-coslr-100e_in1k-256px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_finetune_256px.py',
    '../_base_/schedules/finetune_bs1024_100e.py',
    '../_base_/finetune_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    backbone=dict(type='mm_ummae.UMPVT', arch='small', img_size=_base_.image_size),
    neck=dict(in_channels=512),
    head=dict(in_channels=512, num_classes=_base_.num_classes),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85))
