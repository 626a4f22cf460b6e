# COCO, 72 epochs; steps at epochs 63 and 69, all else as in the schedule of 12 epochs.
_base_ = ['./coco_adamw_1x.py']

max_epochs = 72
steps = dict(_base_.steps, milestones=[63, 69], end=max_epochs)
param_scheduler = [_base_.warmup, steps]
train_cfg = dict(max_epochs=max_epochs)
