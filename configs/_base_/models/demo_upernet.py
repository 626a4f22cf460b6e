# UperNet of the demo: small, with batch norm (SyncBN needs a GPU), tested on whole images. A mosaic has two to
# four large regions, so it reads strides 16 and 32 only. A leaf sets the backbone's nominal size to that of its crops.
_base_ = ['./upernet_um-swin.py']

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(arch='test', out_indices=(2, 3), drop_path_rate=0.0),
    neck=dict(in_channels=[128, 256], out_channels=64),
    decode_head=dict(in_channels=[64, 64], in_index=[0, 1], channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, in_index=0, channels=64, norm_cfg=norm_cfg),
    test_cfg=dict(_delete_=True, mode='whole'),
)
