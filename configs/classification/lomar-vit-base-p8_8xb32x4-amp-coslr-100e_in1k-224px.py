# Fine-tuning of LoMaR's ViT-B/8 on ImageNet-1K at 224 px, 100 epochs, after any pre-training (arXiv 2206.00790).
#   bash tools/dist_train.sh configs/classification/lomar-vit-base-p8_8xb32x4-amp-coslr-100e_in1k-224px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_finetune_224px.py',
    '../_base_/schedules/finetune-lomar_bs1024_100e.py',
    '../_base_/finetune_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    backbone=dict(type='mm_ummae.LoMaRViT', arch='base', img_size=_base_.image_size, patch_size=8),
    head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=4)  # 8 GPUs x 32 images x 4 iterations = 1024
auto_scale_lr = dict(base_batch_size=256)  # 8 GPUs x 32 images
