# The schedule of LoMaR and MAE: 1600 epochs, 40 of them warm-up.
_base_ = ['./pretrain_bs4096_200e-warmup10.py']

max_epochs = 1600
warmup_epochs = 40
warmup = dict(_base_.warmup, end=warmup_epochs)
cosine = dict(_base_.cosine, begin=warmup_epochs, end=max_epochs)
param_scheduler = [warmup, cosine]
train_cfg = dict(max_epochs=max_epochs)
