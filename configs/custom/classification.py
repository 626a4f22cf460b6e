# A classifier of your own classes. Copy this file, change the values at the top, and train it:
#   mim train ummae my_classifier.py --gpus 1
# `python -m mm_ummae finetune --task classification` writes such a file for your data (docs/get_started/own_data.md).
_base_ = __import__('mm_ummae').config_path('classification/um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px.py')

data_root = 'data/parts/'
train_images = 'train'  # below data_root, with a folder for each class
val_images = 'val'
test_images = val_images
train_list = ''  # or a file with a line "path label" for each image, paths below the folder of images
val_list = ''
test_list = val_list
classes = ('bolt', 'nut', 'washer')  # of folders in alphabetical order
checkpoint = 'work_dirs/photos/backbone.pth'  # of a pre-training; None: random weights
image_size = 256  # pixels
channels = 3
value_range = None  # of images of more than 8 bits: the values that become 0 and 255
mean = [123.675, 116.28, 103.53]  # of each channel, 0 to 255, RGB
std = [58.395, 57.12, 57.375]
batch_size = 16  # images of an iteration on a device
accumulate = 1  # iterations of an update
lr = 2.5e-4  # for batch_size * accumulate images, on one device
epochs = 50
warmup = 100  # iterations
val_interval = 5  # epochs between validations and checkpoints
workers = 4  # loader processes of a device
amp = True  # mixed precision, on GPUs
seed = 0

plain = channels == 3 and value_range is None  # read by the hosts, their inferencers and visualizers as they are
load = dict(type='mm_ummae.LoadCompleteImage', channels=channels, value_range=value_range)
resize = dict(backend='pillow' if channels == 3 else 'cv2', interpolation='bicubic')
flip = dict(type='RandomFlip', prob=0.5)
augmentation = _base_.get('augmentation', [flip]) if channels == 3 else [flip]
train_pipeline = [
    load,
    dict(type='RandomResizedCrop', scale=image_size, crop_ratio_range=(0.3, 1.0), **resize),
    *augmentation,
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow') if plain else load,
    dict(type='ResizeEdge', scale=image_size, edge='short', **resize),
    dict(type='CenterCrop', crop_size=image_size),
    dict(type='PackInputs'),
]
folder = dict(type='CustomDataset', data_root=data_root, metainfo=dict(classes=classes))
loader = dict(
    _delete_=True,
    batch_size=batch_size,
    num_workers=workers,
    persistent_workers=workers > 0,
    collate_fn=dict(type='default_collate'),
)
train_dataloader = dict(
    **loader,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**folder, data_prefix=train_images, ann_file=train_list, pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**folder, data_prefix=val_images, ann_file=val_list, pipeline=test_pipeline),
)
test_dataloader = dict(
    val_dataloader, dataset=dict(val_dataloader['dataset'], data_prefix=test_images, ann_file=test_list)
)
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1, 5) if len(classes) > 5 else (1,))
test_evaluator = val_evaluator

model = dict(
    data_preprocessor=dict(
        type='mm_ummae.AnyChannelsClsPreprocessor',
        num_classes=len(classes),
        mean=mean,
        std=std,
        to_rgb=channels == 3,
    ),
    backbone=dict(init_cfg=checkpoint and dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    head=dict(num_classes=len(classes)),
)
optim_wrapper = dict(
    {key: value for key, value in _base_.optim_wrapper.items() if key not in ('loss_scale', 'dtype')},
    _delete_=True,
    type='AmpOptimWrapper' if amp else 'OptimWrapper',
    accumulative_counts=accumulate,
    optimizer=dict(_base_.optim_wrapper.optimizer, lr=lr),
)
param_scheduler = [
    *([dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=warmup)] if warmup else []),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=val_interval)
auto_scale_lr = dict(base_batch_size=batch_size)  # of --auto-scale-lr, with more devices than one
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=True),
    checkpoint=dict(interval=val_interval, by_epoch=True, max_keep_ckpts=2, save_last=True),
)
runner_type = 'mm_ummae.ResumableRunner'
randomness = dict(seed=seed, diff_rank_seed=True)
