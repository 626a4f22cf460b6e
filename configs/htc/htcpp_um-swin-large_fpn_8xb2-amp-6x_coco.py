# HTC++ on UMSwin-L with the semantic branch, COCO, 72 epochs, batch 16, short side of 400-1400 px.
# Published: 57.4 box AP, 49.8 mask AP from 800 epochs of UM-MAE on ImageNet-1K, in a configuration that was never
# released. This one is assembled from what the papers say. Recipe only: not trained here. Not reproduced here.
#   bash tools/dist_train.sh configs/htc/htcpp_um-swin-large_fpn_8xb2-amp-6x_coco.py 8 \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/htcpp_um-swin.py',
    '../_base_/datasets/coco_htcpp.py',
    '../_base_/schedules/coco_adamw_6x.py',
    '../_base_/htcpp_runtime.py',
]

neck = _base_.model.neck
neck[0].in_channels = [192, 384, 768, 1536]
neck[0].extra_layer.update(in_channels=1536, num_heads=48, with_cp=True)
model = dict(backbone=dict(arch='large', drop_path_rate=0.3, with_cp=True), neck=neck)
