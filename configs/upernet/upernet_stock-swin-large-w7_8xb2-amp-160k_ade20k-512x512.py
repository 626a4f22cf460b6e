# UperNet on MMSegmentation's Swin-L, ADE20K, 160k iterations.
#   bash tools/dist_train.sh configs/upernet/upernet_stock-swin-large-w7_8xb2-amp-160k_ade20k-512x512.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./upernet_stock-swin-tiny-w7_8xb2-amp-160k_ade20k-512x512.py']

model = dict(
    backbone=dict(network=dict(embed_dims=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], drop_path_rate=0.2)),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
