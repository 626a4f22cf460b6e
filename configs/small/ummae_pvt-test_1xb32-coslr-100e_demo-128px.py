# Pre-training of the stored weights um-pvt-test: as that of um-swin-test, with a PVT encoder and smaller batches, which
# learn more in the same time; less than an hour on one core.
#   python -m demo.make_data
#   python tools/train.py configs/small/ummae_pvt-test_1xb32-coslr-100e_demo-128px.py
_base_ = ['./ummae_swin-test_1xb64-coslr-100e_demo-128px.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.UMPVT',
        arch='test',
        img_size=_base_.image_size,
        learn_positions=False,
        secondary_token=True,
    ),
    neck=dict(in_channels=128),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
