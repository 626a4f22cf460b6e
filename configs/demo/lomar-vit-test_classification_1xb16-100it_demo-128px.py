# Classification of the demo with LoMaR's ViT: which of ten photographs does a grey crop come from?
#   python tools/train.py configs/demo/lomar-vit-test_classification_1xb16-100it_demo-128px.py
_base_ = ['./um-swin-test_classification_1xb16-100it_demo-128px.py']

pretrained = 'work_dirs/lomar_vit-test_1xb32-coslr-10e_demo-128px/epoch_10.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mm_ummae.LoMaRViT',
        arch='test',
        img_size=_base_.image_size,
        patch_size=8,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone'),
    ),
    neck=dict(in_channels=96),
    head=dict(in_channels=96),
)
