# Mask R-CNN on MMDetection's Swin-T, as in its own configs. In a config of MMDetection set the checkpoint instead
# (docs/user_guides/stock_networks.md): this one loads strictly, from weights of any code base.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../backbones/stock-swin_dense.py']

model = dict(
    backbone=dict(
        _base_.stock_swin, _delete_=True, network=dict(_base_.stock_swin_network, type='mmdet.SwinTransformer')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
