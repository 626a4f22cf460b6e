# Runtime settings of ImageNet fine-tuning.
_base_ = ['mmpretrain::_base_/default_runtime.py']

runner_type = 'mm_ummae.ResumableRunner'  # safe checkpoints, exact resume, stops at NaN and on signals
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=5, max_keep_ckpts=3))  # epochs
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
# Each rank needs its own seed for augmentation and drop path.
randomness = dict(seed=0, diff_rank_seed=True)
