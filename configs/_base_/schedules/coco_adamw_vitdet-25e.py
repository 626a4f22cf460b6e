# COCO, 25 epochs, batch 64, AdamW in mixed precision with layer decay: ViTDet's schedule at LoMaR's length.
_base_ = ['./coco_adamw_1x.py']

max_epochs = 25
optim_wrapper = dict(optimizer=dict(weight_decay=0.1), paramwise_cfg=dict(layer_decay_rate=0.7))
# Steps after 8/9 and 26/27 of the training, as in ViTDet, rounded to whole epochs
warmup = dict(_base_.warmup, end=250)  # iterations
steps = dict(_base_.steps, milestones=[22, 24], end=max_epochs)
param_scheduler = [warmup, steps]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=64)
