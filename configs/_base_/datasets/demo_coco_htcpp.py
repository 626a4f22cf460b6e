# The demo's COCO data with stuff maps, for HTC++: InstaBoost and several sizes, but no flips of digits.
_base_ = ['./demo_coco.py']

num_stuff_classes = 20  # classes of the stuff maps, things included
scale_range = [(128, 96), (128, 128)]  # pixels: long and short side
train_pipeline = [
    _base_.load_image,
    dict(type='mm_ummae.InstaBoost', aug_ratio=0.5),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mm_ummae.MoveStuff'),
    dict(type='RandomResize', scale=scale_range, keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(
        type='mm_ummae.CocoStuffDataset',
        data_prefix=dict(seg='stuffthingmaps/train2017/'),
        pipeline=train_pipeline,
    )
)
