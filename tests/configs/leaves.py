"""The leaf configs: reading them and building them at full size without memory, on the `meta` device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
# Recipes; those of custom/ are templates for own data (tests/commands)
LEAVES = sorted(path for path in CONFIGS.rglob('*.py') if not {'_base_', 'custom'} & set(path.parts))
METAFILES = {path: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob('*/metafile.yml'))}
ENTRIES = {entry['Name']: entry for content in METAFILES.values() for entry in content['Models']}
read = cache(Config.fromfile)


def is_small(path: Path) -> bool:
    """Whether it trains a small network on generated images."""
    return path.parent.name in ('demo', 'small')


def leaf(pattern: str) -> Path:
    """The only leaf whose file name without suffix has this pattern."""
    (path,) = (path for path in LEAVES if fnmatch(path.stem, pattern))
    return path


def config(path: Path, options: dict[str, Any] | None = None) -> Config:
    """A copy for the test to change, with the values of ``--cfg-options``."""
    cfg = copy.deepcopy(read(path))
    cfg.merge_from_dict(options or {})
    return cfg


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """As the host's runner builds it: only the default scope is known. On `meta` parameters have no values."""
    if 'data_preprocessor' in cfg:  # the runner puts it into the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device), numbers_on_cpu():
        return MODELS.build(cfg.model)


@contextmanager
def numbers_on_cpu() -> Iterator[None]:
    """Hosts read numbers of ``torch.linspace`` in constructors, of which there are none on `meta`."""
    original = torch.linspace
    torch.linspace = lambda *args, **kwargs: original(*args, **{**kwargs, 'device': 'cpu'})
    try:
        yield
    finally:
        torch.linspace = original


_MODELS: dict[str, nn.Module] = {}


@cache
def full_model(path: Path) -> nn.Module:
    """The model at full size, on `meta`; shared by leaves that differ in their tests alone, so not to be changed."""
    cfg = config(path)
    key = str([{**cfg.model, 'test_cfg': None}, cfg.get('data_preprocessor')])
    if key not in _MODELS:
        _MODELS[key] = build_model(cfg)
    return _MODELS[key]


def build_optimizer(cfg: Config, model: nn.Module) -> OptimWrapper:
    """The config's optimizer; in full precision, because mixed precision needs a GPU."""
    plain = ConfigDict({key: value for key, value in cfg.optim_wrapper.items() if key != 'loss_scale'})
    plain.type = 'OptimWrapper'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(model, plain)
