# ADE20K, 160k iterations, batch 16 (the published UperNet recipe).
max_iters = 160000
warmup_iters = 1500

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # No weight decay on biases, one-dimensional parameters and positions. With a layer_decay_rate below 1, the learning
    # rate falls by that factor from each block of the backbone to the one before it.
    constructor='mm_ummae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.pos_embed': dict(decay_mult=0.0), 'relative_position_bias_table': dict(decay_mult=0.0)},
    ),
)
# Linear warm-up from 1e-6 of the learning rate, then linear to 0
warmup = dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters)
decay = dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=warmup_iters, end=max_iters)
param_scheduler = [warmup, decay]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=16)
