# LoMaR's ImageNet fine-tuning: the base learning rate of its paper, 1e-3 (its published command has 5e-4), and a
# steeper layer decay; all else as in UM-MAE's fine-tuning.
_base_ = ['./finetune_bs1024_100e.py']

lr = 1e-3 * _base_.total_batch / 256
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(layer_decay_rate=0.65))
cosine = dict(_base_.cosine, eta_min_ratio=_base_.min_lr / lr)
param_scheduler = [_base_.warmup, cosine]
