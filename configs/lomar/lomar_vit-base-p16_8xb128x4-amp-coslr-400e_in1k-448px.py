# LoMaR with ViT-B/16 on ImageNet-1K at 448 px (arXiv 2206.00790), 400 epochs: the paper does not state their number.
#   bash tools/dist_train.sh configs/lomar/lomar_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-448px.py 8
_base_ = [
    '../_base_/models/lomar_vit.py',
    '../_base_/datasets/imagenet_pretrain_448px.py',
    '../_base_/schedules/pretrain_bs4096_400e-warmup10.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(num_windows=9, backbone=dict(img_size=_base_.image_size))
