# Pre-training of the stored weights um-swin-test: that of the demo for five times as long, with larger batches. About
# an hour on one core.
#   python -m demo.make_data
#   python tools/train.py configs/small/ummae_swin-test_1xb64-coslr-100e_demo-128px.py
_base_ = ['../demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py']

max_epochs = 100
warmup_epochs = 5
warmup = dict(_base_.warmup, end=warmup_epochs)
cosine = dict(_base_.cosine, begin=warmup_epochs, end=max_epochs)
param_scheduler = [warmup, cosine]
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(checkpoint=dict(interval=20, max_keep_ckpts=-1))
randomness = dict(seed=10)  # the demo's seeds start at 0
