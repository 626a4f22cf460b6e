# Runtime settings of pre-training.
_base_ = ['mmpretrain::_base_/default_runtime.py']

runner_type = 'mm_ummae.ResumableRunner'  # safe checkpoints, exact resume, stops at NaN and on signals
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),  # iterations
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=3),  # epochs
)
custom_hooks = [
    dict(type='mm_ummae.CheckpointKeysHook'),
    # Sheets of images and reconstructions, saved in vis_data/vis_image and shown by every other backend of the
    # visualizer, such as TensorboardVisBackend
    dict(type='mm_ummae.ReconstructionHook', interval=20),  # epochs
    # Is it learning? Measures of frozen features; with labelled='FOLDER', one subfolder for each class, also probes
    dict(type='mm_ummae.LearningHook', interval=20),  # epochs
]
# Masks are drawn on each device, so each rank needs its own seed.
randomness = dict(seed=0, diff_rank_seed=True)
