"""Fixtures of the tools: what reaches a runner without running, and checkpoints with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from tests.runs import CLASSIFY, PRETRAIN, SIMMIM


class Built(Exception):
    """Stops a tool where its runner is built."""


@pytest.fixture
def config_of(tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The config that reaches the runner of a tool: ``config_of('train', *arguments)``."""
    seen: list[Config] = []

    def record(cls: type[Runner], cfg: Config) -> None:
        seen.append(cfg)
        raise Built(cls.__name__)

    monkeypatch.setattr(Runner, 'from_cfg', classmethod(record))

    def run(name: str, *arguments: object) -> Config:
        with pytest.raises(Built) as built:
            tool(name).main([str(argument) for argument in arguments])
        seen[-1].runner_class = str(built.value)
        return seen[-1]

    return run


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """From a config of the demo to a checkpoint of its model with random weights."""
    folder = tmp_path_factory.mktemp('checkpoints')
    files = {}
    for seed, path in enumerate((PRETRAIN, SIMMIM, CLASSIFY)):
        cfg = Config.fromfile(path)
        cfg.model.backbone.pop('init_cfg', None)
        torch.manual_seed(seed)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(cfg.model)
        files[path] = folder / f'{path.stem.partition("_")[0]}.pth'
        torch.save(dict(state_dict=model.state_dict()), files[path])
    return files
