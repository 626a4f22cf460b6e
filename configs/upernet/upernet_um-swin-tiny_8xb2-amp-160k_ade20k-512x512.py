# UperNet on UMSwin-T, ADE20K, 160k iterations from fine-tuned ImageNet weights (arXiv 2205.10063).
#   bash tools/dist_train.sh configs/upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = [
    '../_base_/models/upernet_um-swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_adamw_160k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(img_size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
    test_cfg=dict(crop_size=_base_.crop_size),
)
