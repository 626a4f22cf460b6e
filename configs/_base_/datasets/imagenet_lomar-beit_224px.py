# MMPretrain's recipe of BEiT with this project's ImageNet-1K loader: a sample has an image for the network and one for
# the tokenizer, and the model draws the masks. The loader is written out: one that is inherited through `mmpretrain::`
# carries `_scope_` into `collate_fn`, which then fails. It stands in a child of the recipe, because two bases of one
# config cannot both have a loader.
_base_ = ['mmpretrain::beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py']

data_root = 'data/imagenet/'
image_size = 224  # pixels
second_size = image_size // 2  # pixels of the tokenizer's image: 8 px per token give as many tokens as patches
batch_size = 256  # images per GPU
num_workers = 8  # loader processes per GPU

train_pipeline = [
    dict(type='mm_ummae.LoadCompleteImage'),  # detects truncated files
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandomResizedCropAndInterpolationWithTwoPic',
        size=image_size,
        second_size=second_size,
        interpolation='bicubic',
        second_interpolation='lanczos',
        scale=(0.08, 1.0),
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mm_ummae.PretrainImages',
        data_root=data_root,
        data_prefix='train',
        max_bad_share=0.01,  # a larger share of files that cannot be decoded stops the run
        pipeline=train_pipeline,
    ),
)
