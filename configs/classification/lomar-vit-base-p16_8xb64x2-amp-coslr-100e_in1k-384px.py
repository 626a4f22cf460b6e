# Fine-tuning of LoMaR's ViT-B/16 on ImageNet-1K at 384 px, 100 epochs, after any pre-training (arXiv 2206.00790).
#   bash tools/dist_train.sh configs/classification/lomar-vit-base-p16_8xb64x2-amp-coslr-100e_in1k-384px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_finetune_384px.py',
    '../_base_/schedules/finetune-lomar_bs1024_100e.py',
    '../_base_/finetune_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    backbone=dict(type='mm_ummae.LoMaRViT', arch='base', img_size=_base_.image_size, patch_size=16),
    head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=2)  # 8 GPUs x 64 images x 2 iterations = 1024
auto_scale_lr = dict(base_batch_size=512)  # 8 GPUs x 64 images
