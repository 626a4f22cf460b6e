# UperNet on UMSwin-T, ADE20K, 160k iterations, with the recipe of 512 px but crops of 640 px.
#   bash tools/dist_train.sh configs/upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-640x640.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = [
    '../_base_/models/upernet_um-swin.py',
    '../_base_/datasets/ade20k_640x640.py',
    '../_base_/schedules/ade20k_adamw_160k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(img_size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
    test_cfg=dict(crop_size=_base_.crop_size, stride=(426, 426)),
)
