# UperNet of your own classes, from label maps. Copy this file, change the values at the top, and train it:
#   mim train ummae my_segmentor.py --gpus 1
# `python -m mm_ummae finetune --task segmentation` writes such a file for your data (docs/get_started/own_data.md).
_base_ = __import__('mm_ummae').config_path('upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py')

data_root = 'data/parts/'
train_images = 'images/train'  # below data_root; a map has the name of its image, with any ending of image files
train_maps = 'labels/train'
val_images = 'images/val'
val_maps = 'labels/val'
test_images = val_images
test_maps = val_maps
train_list = ''  # or a file with a line for each image, its path below the folder of images
val_list = ''
test_list = val_list
map_suffix = ''  # between the name of an image and the ending of its map, such as _mask
classes = ('ground', 'road', 'house')
values = (0, 1, 2)  # of the maps, one for each class
ignored = 255  # value of pixels without a label; None: all have one
checkpoint = 'work_dirs/photos/backbone.pth'  # of a pre-training; None: random weights
crop_size = (512, 512)  # height and width in pixels
channels = 3
value_range = None  # of images of more than 8 bits: the values that become 0 and 255
mean = [123.675, 116.28, 103.53]  # of each channel, 0 to 255, RGB
std = [58.395, 57.12, 57.375]
batch_size = 4  # images of an iteration on a device
accumulate = 4  # iterations of an update
lr = 1e-4  # for batch_size * accumulate images, on one device
epochs = 50
warmup = 500  # iterations
val_interval = 5  # epochs between validations and checkpoints
workers = 4  # loader processes of a device
amp = True  # mixed precision, on GPUs
seed = 0

custom_imports = dict(imports=['mm_ummae.segmentation'], allow_failed_imports=False)
plain = channels == 3 and value_range is None  # read by the hosts, their inferencers and visualizers as they are
load = dict(type='mm_ummae.LoadCompleteImage', imdecode_backend='cv2', channels=channels, value_range=value_range)
load_labels = dict(type='mm_ummae.LoadLabelMap', values=values, ignored=ignored)
image_scale = (4 * crop_size[1], crop_size[0])  # pixels: limits of an image's long and short side
train_pipeline = [
    load,
    load_labels,
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    *([dict(type='PhotoMetricDistortion')] if channels == 3 else []),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile') if plain else load,
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    load_labels,  # behind Resize, so that the ground truth is not resized
    dict(type='PackSegInputs'),
]
pairs = dict(type='mm_ummae.ImageMapPairs', data_root=data_root, metainfo=dict(classes=classes), map_suffix=map_suffix)
loader = dict(_delete_=True, num_workers=workers, persistent_workers=workers > 0)
train_dataloader = dict(
    **loader,
    batch_size=batch_size,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **pairs,
        data_prefix=dict(img_path=train_images, seg_map_path=train_maps),
        ann_file=train_list,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **pairs,
        data_prefix=dict(img_path=val_images, seg_map_path=val_maps),
        ann_file=val_list,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader['dataset'], data_prefix=dict(img_path=test_images, seg_map_path=test_maps), ann_file=test_list
    ),
)
val_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

norm_cfg = dict(type='BN', requires_grad=True)
sync_bn = 'torch'  # its statistics are those of all devices
model = dict(
    data_preprocessor=dict(
        type='mm_ummae.AnyChannelsSegPreprocessor', mean=mean, std=std, bgr_to_rgb=channels == 3, size=crop_size
    ),
    backbone=dict(init_cfg=checkpoint and dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    decode_head=dict(num_classes=len(classes), norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=len(classes), norm_cfg=norm_cfg),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=crop_size, stride=tuple(2 * side // 3 for side in crop_size)),
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
    visualization=dict(draw=plain, interval=20),
)
runner_type = 'mm_ummae.ResumableRunner'
randomness = dict(seed=seed, diff_rank_seed=True)
