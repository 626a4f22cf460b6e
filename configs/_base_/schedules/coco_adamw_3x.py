# COCO, 36 epochs; steps at epochs 27 and 33, all else as in 12 epochs.
_base_ = ['./coco_adamw_1x.py']

max_epochs = 36
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(milestones=[27, 33], end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
