"""mm_ummae: UM-MAE and LoMaR pre-training of pyramid and plain vision transformers on OpenMMLab 2.x."""

from typing import Any

from .compatibility import check_versions
from .version import __version__

check_versions()

# From apis.py on first use: that imports PyTorch and MMPretrain, which takes seconds.
_APIS = ('FeatureExtractor', 'get_model', 'inference_model', 'list_models', 'register_models')

__all__ = ['__version__', *_APIS]


def __getattr__(name: str) -> Any:
    if name in _APIS:
        from . import apis

        return getattr(apis, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_APIS})
