# ImageNet-1K with labels for large images, which are tested whole: 384 px of 384.
_base_ = ['./imagenet_finetune_256px.py']

image_size = 384  # pixels
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size
test_pipeline[2].crop_size = image_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
