# Mask R-CNN on UMSwin-T. Each stage goes through LayerNorm and a linear layer before the FPN.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py']

projection = dict(type='mm_ummae.StageProjection', in_channels=[96, 192, 384, 768], out_channels=768)
fpn = dict(type='FPN', in_channels=[768, 768, 768, 768], out_channels=256, num_outs=5)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.UMSwin',
        arch='tiny',
        img_size=256,
        window_size=16,
        out_indices=(0, 1, 2, 3),
        final_norm=False,
        drop_path_rate=0.1,
        # Give the initial weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=[projection, fpn],
)
