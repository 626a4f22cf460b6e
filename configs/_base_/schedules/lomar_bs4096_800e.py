# LoMaR's schedule of 800 epochs, 20 of them warm-up; all else as in UM-MAE's 200 epochs.
_base_ = ['./ummae_bs4096_200e.py']

max_epochs = 800
warmup_epochs = 20
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].update(T_max=max_epochs - warmup_epochs, begin=warmup_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
