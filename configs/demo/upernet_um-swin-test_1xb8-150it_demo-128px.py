# UperNet of the demo, on generated ADE20K data.
#   python tools/train.py configs/demo/upernet_um-swin-test_1xb8-150it_demo-128px.py
_base_ = [
    '../_base_/models/upernet_um-swin.py',
    '../_base_/datasets/demo_ade20k.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    '../_base_/mmseg_runtime.py',
]

norm_cfg = dict(type='BN', requires_grad=True)  # SyncBN needs a GPU
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch='test',
        img_size=128,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.pretrained, prefix='backbone'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=20, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=64, num_classes=20, norm_cfg=norm_cfg),
    test_cfg=dict(_delete_=True, mode='whole'),
)
max_iters = 150
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_iters - _base_.warmup_iters, end=max_iters)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)

# Images of predictions beside the truth, in vis_data/vis_image
default_hooks = dict(**_base_.finetune_hooks, visualization=dict(draw=True, interval=1))
