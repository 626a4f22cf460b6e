# UM-MAE with MMPretrain's Swin V2-T and true positions on ImageNet-1K, 200 epochs.
#   bash tools/dist_train.sh configs/ummae/ummae_stock-swin-v2-tiny-w8_8xb128x4-amp-coslr-200e_in1k-256px.py 8
_base_ = [
    '../_base_/datasets/imagenet_pretrain_256px.py',
    '../_base_/schedules/pretrain_bs4096_200e-warmup10.py',
    '../_base_/models/ummae_stock-swin.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(
        img_size=_base_.image_size,
        true_positions=True,
        network=dict(type='mmpretrain.SwinTransformerV2', arch='tiny', img_size=_base_.image_size, window_size=8),
    ),
    neck=dict(img_size=_base_.image_size),
)
