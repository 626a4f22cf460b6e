# UM-MAE with a Swin encoder. A leaf sets the image size of its data and, for architectures other than Swin-T, the
# encoder's width and the decoder's depth.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMMAE',
    secondary_ratio=0.25,  # share of the sampled units that is hidden again
    backbone=dict(type='mm_ummae.UMSwin', arch='tiny', window_size=16, secondary_token=True),
    neck=dict(type='mm_ummae.UMMAEDecoder', in_channels=768, embed_dims=512, depth=2, num_heads=16),
    head=dict(type='mm_ummae.UMMAEHead', in_channels=512, norm_pix=True),
)
