# ImageNet-1K with labels for ViT: tests resize the short side to 256 px and crop the central 224 px.
_base_ = ['./imagenet_finetune_256px.py']

image_size = 224  # pixels
random_crop = dict(_base_.random_crop, scale=image_size)
train_pipeline = [_base_.load_complete, random_crop, *_base_.augmentation, dict(type='PackInputs')]
test_pipeline = [_base_.load, _base_.resize, dict(type='CenterCrop', crop_size=image_size), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
