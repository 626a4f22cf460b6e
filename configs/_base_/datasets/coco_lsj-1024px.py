# COCO boxes, large-scale jitter of 0.1 to 2 with crops of 1024 px, tests at 1333x800.
_base_ = ['mmdet::_base_/datasets/coco_detection.py']

num_classes = 80
crop_size = (1024, 1024)  # height and width in pixels
load_image = dict(type='mm_ummae.LoadCompleteImage', imdecode_backend='cv2')  # detects truncated files
train_pipeline = [
    load_image,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=crop_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# All crops have the same size, so the images need no grouping by aspect ratio
train_dataloader = dict(batch_sampler=None, dataset=dict(pipeline=train_pipeline))
