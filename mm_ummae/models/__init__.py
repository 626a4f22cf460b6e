"""Backbones, necks, heads and algorithms; importing this package registers them."""

from .feature_pyramid import SimpleFeaturePyramid
from .global_attention import GlobalAttention
from .lomar import LoMaR
from .lomar_beit import LoMaRBEiT, LoMaRBEiTViT
from .lomar_decoder import LoMaRDecoder
from .lomar_vit import LoMaRViT
from .necks import AvgPoolNorm, StageProjection
from .um_decoder import UMMAEDecoder, UMViTDecoder
from .um_head import LoMaRHead, UMMAEHead, UMSimMIMHead
from .um_mae import UMMAE, UMSimMIM
from .um_pvt import UMPVT
from .um_swin import UMSwin
from .um_vit import UMViT

__all__ = [
    'UMMAE',
    'UMPVT',
    'AvgPoolNorm',
    'GlobalAttention',
    'LoMaR',
    'LoMaRBEiT',
    'LoMaRBEiTViT',
    'LoMaRDecoder',
    'LoMaRHead',
    'LoMaRViT',
    'SimpleFeaturePyramid',
    'StageProjection',
    'UMMAEDecoder',
    'UMMAEHead',
    'UMSimMIM',
    'UMSimMIMHead',
    'UMSwin',
    'UMViT',
    'UMViTDecoder',
]
