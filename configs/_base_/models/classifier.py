# ImageNet classifier of the published fine-tuning: average pooling of the last feature map, LayerNorm and a linear
# layer. A leaf sets the backbone, its width, and the image size and number of classes of its data.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        final_norm=False,
        drop_path_rate=0.1,
        # Give the pre-trained weights with --cfg-options model.backbone.init_cfg.checkpoint=...
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
    ),
    neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=768),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        # Smooths the mixed labels, which equals MAE's smoothing before mixing
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
    ),
    # One of the two per batch, with equal probability
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
