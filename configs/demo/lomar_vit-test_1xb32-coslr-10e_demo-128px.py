# LoMaR's pre-training of the demo: a small ViT on 2,000 pictures of 128 px, four windows of 7x7 patches of 8 px on
# a grid of 16x16; about four minutes on a core.
#   python tools/make_demo_data.py
#   python tools/train.py configs/demo/lomar_vit-test_1xb32-coslr-10e_demo-128px.py
_base_ = [
    '../_base_/models/lomar_vit.py',
    '../_base_/datasets/imagenet_ummae_256px.py',
    '../_base_/schedules/ummae_bs4096_200e.py',
    '../_base_/pretrain_runtime.py',
]

model = dict(
    backbone=dict(arch='test', img_size=128, patch_size=8),
    head=dict(in_channels=96, patch_size=8),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 128
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(data_root='data/demo/imagenet/', data_prefix='unlabelled', pipeline=train_pipeline),
)

max_epochs = 10
warmup_epochs = 1
# In fp32, so that it runs on any CPU
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].update(T_max=max_epochs - warmup_epochs, begin=warmup_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5))
