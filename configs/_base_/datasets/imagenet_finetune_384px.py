# ImageNet-1K with labels for large images: tests resize the short side to 384 px and crop the central 384 px.
_base_ = ['./imagenet_finetune_256px.py']

image_size = 384  # pixels
test_edge = 384  # pixels
random_crop = dict(_base_.random_crop, scale=image_size)
resize = dict(_base_.resize, scale=test_edge)
train_pipeline = [_base_.load_complete, random_crop, *_base_.augmentation, dict(type='PackInputs')]
test_pipeline = [_base_.load, resize, dict(type='CenterCrop', crop_size=image_size), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
