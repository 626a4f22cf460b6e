# UM-MAE with MMPretrain's Swin V2-B and true positions on ImageNet-1K, 800 epochs.
#   bash tools/dist_train.sh configs/ummae/ummae_stock-swin-v2-base-w8_8xb64x8-amp-coslr-800e_in1k-256px.py 8
_base_ = [
    '../_base_/datasets/imagenet_pretrain_256px.py',
    '../_base_/schedules/pretrain_bs4096_800e-warmup40.py',
    '../_base_/models/ummae_stock-swin.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(
        img_size=_base_.image_size,
        true_positions=True,
        network=dict(type='mmpretrain.SwinTransformerV2', arch='base', img_size=_base_.image_size, window_size=8),
    ),
    neck=dict(in_channels=1024, depth=8, img_size=_base_.image_size),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=8)  # 8 GPUs x 64 images x 8 iterations = 4096
auto_scale_lr = dict(base_batch_size=512)  # 8 GPUs x 64 images
