# Mask R-CNN as in ViTDet (arXiv 2203.16527) on a ViT-B/16. A leaf sets the image size of its data and the kind of
# positions that its pre-training has.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py']

norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.LoMaRViT',
        arch='base',
        with_cls_token=False,
        window_size=14,  # patches
        global_layers=(2, 5, 8, 11),
        final_norm=False,
        drop_path_rate=0.1,
        # Give the pre-trained weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=dict(_delete_=True, type='mm_ummae.SimpleFeaturePyramid', in_channels=768),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
