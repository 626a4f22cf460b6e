# Run-time of MMPretrain's MAE, which shows no reconstructions.
_base_ = ['./pretrain_runtime.py']

custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
