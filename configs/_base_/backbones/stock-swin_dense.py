# The hosts' Swin-T as the backbone of detectors and segmentors, as in their own configs; a model gives the network's
# `type`. In UMBackbone it loads strictly, from weights of any code base.
stock_swin = dict(
    type='mm_ummae.UMBackbone',
    # Give the pre-trained weights with --cfg-options model.backbone.init_cfg.checkpoint=...
    init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone'),
)
stock_swin_network = dict(
    embed_dims=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    drop_path_rate=0.1,
    out_indices=(0, 1, 2, 3),
)
