# ImageNet-1K with labels (data/imagenet/{train,val}, lists of files in meta/ or a folder for each class).
# Not inherited from mmpretrain for the reason given in imagenet_pretrain_256px.py.
data_root = 'data/imagenet'
num_classes = 1000
image_size = 256  # pixels of the crops in training and tests
test_edge = 256  # pixels of the short side of test images before the centre crop
bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]

load_complete = dict(type='mm_ummae.LoadCompleteImage')  # detects truncated files
load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
random_crop = dict(type='RandomResizedCrop', scale=image_size, backend='pillow', interpolation='bicubic')
augmentation = [
    dict(type='RandomFlip', prob=0.5),
    # timm's rand-m9-mstd0.5-inc1
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(value) for value in bgr_mean], interpolation='bicubic'),
    ),
    # Noise of unit variance once the image is normalised
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
]
resize = dict(type='ResizeEdge', scale=test_edge, edge='short', backend='pillow', interpolation='bicubic')
train_pipeline = [load_complete, random_crop, *augmentation, dict(type='PackInputs')]
test_pipeline = [load, resize, dict(type='CenterCrop', crop_size=image_size), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageNet', data_root=data_root, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageNet', data_root=data_root, split='val', pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
