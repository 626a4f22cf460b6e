# Classification of the demo: which of ten photographs does a grey crop come from?
#   python tools/train.py configs/demo/um-swin-test_classification_1xb16-100it_demo-128px.py
_base_ = [
    '../_base_/datasets/demo_classification.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mm_ummae.UMSwin',
        arch='test',
        img_size=_base_.image_size,
        window_size=16,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.pretrained, prefix='backbone'),
    ),
    neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=256),
    head=dict(type='LinearClsHead', num_classes=_base_.num_classes, in_channels=256),
)
runner_type = 'mm_ummae.ResumableRunner'
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
log_processor = dict(by_epoch=False)
default_hooks = _base_.finetune_hooks
