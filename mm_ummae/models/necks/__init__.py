"""Necks: decoders of pre-training, and modules between a backbone and the heads of the hosts."""

from .feature_pyramid import SimpleFeaturePyramid
from .lomar_decoder import LoMaRDecoder
from .stage_projection import AvgPoolNorm, StageProjection
from .um_decoder import PixelDecoder, UMMAEDecoder, UMViTDecoder

__all__ = [
    'AvgPoolNorm',
    'LoMaRDecoder',
    'PixelDecoder',
    'SimpleFeaturePyramid',
    'StageProjection',
    'UMMAEDecoder',
    'UMViTDecoder',
]
