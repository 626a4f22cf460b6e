# UMSwin-T as the backbone of detectors and segmentors: the maps of all stages, without the last norm.
um_swin = dict(
    type='mm_ummae.UMSwin',
    arch='tiny',
    # Nominal size, which decides where windows stop growing and shifting: that of the published detectors, whose
    # training crops have 1024 px. With windows of 16 tokens every size above 512 px has the same windows.
    img_size=1024,
    window_size=16,
    out_indices=(0, 1, 2, 3),
    final_norm=False,
    drop_path_rate=0.1,
    # Give the initial weights with --cfg-options model.backbone.init_cfg.checkpoint=...
    init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
)
