# Handwritten digits on photographs, as ADE20K: 10 digits and 10 backgrounds (tools/make_demo_data.py)
data_root = 'data/demo/ade/'
metainfo = dict(
    classes=(
        'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine',
        'brick', 'cat', 'coins', 'galaxies', 'grass', 'gravel', 'motorcycle', 'page', 'pagoda', 'tissue',
    ),
    palette=[
        [255, 25, 25], [255, 163, 25], [209, 255, 25], [71, 255, 25], [25, 255, 117],
        [25, 255, 255], [25, 117, 255], [71, 25, 255], [209, 25, 255], [255, 25, 163],
        [153, 110, 92], [153, 147, 92], [122, 153, 92], [92, 153, 98], [92, 153, 135],
        [92, 135, 153], [92, 98, 153], [122, 92, 153], [153, 92, 147], [153, 92, 110],
    ],
)  # fmt: skip
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=metainfo,
        reduce_zero_label=True,
        img_suffix='.jpg',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=metainfo,
        reduce_zero_label=True,
        img_suffix='.jpg',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
