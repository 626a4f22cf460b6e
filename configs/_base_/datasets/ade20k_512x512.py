# ADE20K with crops of 512 px. models/upernet_um-swin.py says why it is not inherited from mmseg.
data_root = 'data/ade/ADEChallengeData2016'
num_classes = 150
crop_size = (512, 512)  # height and width in pixels
image_scale = (2048, 512)  # pixels: limits of an image's long and short side
tta_ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # scales of tools/test.py --tta, each also flipped

load_complete = dict(type='mm_ummae.LoadCompleteImage', imdecode_backend='cv2')  # detects truncated files
load_image = dict(type='LoadImageFromFile')  # MMSegmentation's inferencer looks for it by its name
load_labels = dict(type='LoadAnnotations', reduce_zero_label=True)
augmentation = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]
pack = dict(type='PackSegInputs')
tta_flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]

train_pipeline = [
    load_complete,
    load_labels,
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *augmentation,
    pack,
]
# The ground truth is loaded after Resize, so that it is not resized
test_pipeline = [load_image, dict(type='Resize', scale=image_scale, keep_ratio=True), load_labels, pack]
tta_resizes = [
    dict(type='Resize', scale=tuple(int(side * ratio) for side in image_scale), keep_ratio=True) for ratio in tta_ratios
]
tta_pipeline = [
    load_image,
    dict(type='TestTimeAug', transforms=[tta_resizes, tta_flips, [load_labels], [pack]]),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
