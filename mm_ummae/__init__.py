"""mm_ummae: Uniform Masking pre-training of pyramid vision transformers on OpenMMLab 2.x."""

from .compatibility import check_versions
from .version import __version__

check_versions()

__all__ = ['__version__']
