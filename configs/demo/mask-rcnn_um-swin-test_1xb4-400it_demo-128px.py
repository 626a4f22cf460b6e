# Mask R-CNN of the demo, on generated COCO data.
#   python tools/train.py configs/demo/mask-rcnn_um-swin-test_1xb4-400it_demo-128px.py
_base_ = [
    '../_base_/models/demo_mask-rcnn.py',
    '../_base_/datasets/demo_coco.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(img_size=_base_.image_scale, init_cfg=dict(checkpoint=_base_.pretrained)),
    roi_head=dict(
        bbox_head=dict(num_classes=_base_.num_classes),
        mask_head=dict(num_classes=_base_.num_classes),
    ),
)
train_dataloader = dict(batch_size=4)
max_iters = 400
cosine = dict(_base_.cosine, end=max_iters)
param_scheduler = [_base_.warmup, cosine]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
runner_type = 'mm_ummae.ResumableRunner'
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
log_processor = dict(by_epoch=False)
# Predictions beside the ground truth are drawn in vis_data/vis_image; few scores exceed 0.3 after so short a training
default_hooks = dict(**_base_.finetune_hooks, visualization=dict(draw=True, interval=2, score_thr=0.1))
