# UperNet on UMPVT-S. A linear layer (a 1x1 convolution) projects each stage to the same width.
_base_ = ['./upernet_um-swin.py', '../backbones/um-pvt_dense.py']

model = dict(
    backbone=dict(_base_.um_pvt, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
