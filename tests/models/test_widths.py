"""Widths of the parts of a host's model: one that does not fit is an error at build."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mm_ummae.models.widths import check_widths
from mm_ummae.registry import MODELS
from tests.builders import VIT
from tests.runs import CLASSIFY, leaf

GAP = dict(type='GlobalAveragePooling')
LINEAR = dict(type='LinearClsHead', num_classes=3, in_channels=16)
MASK_RCNN, UPERNET = (leaf(f'demo/{name}_um-swin-test_*') for name in ('mask-rcnn', 'upernet'))


def build(cfg: dict, scope: str = 'mmpretrain') -> nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg)


@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        (
            CLASSIFY,
            dict(neck=dict(in_channels=128)),
            r'neck\.in_channels of AvgPoolNorm is 128, .*neck\.in_channels=256$',
        ),
        (
            CLASSIFY,
            dict(head=dict(in_channels=128)),
            r'head\.in_channels of LinearClsHead is 128, .*head\.in_channels=256$',
        ),
        (CLASSIFY, dict(backbone=dict(out_indices=(2,))), r'AvgPoolNorm is 256, .*neck\.in_channels=128$'),
        (
            UPERNET,
            dict(neck=dict(in_channels=[128, 128])),
            r'StageProjection is \[128, 128\], .*=\[128, 256\]$',
        ),
        (MASK_RCNN, dict(backbone=dict(out_indices=(0, 1, 2))), r'StageProjection is .*=\[32, 64, 128\]$'),
    ],
)
def test_pyramids(path: str, change: dict, message: str) -> None:
    cfg = Config.fromfile(path)
    check_widths(build(cfg.model, cfg.default_scope))
    cfg.merge_from_dict(dict(model=change))
    model = build(cfg.model, cfg.default_scope)
    with pytest.raises(ValueError, match=message):
        check_widths(model)


@pytest.mark.parametrize(
    'model',
    [
        dict(
            backbone=dict(type='mm_ummae.UMViT', out_type='cls_token'),
            head=dict(LINEAR, type='VisionTransformerClsHead'),
        ),
        dict(backbone=dict(type='mm_ummae.LoMaRViT'), neck=GAP, head=LINEAR),
        dict(backbone=dict(type='mm_ummae.LoMaRBEiTViT', out_type='avg_featmap'), head=LINEAR),
        dict(backbone=dict(type='mm_ummae.UMViT'), neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=16), head=LINEAR),
    ],
    ids=['UMViT', 'LoMaRViT', 'LoMaRBEiTViT', 'AvgPoolNorm'],
)
def test_plain_vits(model: dict) -> None:
    model = dict(model, type='ImageClassifier', backbone=dict(model['backbone'], arch=VIT, img_size=64))
    check_widths(build(model))
    model['head'] = dict(model['head'], in_channels=32)
    with pytest.raises(
        ValueError, match=r'^head\.in_channels of \w+Head is 32, .*has 16 .*set model\.head\.in_channels=16$'
    ):
        check_widths(build(model))


def test_feature_pyramid() -> None:
    backbone = MODELS.build(dict(type='UMViT', arch=VIT, img_size=64))
    for channels, fits in ((16, True), (32, False)):
        model = nn.Module()
        model.backbone = backbone
        model.neck = nn.Sequential(MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=channels)), nn.ReLU())
        if fits:
            check_widths(model)
        else:
            with pytest.raises(ValueError, match=r'neck\.in_channels of SimpleFeaturePyramid is 32, .*in_channels=16$'):
                check_widths(model)


def test_other_backbones_are_not_looked_at() -> None:
    backbone = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
    check_widths(build(dict(type='ImageClassifier', backbone=backbone, neck=GAP, head=LINEAR)))
