# Test-time augmentation of detectors (tools/test.py --tta): short sides of 800 to 1400 px, each also flipped.
custom_imports = dict(imports=['mm_ummae.detection'], allow_failed_imports=False)

tta_model = dict(
    type='mm_ummae.InstanceTTAModel',  # boxes and masks; a detector without masks takes MMDetection's DetTTAModel
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
# The long side is at most 5/3 of the short one, as in the test at 1333x800
tta_resizes = [dict(type='Resize', scale=(5 * side // 3, side), keep_ratio=True) for side in (800, 1000, 1200, 1400)]
tta_flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
tta_pack = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'),
)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[tta_resizes, tta_flips, [tta_pack]]),
]
