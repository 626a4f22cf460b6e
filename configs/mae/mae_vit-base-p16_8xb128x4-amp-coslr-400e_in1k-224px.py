# MMPretrain's MAE, ViT-B/16, ImageNet-1K at 224 px, 400 epochs: what LoMaR is compared with (arXiv 2206.00790).
# Published: 83.1 top-1 after fine-tuning, 58 h of pre-training on 4 A100. Not reproduced here: recipe only.
#   bash tools/dist_train.sh configs/mae/mae_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px.py 8
_base_ = [
    '../_base_/models/mae_vit.py',
    '../_base_/datasets/imagenet_ummae_224px.py',
    '../_base_/schedules/mae_bs4096_400e.py',
    '../_base_/pretrain_runtime.py',
]

custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]  # MMPretrain's MAE shows no reconstructions
optim_wrapper = dict(accumulative_counts=4)  # 8 GPUs x 128 images x 4 iterations = 4096
# MMEngine counts images per iteration and does not know of accumulation: 8 x 128.
auto_scale_lr = dict(base_batch_size=1024)
