# Mask R-CNN on MMDetection's Swin-T, as in its own configs. In a config of MMDetection set the checkpoint instead
# (docs/user_guides/stock_networks.md): this one loads strictly, from weights of any code base.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.UMBackbone',
        network=dict(
            type='mmdet.SwinTransformer',
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
    neck=dict(in_channels=[96, 192, 384, 768]),
)
