# COCO, 72 epochs; steps at epochs 63 and 69, all else as in 12 epochs.
_base_ = ['./coco_adamw_1x.py']

max_epochs = 72
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(milestones=[63, 69], end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
