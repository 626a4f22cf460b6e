# Initial weights of the demo's fine-tuning, where the pre-training saves them by default, and its logging.
pretrained = 'work_dirs/ummae_swin-test_1xb16-coslr-20e_demo-128px/epoch_20.pth'
finetune_hooks = dict(
    logger=dict(type='LoggerHook', interval=5, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', interval=1000, by_epoch=False, save_last=True),
)
