# Runtime settings of MMPretrain's MAE, which draws no reconstructions.
_base_ = ['./pretrain_runtime.py']

custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook'), dict(type='mm_ummae.LearningHook', interval=20)]
