"""The leaf configs: reading them and building them at full size without memory, on the `meta` device."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import load
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
LEAVES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
PRETRAINERS = ('mm_ummae.UMMAE', 'mm_ummae.UMSimMIM', 'mm_ummae.LoMaR', 'mm_ummae.LoMaRBEiT', 'MAE')
MASKED = PRETRAINERS[:3]  # those that draw a mask and reconstruct images
# Of the published tables: channels of each stage (a ViT has one)
WIDTHS = {
    ('UMSwin', 'test'): [32, 64, 128, 256],
    ('UMSwin', 'tiny'): [96, 192, 384, 768],
    ('UMSwin', 'base'): [128, 256, 512, 1024],
    ('UMSwin', 'large'): [192, 384, 768, 1536],
    ('UMPVT', 'test'): [32, 64, 80, 128],
    ('UMPVT', 'small'): [64, 128, 320, 512],
    ('UMViT', 'base'): [768],
    ('LoMaRViT', 'test'): [96],
    ('LoMaRViT', 'base'): [768],
    ('MAEViT', 'base'): [768],
    ('BEiTPretrainViT', 'base'): [768],
}


def is_demo(path: Path) -> bool:
    """Whether a leaf is one of the small ones, on generated data."""
    return path.parent.name == 'demo'


def leaf(name: str) -> Path:
    """The only leaf of this file name."""
    (path,) = (path for path in LEAVES if path.stem == name)
    return path


_load = cache(load)


@cache
def read(path: Path) -> Config:
    """The resolved config, shared by all tests; not to be changed."""
    # MMEngine parses every metafile of a host for every base that comes from it: here once
    with mock.patch('mmengine.config.utils.load', _load):
        return Config.fromfile(path)


def config(path: Path, options: dict[str, Any] | None = None) -> Config:
    """A copy for the test to change, with the values of ``--cfg-options``."""
    cfg = copy.deepcopy(read(path))
    cfg.merge_from_dict(options or {})
    return cfg


def backbone_kind(cfg: Config) -> tuple[str, str]:
    """Class and architecture of the backbone."""
    backbone = cfg.model.backbone
    return backbone.type.removeprefix('mm_ummae.'), backbone.arch


def without_sync(cfg: Any) -> None:
    """SyncBN needs a GPU: put BN in its place, at any depth."""
    if isinstance(cfg, dict):
        if cfg.get('type') == 'SyncBN':
            cfg['type'] = 'BN'
        cfg = list(cfg.values())
    if isinstance(cfg, (list, tuple)):
        for value in cfg:
            without_sync(value)


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """As the host's runner builds it: only the default scope is known. On `meta` parameters have no values."""
    without_sync(cfg.model)
    if 'data_preprocessor' in cfg:  # the runner puts it into the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MMENGINE_MODELS.build(cfg.model)


_MODELS: dict[str, nn.Module] = {}


def full_model(path: Path) -> nn.Module:
    """The model of a leaf at full size, on `meta`; leaves of one model share it, so it is not to be changed."""
    cfg = config(path)
    key = repr((cfg.model.to_dict(), cfg.get('data_preprocessor')))
    if key not in _MODELS:
        _MODELS[key] = build_model(cfg)
    return _MODELS[key]


def build_optimizer(cfg: Config, model: nn.Module) -> OptimWrapper:
    """The config's optimizer; in full precision, because mixed precision needs a GPU."""
    plain = ConfigDict({key: value for key, value in cfg.optim_wrapper.items() if key != 'loss_scale'})
    plain.type = 'OptimWrapper'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(model, plain)


def optimizer_groups(path: Path) -> dict[str, dict]:
    """The optimizer's group of every trained parameter of a leaf, by the parameter's name."""
    model = full_model(path)
    groups = {}
    for group in build_optimizer(config(path), model).optimizer.param_groups:
        for parameter in group['params']:
            assert id(parameter) not in groups, 'stepped twice'
            groups[id(parameter)] = group
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(groups) == len(trained)
    return {name: groups[id(parameter)] for name, parameter in trained.items()}


def learning_rates(cfg: Config, epoch_length: int, bases: tuple[float, ...] = (1.0,)) -> list[tuple[float, ...]]:
    """The learning rates of each iteration, with the schedulers built and stepped as MMEngine's runner does.

    Args:
        cfg (Config): Has ``param_scheduler`` and ``train_cfg``.
        epoch_length (int): Iterations of an epoch.
        bases (tuple[float, ...]): Learning rate of each group before any schedule.
    """
    optimizer = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(1))], lr=base) for base in bases], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for scheduler in cfg.param_scheduler
    ]
    iterations = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * epoch_length
    rates = []
    optimizer.step()  # PyTorch asks for one before the first step of a schedule
    for iteration in range(1, iterations + 1):
        rates.append(tuple(group['lr'] for group in optimizer.param_groups))
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates
