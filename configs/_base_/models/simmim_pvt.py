# SimMIM with a PVT encoder, the baseline of UM-MAE. The position embedding is fixed during pre-training. A leaf sets
# the image size of its data.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMSimMIM',
    backbone=dict(type='mm_ummae.UMPVT', arch='small', learn_positions=False, mask_token=True),
    head=dict(type='mm_ummae.UMSimMIMHead', in_channels=512, norm_pix=False),
)
