# Fine-tuning of MMPretrain's Swin-B on ImageNet-1K at 224 px, 100 epochs, with the recipe of UMSwin-T.
#   bash tools/dist_train.sh configs/classification/stock-swin-base-w7_8xb128-amp-coslr-100e_in1k-224px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/datasets/imagenet_finetune_224px.py',
    '../_base_/schedules/finetune_bs1024_100e.py',
    '../_base_/models/classifier_stock-swin.py',
    '../_base_/finetune_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    backbone=dict(img_size=_base_.image_size, network=dict(arch='base')),
    head=dict(in_channels=1024, num_classes=_base_.num_classes),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85))
