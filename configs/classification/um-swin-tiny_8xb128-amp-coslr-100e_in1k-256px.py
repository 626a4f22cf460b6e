# Fine-tuning of UMSwin-T on ImageNet-1K at 256 px, 100 epochs, after any pre-training (arXiv 2205.10063).
#   bash tools/dist_train.sh configs/classification/um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_finetune_256px.py',
    '../_base_/schedules/finetune_bs1024_100e.py',
    '../_base_/finetune_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    backbone=dict(type='mm_ummae.UMSwin', arch='tiny', img_size=_base_.image_size, window_size=16),
    head=dict(num_classes=_base_.num_classes),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85))
