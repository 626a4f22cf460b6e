# UM-MAE with a Swin encoder: a leaf sets the architecture and the decoder's depth.
model = dict(
    type='mm_ummae.UMMAE',
    secondary_ratio=0.25,  # share of the sampled units that is hidden again
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='mm_ummae.UMSwin', arch='tiny', img_size=256, window_size=16, secondary_token=True),
    neck=dict(type='mm_ummae.UMMAEDecoder', in_channels=768, embed_dims=512, depth=2, num_heads=16, img_size=256),
    head=dict(type='mm_ummae.UMMAEHead', in_channels=512, norm_pix=True),
)
