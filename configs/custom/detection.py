# Mask R-CNN of your own classes, from COCO files. Copy this file, change the values at the top, and train it:
#   mim train ummae my_detector.py --gpus 1
# `python -m mm_ummae finetune --task detection` writes such a file for your data (docs/get_started/own_data.md).
_base_ = __import__('mm_ummae').config_path('mask_rcnn/mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco.py')

data_root = 'data/parts/'
train_file = 'data/parts/annotations/train.json'
val_file = 'data/parts/annotations/val.json'
test_file = val_file
train_images = 'train/'  # below data_root, where the file names of the annotations begin
val_images = 'val/'
test_images = val_images
classes = ('bolt', 'nut', 'washer')  # names of the categories in the order of the files
masks = True  # False: boxes only
checkpoint = 'work_dirs/photos/backbone.pth'  # of a pre-training; None: random weights
image_scale = (1333, 800)  # pixels: limits of an image's long and short side
channels = 3
value_range = None  # of images of more than 8 bits: the values that become 0 and 255
mean = [123.675, 116.28, 103.53]  # of each channel, 0 to 255, RGB
std = [58.395, 57.12, 57.375]
batch_size = 2  # images of an iteration on a device
accumulate = 8  # iterations of an update
lr = 1e-4  # for batch_size * accumulate images, on one device
epochs = 50
warmup = 500  # iterations
val_interval = 5  # epochs between validations and checkpoints
workers = 4  # loader processes of a device
amp = True  # mixed precision, on GPUs
seed = 0

custom_imports = dict(imports=['mm_ummae.detection'], allow_failed_imports=False)
plain = channels == 3 and value_range is None  # read by the hosts, their inferencers and visualizers as they are
load = dict(type='mm_ummae.LoadCompleteImage', imdecode_backend='cv2', channels=channels, value_range=value_range)
load_labels = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
resize = dict(type='Resize', scale=image_scale, keep_ratio=True)
train_pipeline = [load, load_labels, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile') if plain else load,
    resize,
    load_labels,  # behind Resize, so that the ground truth is not resized
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
coco = dict(type='CocoDataset', data_root=data_root, metainfo=dict(classes=classes, palette='random'))
loader = dict(_delete_=True, num_workers=workers, persistent_workers=workers > 0)
train_dataloader = dict(
    **loader,
    batch_size=batch_size,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **coco,
        ann_file=train_file,
        data_prefix=dict(img=train_images),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=1,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**coco, ann_file=val_file, data_prefix=dict(img=val_images), test_mode=True, pipeline=test_pipeline),
)
test_dataloader = dict(
    val_dataloader, dataset=dict(val_dataloader['dataset'], ann_file=test_file, data_prefix=dict(img=test_images))
)
metric = ['bbox', 'segm'] if masks else ['bbox']
val_evaluator = dict(_delete_=True, type='CocoMetric', ann_file=val_file, metric=metric)
test_evaluator = dict(_delete_=True, type='CocoMetric', ann_file=test_file, metric=metric)

model = dict(
    data_preprocessor=dict(
        type='mm_ummae.AnyChannelsDetPreprocessor', mean=mean, std=std, bgr_to_rgb=channels == 3, pad_mask=masks
    ),
    backbone=dict(init_cfg=checkpoint and dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)),
        **(dict(mask_head=dict(num_classes=len(classes))) if masks else dict(mask_head=None, mask_roi_extractor=None)),
    ),
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
