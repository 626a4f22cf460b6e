# ImageNet-1K images for pre-training (data/imagenet/train/<class>/*.JPEG; labels are not read). For your own images,
# change the first lines. The loader is not inherited, because through `mmpretrain::` it would carry `_scope_` into
# `collate_fn`, which then fails.
data_root = 'data/imagenet/'
data_prefix = 'train'  # folder of the images, with or without subfolders
image_size = 256  # pixels, a multiple of 32
batch_size = 128  # images per GPU and iteration
num_workers = 8  # loader processes per GPU

crop = dict(
    type='mm_ummae.TorchRandomResizedCrop',
    scale=image_size,
    crop_ratio_range=(0.2, 1.0),
    interpolation='bicubic',
    flip_prob=0.5,
)
train_pipeline = [
    dict(type='mm_ummae.LoadCompleteImage'),  # detects truncated files
    crop,
    dict(type='PackInputs'),  # bytes, BGR: the model's data preprocessor normalises them on its device
]
train_dataloader = dict(
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
        data_prefix=data_prefix,
        max_bad_share=0.01,  # a larger share of files that cannot be decoded stops the run
        repeats=1,  # samples per file and epoch; a batch has batch_size * repeats samples
        pipeline=train_pipeline,
    ),
)
