# UperNet on UMPVT-S. A linear layer (a 1x1 convolution) projects each stage to the same width.
_base_ = ['./upernet_um-swin.py']

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
    neck=dict(in_channels=[64, 128, 320, 512]),
)
