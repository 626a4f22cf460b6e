# LoMaR's schedule of 300 epochs. The paper does not state its warm-up: that of 400 epochs is used.
_base_ = ['./pretrain_bs4096_200e-warmup10.py']

max_epochs = 300
warmup_epochs = 10
warmup = dict(_base_.warmup, end=warmup_epochs)
cosine = dict(_base_.cosine, begin=warmup_epochs, end=max_epochs)
param_scheduler = [warmup, cosine]
train_cfg = dict(max_epochs=max_epochs)
