# UperNet on UMSwin-L, ADE20K, 160k iterations, batch 16, tested on sliding windows.
# As the published ones of PVT-S and Swin-T, with more drop path. Recipe only: not trained here.
#   bash tools/dist_train.sh configs/upernet/upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = [
    '../_base_/models/upernet_um-swin.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_adamw_160k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
