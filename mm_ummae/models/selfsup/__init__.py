"""Self-supervised algorithms."""

from .lomar import LoMaR
from .lomar_beit import LoMaRBEiT
from .masked_pixel_model import MaskedPixelModel
from .simmim import UMSimMIM
from .um_mae import UMMAE

__all__ = ['UMMAE', 'LoMaR', 'LoMaRBEiT', 'MaskedPixelModel', 'UMSimMIM']
