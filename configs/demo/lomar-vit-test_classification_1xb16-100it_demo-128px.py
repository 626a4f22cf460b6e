# Classification of the demo with LoMaR's ViT: which of ten photographs does a grey crop come from?
#   python tools/train.py configs/demo/lomar-vit-test_classification_1xb16-100it_demo-128px.py
_base_ = [
    '../_base_/models/demo_classifier.py',
    '../_base_/datasets/demo_classification.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    'mmpretrain::_base_/default_runtime.py',
]

pretrained = 'work_dirs/lomar_vit-test_1xb32-coslr-10e_demo-128px/epoch_10.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.LoMaRViT',
        arch='test',
        img_size=_base_.image_size,
        patch_size=8,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone'),
    ),
    neck=dict(in_channels=96),
    head=dict(num_classes=_base_.num_classes, in_channels=96),
)
runner_type = 'mm_ummae.ResumableRunner'
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
log_processor = dict(by_epoch=False)
default_hooks = _base_.finetune_hooks
