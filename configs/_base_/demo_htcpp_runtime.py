# Runtime settings of the demo's HTC++.
_base_ = ['./htcpp_runtime.py']

# Test-time augmentation at three sizes, without flips, because the objects are digits
tta_resizes = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (112, 128, 144)]
tta_flips = [dict(type='RandomFlip', prob=0.0)]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[tta_resizes, tta_flips, [_base_.tta_pack]]),
]
