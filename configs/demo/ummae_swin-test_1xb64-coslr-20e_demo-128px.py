# Pre-training of the demo: UMSwin-test on 2,000 images of 128 px, a few minutes on two cores.
#   python tools/make_demo_data.py
#   python tools/train.py configs/demo/ummae_swin-test_1xb64-coslr-20e_demo-128px.py
_base_ = [
    '../_base_/models/ummae_swin.py',
    '../_base_/datasets/imagenet_ummae_256px.py',
    '../_base_/schedules/ummae_bs4096_200e.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(arch='test', img_size=128),
    neck=dict(in_channels=256, embed_dims=128, num_heads=4, img_size=128),
    head=dict(in_channels=128),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 128
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(data_root='data/demo/imagenet/', data_prefix='unlabelled', pipeline=train_pipeline),
)

max_epochs = 20
warmup_epochs = 2
# In fp32, so that it runs on any CPU
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].update(T_max=max_epochs - warmup_epochs, begin=warmup_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=4))
