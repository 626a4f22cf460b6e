# LoMaR's pre-training of the demo: a small ViT on 2,000 images of 128 px, four windows of 7x7 patches of 8 px on a grid
# of 16x16; about five minutes on one core.
#   python -m demo.make_data
#   python tools/train.py configs/demo/lomar_vit-test_1xb32-coslr-10e_demo-128px.py
_base_ = [
    '../_base_/models/lomar_vit.py',
    '../_base_/datasets/demo_pretrain.py',
    '../_base_/schedules/demo_pretrain.py',
    '../_base_/pretrain_runtime.py',
]

max_epochs = 10
warmup_epochs = 1
model = dict(
    backbone=dict(arch='test', img_size=_base_.image_size, patch_size=8),
    head=dict(in_channels=96, patch_size=8),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
warmup = dict(_base_.warmup, end=warmup_epochs)
cosine = dict(_base_.cosine, begin=warmup_epochs, end=max_epochs)
param_scheduler = [warmup, cosine]
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5))
custom_hooks = [
    dict(type='mm_ummae.CheckpointKeysHook'),
    dict(type='mm_ummae.ReconstructionHook', interval=max_epochs),
    dict(type='mm_ummae.LearningHook', interval=max_epochs),
]
