# Pre-training of the stored weights lomar-vit-test: that of the demo for ten times as long.
#   python -m demo.make_data
#   python tools/train.py configs/small/lomar_vit-test_1xb32-coslr-100e_demo-128px.py
_base_ = ['../demo/lomar_vit-test_1xb32-coslr-10e_demo-128px.py']

max_epochs = 100
warmup_epochs = 5
warmup = dict(_base_.warmup, end=warmup_epochs)
cosine = dict(_base_.cosine, begin=warmup_epochs, end=max_epochs)
param_scheduler = [warmup, cosine]
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(checkpoint=dict(interval=20, max_keep_ckpts=-1))
randomness = dict(seed=10)  # the demo's seeds start at 0
