# MMPretrain's MAE with ViT-B/16 on ImageNet-1K at 384 px, 800 epochs: the baseline of LoMaR (arXiv 2206.00790).
#   bash tools/dist_train.sh configs/mae/mae_vit-base-p16_8xb128x4-amp-coslr-800e_in1k-384px.py 8
_base_ = [
    '../_base_/models/mae_vit.py',
    '../_base_/datasets/imagenet_pretrain_384px.py',
    '../_base_/schedules/pretrain_bs4096_800e-warmup40.py',
    '../_base_/mae_runtime.py',
]

num_patches = (_base_.image_size // 16) ** 2
model = dict(backbone=dict(img_size=_base_.image_size), neck=dict(num_patches=num_patches))
