# Classifier of the demo. A leaf sets image size, initial weights and the number of classes of its data.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mm_ummae.UMSwin',
        arch='test',
        window_size=16,
        final_norm=False,
        init_cfg=dict(type='Pretrained', prefix='backbone'),
    ),
    neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=256),
    head=dict(type='LinearClsHead', in_channels=256),
)
