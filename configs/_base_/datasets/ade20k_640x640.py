# ADE20K, 640-px crops of images that are as much larger than for 512-px crops, in tests too.
_base_ = ['./ade20k_512x512.py']

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (2560, 640)
train_pipeline[3].crop_size = (640, 640)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (2560, 640)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2560 * ratio), int(640 * ratio)), keep_ratio=True)
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
