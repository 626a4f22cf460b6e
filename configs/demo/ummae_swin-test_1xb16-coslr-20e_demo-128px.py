# Pre-training of the demo: UM-MAE with UMSwin-test on 2,000 images of 128 px, about seven minutes on one core.
#   python -m demo.make_data
#   python tools/train.py configs/demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py
_base_ = [
    '../_base_/models/ummae_swin.py',
    '../_base_/datasets/demo_pretrain.py',
    '../_base_/schedules/demo_pretrain.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(arch='test', img_size=_base_.image_size),
    neck=dict(in_channels=256, embed_dims=128, num_heads=4, img_size=_base_.image_size),
    head=dict(in_channels=128),
)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=4))
