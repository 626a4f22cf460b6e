"""Backbones, necks, heads and algorithms; importing this package registers them."""

from .backbones import UMPVT, LoMaRBEiTViT, LoMaRViT, PlainViT, PyramidBackbone, UMBackbone, UMSwin, UMViT
from .data_preprocessors import AnyChannelsClsPreprocessor, AnyChannelsPreprocessor
from .heads import LoMaRHead, UMMAEHead, UMSimMIMHead
from .layers import GlobalAttention
from .necks import (
    AvgPoolNorm,
    LoMaRDecoder,
    PixelDecoder,
    SimpleFeaturePyramid,
    StageProjection,
    UMMAEDecoder,
    UMViTDecoder,
)
from .selfsup import UMMAE, LoMaR, LoMaRBEiT, MaskedPixelModel, UMSimMIM

__all__ = [
    'UMMAE',
    'UMPVT',
    'AnyChannelsClsPreprocessor',
    'AnyChannelsPreprocessor',
    'AvgPoolNorm',
    'GlobalAttention',
    'LoMaR',
    'LoMaRBEiT',
    'LoMaRBEiTViT',
    'LoMaRDecoder',
    'LoMaRHead',
    'LoMaRViT',
    'MaskedPixelModel',
    'PixelDecoder',
    'PlainViT',
    'PyramidBackbone',
    'SimpleFeaturePyramid',
    'StageProjection',
    'UMBackbone',
    'UMMAEDecoder',
    'UMMAEHead',
    'UMSimMIM',
    'UMSimMIMHead',
    'UMSwin',
    'UMViT',
    'UMViTDecoder',
]
