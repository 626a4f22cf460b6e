# COCO, 12 epochs, batch 16, AdamW in mixed precision; steps at epochs 8 and 11.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py']

max_epochs = 12
optim_wrapper = dict(
    _delete_=True,
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
        custom_keys={
            '.pos_embed': dict(decay_mult=0.0),
            '.position_bias.': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),  # of a stock Swin
        },
    ),
)
warmup = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000)  # as in Swin's detectors
steps = dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11], gamma=0.1, begin=0, end=max_epochs)
param_scheduler = [warmup, steps]
auto_scale_lr = dict(base_batch_size=16)
