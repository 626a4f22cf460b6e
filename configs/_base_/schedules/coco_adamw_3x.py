# COCO, 36 epochs; steps at epochs 27 and 33, all else as in the schedule of 12 epochs.
_base_ = ['./coco_adamw_1x.py']

max_epochs = 36
steps = dict(_base_.steps, milestones=[27, 33], end=max_epochs)
param_scheduler = [_base_.warmup, steps]
train_cfg = dict(max_epochs=max_epochs)
