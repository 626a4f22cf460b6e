# UperNet on MMSegmentation's Swin-T, as in its own configs, with strict loading from weights of any code base.
_base_ = ['./upernet_um-swin.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.UMBackbone',
        network=dict(
            type='mmseg.SwinTransformer',
            embed_dims=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=7,
            drop_path_rate=0.1,
            out_indices=(0, 1, 2, 3),
        ),
        # Give the pre-trained weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=None,
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=512),
    auxiliary_head=dict(in_channels=384),
)
