# UperNet on MMSegmentation's Swin-T, as in its own configs, with strict loading from weights of any code base.
_base_ = ['./upernet_um-swin.py', '../backbones/stock-swin_dense.py']

model = dict(
    backbone=dict(
        _base_.stock_swin, _delete_=True, network=dict(_base_.stock_swin_network, type='mmseg.SwinTransformer')
    ),
    neck=None,
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=512),
    auxiliary_head=dict(in_channels=384),
)
