# ADE20K with crops of 640 px; the images of training and tests are larger in the same proportion.
_base_ = ['./ade20k_512x512.py']

crop_size = (640, 640)  # height and width in pixels
image_scale = (2560, 640)  # pixels: limits of an image's long and short side

load_image, load_labels, pack = _base_.load_image, _base_.load_labels, _base_.pack
train_pipeline = [
    _base_.load_complete,
    load_labels,
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *_base_.augmentation,
    pack,
]
test_pipeline = [load_image, dict(type='Resize', scale=image_scale, keep_ratio=True), load_labels, pack]
tta_resizes = [
    dict(type='Resize', scale=tuple(int(side * ratio) for side in image_scale), keep_ratio=True)
    for ratio in _base_.tta_ratios
]
tta_pipeline = [
    load_image,
    dict(type='TestTimeAug', transforms=[tta_resizes, _base_.tta_flips, [load_labels], [pack]]),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
