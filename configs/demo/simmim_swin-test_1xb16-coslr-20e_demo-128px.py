# SimMIM, the baseline of the demo's ablations (python -m demo.ablations).
#   python tools/train.py configs/demo/simmim_swin-test_1xb16-coslr-20e_demo-128px.py
_base_ = [
    '../_base_/models/simmim_swin.py',
    '../_base_/datasets/demo_pretrain.py',
    '../_base_/schedules/demo_pretrain.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(arch='test', img_size=_base_.image_size),
    head=dict(in_channels=256),
)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=4))
