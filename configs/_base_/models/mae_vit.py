# MMPretrain's MAE, ViT-B/16 with a decoder of 8 blocks, with the preprocessing of all pre-training here. A leaf sets
# the image size of its data and the number of patches.
_base_ = ['mmpretrain::_base_/models/mae_vit-base-p16.py']

# Repeats pretrain_preprocessor.py, because two bases of one config cannot both have a `model`
model = dict(
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(arch='base'),
)
