# Pre-training of UM-MAE and SimMIM: 200 epochs, 10 of them warm-up, total batch 4096.
max_epochs = 200
warmup_epochs = 10
total_batch = 4096  # GPUs x images per GPU x accumulated iterations
lr = 1.5e-4 * total_batch / 256

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    accumulative_counts=4,  # 8 GPUs x 128 images x 4 iterations = 4096
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.95), weight_decay=0.05),
    # No weight decay on biases and one-dimensional parameters; tokens are (1, 1, C) and have it, as published. Tables
    # of a stock Swin are free of it, as in its own recipes.
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)},
    ),
)
# MMEngine counts the images of one iteration, without accumulation: 8 GPUs x 128 images
auto_scale_lr = dict(base_batch_size=1024)
# Linear warm-up from 0, then half a cosine to 0, both stepped every iteration
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
