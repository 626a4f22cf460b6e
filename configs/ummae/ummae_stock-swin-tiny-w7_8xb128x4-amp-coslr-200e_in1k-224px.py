# UM-MAE with MMPretrain's Swin-T on ImageNet-1K, 200 epochs, with the schedule of UMSwin-T.
#   bash tools/dist_train.sh configs/ummae/ummae_stock-swin-tiny-w7_8xb128x4-amp-coslr-200e_in1k-224px.py 8
_base_ = [
    '../_base_/datasets/imagenet_pretrain_224px.py',
    '../_base_/schedules/pretrain_bs4096_200e-warmup10.py',
    '../_base_/models/ummae_stock-swin.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(backbone=dict(img_size=_base_.image_size), neck=dict(img_size=_base_.image_size))
