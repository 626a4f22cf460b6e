# SimMIM with a PVT encoder, the baseline of UM-MAE; its position embedding is fixed while it pre-trains.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMSimMIM',
    backbone=dict(type='mm_ummae.UMPVT', arch='small', img_size=256, learn_positions=False, mask_token=True),
    head=dict(type='mm_ummae.UMSimMIMHead', in_channels=512, norm_pix=False),
)
