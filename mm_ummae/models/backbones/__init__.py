"""Backbones: pyramids and plain ViTs for masked pre-training and every task after it."""

from .lomar_beit_vit import LoMaRBEiTViT
from .lomar_vit import LoMaRViT
from .plain_vit import PlainViT
from .pyramid import PyramidBackbone
from .um_backbone import UMBackbone
from .um_pvt import UMPVT
from .um_swin import UMSwin
from .um_vit import UMViT

__all__ = [
    'UMPVT',
    'LoMaRBEiTViT',
    'LoMaRViT',
    'PlainViT',
    'PyramidBackbone',
    'UMBackbone',
    'UMSwin',
    'UMViT',
]
