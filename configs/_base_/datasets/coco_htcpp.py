# COCO with COCO-Stuff maps for HTC++: InstaBoost, short side of 400 to 1400 px, long side of at most 1600.
_base_ = ['mmdet::_base_/datasets/coco_instance.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mm_ummae.MoveStuff'),
    dict(type='RandomResize', scale=[(1600, 400), (1600, 1400)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    num_workers=4,
    dataset=dict(
        type='mm_ummae.CocoStuffDataset',
        data_prefix=dict(seg='stuffthingmaps/train2017/'),
        pipeline=train_pipeline,
    ),
)
