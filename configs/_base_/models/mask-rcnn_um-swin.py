# Mask R-CNN on UMSwin-T. Each stage goes through LayerNorm and a linear layer before the FPN.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../backbones/um-swin_dense.py']

projection = dict(type='mm_ummae.StageProjection', in_channels=[96, 192, 384, 768], out_channels=768)
fpn = dict(type='FPN', in_channels=[768, 768, 768, 768], out_channels=256, num_outs=5)
model = dict(
    backbone=dict(_base_.um_swin, _delete_=True),
    neck=[projection, fpn],
)
