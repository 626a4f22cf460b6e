# Mask R-CNN on UMPVT-S. Each stage goes through LayerNorm and a linear layer before the FPN.
_base_ = ['./mask-rcnn_um-swin.py', '../backbones/um-pvt_dense.py']

projection = dict(_base_.projection, in_channels=[64, 128, 320, 512])
model = dict(
    backbone=dict(_base_.um_pvt, _delete_=True),
    neck=[projection, _base_.fpn],
)
