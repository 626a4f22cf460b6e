# UperNet on MMSegmentation's Swin-S, ADE20K, 160k iterations.
#   bash tools/dist_train.sh configs/upernet/upernet_stock-swin-small-w7_8xb2-amp-160k_ade20k-512x512.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./upernet_stock-swin-tiny-w7_8xb2-amp-160k_ade20k-512x512.py']

model = dict(
    backbone=dict(network=dict(depths=[2, 2, 18, 2])),
)
