# LoMaR with ViT-B/16 on ImageNet-1K at 224 px, 1600 epochs (arXiv 2206.00790).
#   bash tools/dist_train.sh configs/lomar/lomar_vit-base-p16_8xb128x4-amp-coslr-1600e_in1k-224px.py 8
_base_ = [
    '../_base_/models/lomar_vit.py',
    '../_base_/datasets/imagenet_pretrain_224px.py',
    '../_base_/schedules/pretrain_bs4096_1600e-warmup40.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(backbone=dict(img_size=_base_.image_size))
