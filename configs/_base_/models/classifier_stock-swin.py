# ImageNet classifier on MMPretrain's Swin-T: its last norm, average pooling and a linear layer, as in its own configs.
_base_ = ['./classifier.py']

model = dict(
    backbone=dict(
        _delete_=True,
        # For strict loading, from weights of any code base
        type='mm_ummae.UMBackbone',
        network=dict(
            type='mmpretrain.SwinTransformer',
            arch='tiny',
            window_size=7,
            pad_small_map=True,
            drop_path_rate=0.1,
            out_indices=(3,),
        ),
        # Give the pre-trained weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
)
