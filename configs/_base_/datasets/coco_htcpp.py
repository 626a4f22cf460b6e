# COCO with COCO-Stuff maps for HTC++: InstaBoost, short side of 400 to 1400 px, long side of at most 1600.
_base_ = ['./coco_htcpp-without-semantic.py']

num_stuff_classes = 183  # classes of the stuff maps, things included
train_pipeline = [
    _base_.load_image,
    dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mm_ummae.MoveStuff'),
    dict(type='RandomResize', scale=_base_.scale_range, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(
        type='mm_ummae.CocoStuffDataset',
        data_prefix=dict(seg='stuffthingmaps/train2017/'),
        pipeline=train_pipeline,
    ),
)
