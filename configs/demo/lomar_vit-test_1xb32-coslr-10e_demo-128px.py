# LoMaR's pre-training of the demo: a small ViT on 2,000 images of 128 px, four windows of 7x7 patches of 8 px on
# a grid of 16x16; about five minutes on a core.
#   python tools/make_demo_data.py
#   python tools/train.py configs/demo/lomar_vit-test_1xb32-coslr-10e_demo-128px.py
_base_ = ['./ummae_swin-test_1xb64-coslr-20e_demo-128px.py']

model = dict(
    _delete_=True,
    type='mm_ummae.LoMaR',
    data_preprocessor=_base_.model.data_preprocessor,
    window_size=7,  # patches a side
    num_windows=4,
    mask_ratio=0.8,  # share of a window's patches
    pairing='all',
    backbone=dict(type='mm_ummae.LoMaRViT', arch='test', img_size=128, patch_size=8, mask_token=True),
    head=dict(type='mm_ummae.LoMaRHead', in_channels=96, norm_pix=True, patch_size=8),
)

train_dataloader = dict(batch_size=32)
max_epochs = 10
warmup_epochs = 1
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].update(T_max=max_epochs - warmup_epochs, begin=warmup_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(checkpoint=dict(interval=5))
custom_hooks = _base_.custom_hooks
custom_hooks[1].interval = max_epochs
