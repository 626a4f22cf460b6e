# Runtime settings of detectors.
_base_ = ['mmdet::_base_/default_runtime.py', './coco_tta.py']

runner_type = 'mm_ummae.ResumableRunner'  # safe checkpoints, exact resume, stops at NaN and on signals
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3))  # epochs
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
