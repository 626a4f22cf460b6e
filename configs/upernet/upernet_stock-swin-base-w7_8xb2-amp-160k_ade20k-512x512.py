# UperNet on MMSegmentation's Swin-B, ADE20K, 160k iterations.
#   bash tools/dist_train.sh configs/upernet/upernet_stock-swin-base-w7_8xb2-amp-160k_ade20k-512x512.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./upernet_stock-swin-tiny-w7_8xb2-amp-160k_ade20k-512x512.py']

model = dict(
    backbone=dict(network=dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
