# COCO, 12 epochs, batch 16, AdamW in mixed precision; steps at epochs 8 and 11.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py']

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # No decay on biases, on any one-dimensional parameter and on positions. A layer_decay_rate below 1 lowers the rate
    # of each block of the backbone by that factor against the next one's.
    constructor='mm_ummae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.pos_embed': dict(decay_mult=0.0), '.position_bias.': dict(decay_mult=0.0)},
    ),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000  # iterations of warm-up, as in Swin's detectors
auto_scale_lr = dict(base_batch_size=16)
