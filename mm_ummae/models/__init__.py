"""Backbones, necks, heads and algorithms; importing this package registers them."""

from .necks import AvgPoolNorm, StageProjection
from .um_decoder import UMMAEDecoder
from .um_head import UMMAEHead
from .um_mae import UMMAE
from .um_swin import UMSwin

__all__ = ['UMMAE', 'AvgPoolNorm', 'StageProjection', 'UMMAEDecoder', 'UMMAEHead', 'UMSwin']
