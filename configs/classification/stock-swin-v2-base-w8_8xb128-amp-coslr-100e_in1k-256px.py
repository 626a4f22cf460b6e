# Fine-tuning of MMPretrain's Swin V2-B on ImageNet-1K at 256 px, 100 epochs.
#   bash tools/dist_train.sh configs/classification/stock-swin-v2-base-w8_8xb128-amp-coslr-100e_in1k-256px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/datasets/imagenet_finetune_256px.py',
    '../_base_/schedules/finetune_bs1024_100e.py',
    '../_base_/models/classifier_stock-swin.py',
    '../_base_/finetune_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    backbone=dict(
        img_size=_base_.image_size,
        network=dict(type='mmpretrain.SwinTransformerV2', arch='base', img_size=_base_.image_size, window_size=8),
    ),
    head=dict(in_channels=1024, num_classes=_base_.num_classes),
)
# MMPretrain's Swin V2 does not count layers, so the learning rate does not fall by block
optim_wrapper = dict(constructor='DefaultOptimWrapperConstructor')
