# LoMaR's ViT-B/16, ImageNet-1K at 224 px, 100 epochs: the published fine-tuning.
# Published top-1: 83.3, 83.6, 83.8, 84.1 after pre-training of 300, 400, 800, 1600 epochs.
# Not reproduced here: recipe only.
#   bash tools/dist_train.sh configs/imagenet/lomar-vit-base-p16_8xb128-amp-coslr-100e_in1k-224px.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_finetune_224px.py',
    '../_base_/schedules/lomar_finetune_bs1024_100e.py',
    '../_base_/finetune_runtime.py',
]

model = dict(backbone=dict(type='mm_ummae.LoMaRViT', arch='base', img_size=224, patch_size=16))
