# ImageNet-1K images for pre-training on large images.
_base_ = ['./imagenet_ummae_256px.py']

image_size = 384  # pixels
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = image_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
