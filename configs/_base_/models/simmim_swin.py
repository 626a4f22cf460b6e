# SimMIM with a Swin encoder, the baseline of UM-MAE: the encoder gets all tokens, the targets are raw pixels, the loss
# is L1. A leaf sets the image size of its data.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMSimMIM',
    backbone=dict(type='mm_ummae.UMSwin', arch='tiny', window_size=16, mask_token=True),
    head=dict(type='mm_ummae.UMSimMIMHead', in_channels=768, norm_pix=False),
)
