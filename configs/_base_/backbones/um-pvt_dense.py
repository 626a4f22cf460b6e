# UMPVT-S as the backbone of detectors and segmentors: the maps of all stages, without the last norm.
um_pvt = dict(
    type='mm_ummae.UMPVT',
    arch='small',
    # Nominal size, that of the position embedding: the published detectors keep that of pre-training and resize it to
    # each input. It is learned, so a larger one would be another set of parameters.
    img_size=256,
    out_indices=(0, 1, 2, 3),
    final_norm=False,
    drop_path_rate=0.1,
    # Give the initial weights with --cfg-options model.backbone.init_cfg.checkpoint=...
    init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
)
