# SimMIM with PVT-S on ImageNet-1K, 200 epochs: the baseline of UM-MAE (arXiv 2205.10063).
#   bash tools/dist_train.sh configs/simmim/simmim_pvt-small_8xb128x4-amp-coslr-200e_in1k-256px.py 8
_base_ = [
    '../_base_/models/simmim_pvt.py',
    '../_base_/datasets/imagenet_pretrain_256px.py',
    '../_base_/schedules/pretrain_bs4096_200e-warmup10.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(backbone=dict(img_size=_base_.image_size))
