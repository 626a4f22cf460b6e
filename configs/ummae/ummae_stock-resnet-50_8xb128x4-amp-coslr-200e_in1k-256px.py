# UM-MAE with MMPretrain's ResNet-50 on ImageNet-1K, 200 epochs, with the schedule of UMSwin-T.
#   bash tools/dist_train.sh configs/ummae/ummae_stock-resnet-50_8xb128x4-amp-coslr-200e_in1k-256px.py 8
_base_ = [
    '../_base_/datasets/imagenet_pretrain_256px.py',
    '../_base_/schedules/pretrain_bs4096_200e-warmup10.py',
    '../_base_/models/ummae_stock-swin.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(
        img_size=_base_.image_size,
        network=dict(_delete_=True, type='mmpretrain.ResNet', depth=50),
    ),
    neck=dict(in_channels=2048, img_size=_base_.image_size),
)
