# SimMIM with a Swin encoder, the baseline of UM-MAE: all tokens go in, raw pixels, L1.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMSimMIM',
    backbone=dict(type='mm_ummae.UMSwin', arch='tiny', img_size=256, window_size=16, mask_token=True),
    head=dict(type='mm_ummae.UMSimMIMHead', in_channels=768, norm_pix=False),
)
