# GFL on UMPVT-S as published with UM-MAE. Each stage goes through LayerNorm and a linear layer before the FPN.
_base_ = ['./gfl_um-swin.py']

projection = dict(_base_.projection, in_channels=[64, 128, 320, 512])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.UMPVT',
        arch='small',
        img_size=256,
        out_indices=(0, 1, 2, 3),
        final_norm=False,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=[projection, _base_.fpn],
)
