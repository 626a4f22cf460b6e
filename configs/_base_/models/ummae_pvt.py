# UM-MAE with a PVT encoder. The position embedding is fixed during pre-training. A leaf sets the image size of its
# data.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMMAE',
    secondary_ratio=0.25,  # share of the sampled units that is hidden again
    backbone=dict(type='mm_ummae.UMPVT', arch='small', learn_positions=False, secondary_token=True),
    neck=dict(type='mm_ummae.UMMAEDecoder', in_channels=512, embed_dims=512, depth=2, num_heads=16),
    head=dict(type='mm_ummae.UMMAEHead', in_channels=512, norm_pix=True),
)
