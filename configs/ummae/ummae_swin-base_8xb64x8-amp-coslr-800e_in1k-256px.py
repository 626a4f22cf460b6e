# UM-MAE with Swin-B on ImageNet-1K, 800 epochs, with the recipe of Swin-L: the paper has no Swin-B.
#   bash tools/dist_train.sh configs/ummae/ummae_swin-base_8xb64x8-amp-coslr-800e_in1k-256px.py 8
_base_ = ['./ummae_swin-large_8xb64x8-amp-coslr-800e_in1k-256px.py']

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=1024))
