"""UM-MAE and LoMaR pre-training of pyramid and plain vision transformers on OpenMMLab 2.x."""

from typing import Any

from .compatibility import check_versions
from .resources import config_path
from .version import __version__

check_versions()

# Imported from `apis` on first use: PyTorch and MMPretrain take seconds
_APIS = ('FeatureExtractor', 'get_model', 'inference_model', 'list_models', 'register_models')
_COMMANDS = ('embed', 'finetune', 'predict', 'pretrain')  # likewise from `commands`

__all__ = ['__version__', 'config_path', *_APIS, *_COMMANDS]


def __getattr__(name: str) -> Any:
    if name in _APIS:
        from . import apis

        return getattr(apis, name)
    if name in _COMMANDS:
        from . import commands

        return getattr(commands, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_APIS, *_COMMANDS})
