# Mask R-CNN on UMSwin-T, COCO, 12 epochs, batch 16. Recipe only: not trained here.
#   mim train onedl-mmdetection configs/mask_rcnn/mask-rcnn_um-swin-tiny_fpn_amp-1x_coco.py \
#       --cfg-options model.backbone.init_cfg.checkpoint=PRETRAINED.pth
_base_ = [
    '../_base_/models/mask-rcnn_um-swin.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone')))
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
auto_scale_lr = dict(base_batch_size=16)
