# MMPretrain's MAE, ViT-B/16 with a decoder of 8 blocks, on the images that all pre-training here gets.
_base_ = ['mmpretrain::_base_/models/mae_vit-base-p16.py']

# As in pretrain_preprocessor.py, which cannot stand beside a base of its own `model`
model = dict(
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(arch='base', img_size=224),
    neck=dict(num_patches=196),
)
