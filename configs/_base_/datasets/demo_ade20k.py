# Mosaics of grey crops of ten photographs, labelled as in ADE20K (python -m demo.make_data).
# A template for your own data with a label map for each image: label 0 is ignored, label 1 is the first class.
data_root = 'data/demo/ade/'
classes = ('brick', 'cat', 'coins', 'galaxies', 'grass', 'gravel', 'motorcycle', 'page', 'pagoda', 'tissue')
palette = [
    [255, 25, 25], [255, 163, 25], [209, 255, 25], [71, 255, 25], [25, 255, 117],
    [25, 255, 255], [25, 117, 255], [71, 25, 255], [209, 25, 255], [255, 25, 163],
]  # fmt: skip
num_classes = len(classes)
crop_size = (128, 128)  # height and width in pixels: the size of the generated images

metainfo = dict(classes=classes, palette=palette)
load_labels = dict(type='LoadAnnotations', reduce_zero_label=True)
pack = dict(type='PackSegInputs')
train_pipeline = [
    dict(type='mm_ummae.LoadCompleteImage', imdecode_backend='cv2'),  # detects truncated files
    load_labels,
    pack,
]
# MMSegmentation's inferencer looks for LoadImageFromFile by its name
test_pipeline = [dict(type='LoadImageFromFile'), load_labels, pack]
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
