# UperNet on UMSwin-T. A linear layer (a 1x1 convolution) projects each stage to the same width. A leaf sets the crop
# size and the number of classes of its data. Written out and not inherited: `mmseg::` bases cannot be found where
# MMSegmentation is installed as onedl-mmsegmentation, because MMEngine looks for a distribution called mmsegmentation.
_base_ = ['../backbones/um-swin_dense.py']

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=_base_.um_swin,
    neck=dict(
        type='mm_ummae.StageProjection',
        in_channels=[96, 192, 384, 768],
        out_channels=768,
        with_norm=False,
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', stride=(341, 341)),
)
