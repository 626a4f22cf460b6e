# Runtime settings of ViTDet.
_base_ = ['./coco_runtime.py']

# Test-time augmentation only flips: a larger image would not fit into the square of 1024 px
tta_resizes = [dict(type='Resize', scale=(1024, 1024), keep_ratio=True)]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[tta_resizes, _base_.tta_flips, [_base_.tta_pack]]),
]
