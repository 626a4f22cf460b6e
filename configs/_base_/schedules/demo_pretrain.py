# Pre-training of the demo: 20 epochs in fp32, so that it runs on any CPU. On 2,000 images the number of updates limits
# what is learned: batches of 16 learn more in the same time than of 64.
max_epochs = 20
warmup_epochs = 2

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-4, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
warmup = dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True)
cosine = dict(
    type='CosineAnnealingLR',
    eta_min=0.0,
    by_epoch=True,
    begin=warmup_epochs,
    end=max_epochs,
    convert_to_iter_based=True,
)
param_scheduler = [warmup, cosine]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
