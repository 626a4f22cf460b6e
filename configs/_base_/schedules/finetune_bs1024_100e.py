# UM-MAE's ImageNet fine-tuning: 100 epochs, 5 of them warm-up, total batch 1024. A leaf sets layer_decay_rate.
max_epochs = 100
warmup_epochs = 5
total_batch = 1024  # GPUs x images per GPU x accumulated iterations
lr = 5e-4 * total_batch / 256
min_lr = 1e-6

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    constructor='LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    # The learning rate of a layer is lr x layer_decay_rate ** (layers above it); each block is a layer.
    # No weight decay on biases, one-dimensional parameters, positions and the class token.
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            '.pos_embed': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),  # of a stock Swin
        },
    ),
)
# Linear warm-up from 0, then half a cosine to min_lr, both stepped every iteration. The published code scales the
# whole curve by layer, min_lr included, and so does eta_min_ratio; eta_min would be the same for all layers.
warmup = dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True)
cosine = dict(
    type='CosineAnnealingLR',
    eta_min_ratio=min_lr / lr,
    by_epoch=True,
    begin=warmup_epochs,
    end=max_epochs,
    convert_to_iter_based=True,
)
param_scheduler = [warmup, cosine]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=total_batch)
