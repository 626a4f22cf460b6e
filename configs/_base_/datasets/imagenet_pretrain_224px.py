# ImageNet-1K images for pre-training at 224 px.
_base_ = ['./imagenet_pretrain_256px.py']

image_size = 224  # pixels
crop = dict(_base_.crop, scale=image_size)
train_pipeline = [dict(type='mm_ummae.LoadCompleteImage'), crop, dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
