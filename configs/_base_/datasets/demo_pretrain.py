# 2,000 generated images of 128 px for the demo's pre-training (python -m demo.make_data).
_base_ = ['./imagenet_pretrain_256px.py']

data_root = 'data/demo/imagenet/'
data_prefix = 'unlabelled'
image_size = 128  # pixels
batch_size = 16
crop = dict(_base_.crop, scale=image_size)
train_pipeline = [dict(type='mm_ummae.LoadCompleteImage'), crop, dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(data_root=data_root, data_prefix=data_prefix, pipeline=train_pipeline),
)
