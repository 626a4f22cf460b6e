# COCO for HTC++ without stuff maps: InstaBoost, short side of 400 to 1400 px, long side of at most 1600.
_base_ = ['./coco_instance.py']

scale_range = [(1600, 400), (1600, 1400)]  # pixels: long and short side
train_pipeline = [
    _base_.load_image,
    dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=scale_range, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(num_workers=4, dataset=dict(pipeline=train_pipeline))
