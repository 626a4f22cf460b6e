# UperNet on UMSwin-L, ADE20K, 640-px crops, 160k iterations, batch 16, tested on sliding windows of 640 px.
# As upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512 but for the sizes. Recipe only: not trained here.
#   bash tools/dist_train.sh configs/upernet/upernet_um-swin-large_8xb2-amp-160k_ade20k-640x640.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = [
    '../_base_/models/upernet_um-swin.py',
    '../_base_/datasets/ade20k_640x640.py',
    '../_base_/schedules/ade20k_adamw_160k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=[192, 384, 768, 1536]),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)
