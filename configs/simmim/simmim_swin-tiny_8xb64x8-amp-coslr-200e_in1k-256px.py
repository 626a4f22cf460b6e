# SimMIM, Swin-T, ImageNet-1K, 200 epochs: the baseline of UM-MAE (arXiv 2205.10063).
# Published: 82.20 top-1 after fine-tuning, 49.3 h of pre-training. Not reproduced here: recipe only.
#   bash tools/dist_train.sh configs/simmim/simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px.py 8
_base_ = [
    '../_base_/models/simmim_swin.py',
    '../_base_/datasets/imagenet_ummae_256px.py',
    '../_base_/schedules/ummae_bs4096_200e.py',
    '../_base_/pretrain_runtime.py',
]

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=8)  # 8 GPUs x 64 images x 8 iterations = 4096
# MMEngine counts images per iteration and does not know of accumulation: 8 x 64.
auto_scale_lr = dict(base_batch_size=512)
