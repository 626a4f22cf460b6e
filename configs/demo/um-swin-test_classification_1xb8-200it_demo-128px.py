# Classification of the demo: which of ten photographs does a grey crop come from?
#   python tools/train.py configs/demo/um-swin-test_classification_1xb8-200it_demo-128px.py
_base_ = [
    '../_base_/models/demo_classifier.py',
    '../_base_/datasets/demo_classification.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(img_size=_base_.image_size, init_cfg=dict(checkpoint=_base_.pretrained)),
    head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
max_iters = 200
cosine = dict(_base_.cosine, end=max_iters)
param_scheduler = [_base_.warmup, cosine]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
runner_type = 'mm_ummae.ResumableRunner'
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
log_processor = dict(by_epoch=False)
default_hooks = _base_.finetune_hooks
