# SimMIM baseline of the demo's pre-training, for the ablations (tools/ablations.py): all tokens go in.
#   mim train mmpretrain configs/demo/simmim_swin-test_1xb64-coslr-20e_demo-128px.py
_base_ = ['./ummae_swin-test_1xb64-coslr-20e_demo-128px.py']

model = dict(
    _delete_=True,
    type='mm_ummae.UMSimMIM',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    backbone=dict(type='mm_ummae.UMSwin', arch='test', img_size=128, window_size=16, mask_token=True),
    head=dict(type='mm_ummae.UMSimMIMHead', in_channels=256),
)
