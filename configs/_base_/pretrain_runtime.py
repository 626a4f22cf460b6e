# Run-time of pre-training.
_base_ = ['mmpretrain::_base_/default_runtime.py']

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),  # iterations
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=3),  # epochs
)
custom_hooks = [
    dict(type='mm_ummae.CheckpointKeysHook'),
    # Sheets of images and reconstructions, in vis_data/vis_image and in every other backend of the visualizer, such as
    # TensorboardVisBackend
    dict(type='mm_ummae.ReconstructionHook', interval=20),  # epochs
]
# Masks are drawn on each device: ranks need seeds of their own.
randomness = dict(seed=0, diff_rank_seed=True)
