# HTC++ on UMSwin-L, COCO, 72 epochs, after 800 epochs of UM-MAE (arXiv 2205.10063): assembled from what the papers
# state, because the configuration was never released. Options: configs/README.md.
#   bash tools/dist_train.sh configs/htc/htcpp_um-swin-large_fpn_8xb2-amp-6x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = ['./htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco.py']

extra_layer = dict(_base_.extra_layer, in_channels=1536, num_heads=48, with_cp=True)
projection = dict(_base_.projection, in_channels=[192, 384, 768, 1536], extra_layer=extra_layer)
model = dict(backbone=dict(arch='large', drop_path_rate=0.3, with_cp=True), neck=[projection, _base_.fpn])
