# Fine-tuning on the demo data, the same for pre-trained and random weights: a cosine over a few iterations.
max_iters = 100
warmup_iters = 15
lr = 1e-3

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
warmup = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup_iters)
cosine = dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=warmup_iters, end=max_iters)
param_scheduler = [warmup, cosine]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
