# SimMIM baseline of the demo's pre-training, for the ablations (tools/ablations.py): all tokens go in.
#   python tools/train.py configs/demo/simmim_swin-test_1xb64-coslr-20e_demo-128px.py
_base_ = ['./ummae_swin-test_1xb64-coslr-20e_demo-128px.py']

model = dict(
    _delete_=True,
    type='mm_ummae.UMSimMIM',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=dict(type='mm_ummae.UMSwin', arch='test', img_size=128, window_size=16, mask_token=True),
    head=dict(type='mm_ummae.UMSimMIMHead', in_channels=256),
)
