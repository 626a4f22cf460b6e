# UperNet on UMSwin-L, ADE20K, 160k iterations, with the recipe of UMSwin-T and more drop path.
#   bash tools/dist_train.sh configs/upernet/upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=FINETUNED.pth
_base_ = ['./upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py']

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, with_cp='ffn'),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
