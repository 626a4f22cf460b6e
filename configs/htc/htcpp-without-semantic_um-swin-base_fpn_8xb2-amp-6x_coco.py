# HTC++ on UMSwin-B without the semantic branch and its stuff maps, COCO, 72 epochs. Options: configs/README.md.
#   bash tools/dist_train.sh configs/htc/htcpp-without-semantic_um-swin-base_fpn_8xb2-amp-6x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./htcpp-without-semantic_um-swin-tiny_fpn_8xb2-amp-6x_coco.py']

extra_layer = dict(_base_.extra_layer, in_channels=1024, num_heads=32)
projection = dict(_base_.projection, in_channels=[128, 256, 512, 1024], extra_layer=extra_layer)
model = dict(backbone=dict(arch='base', drop_path_rate=0.3, with_cp=True), neck=[projection, _base_.fpn])
