# UperNet of the demo, on generated ADE20K data.
#   python tools/train.py configs/demo/upernet_um-swin-test_1xb8-150it_demo-128px.py
_base_ = [
    '../_base_/models/demo_upernet.py',
    '../_base_/datasets/demo_ade20k.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(img_size=_base_.crop_size, init_cfg=dict(checkpoint=_base_.pretrained)),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
max_iters = 150
optim_wrapper = dict(optimizer=dict(lr=4e-3))
cosine = dict(_base_.cosine, end=max_iters)
param_scheduler = [_base_.warmup, cosine]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)

# Predictions beside the ground truth are drawn in vis_data/vis_image
default_hooks = dict(**_base_.finetune_hooks, visualization=dict(draw=True, interval=1))
