"""Fixture of the tools: what reaches a runner without running."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from mmengine.config import Config
from mmengine.runner import Runner


class Built(Exception):
    """Stops a tool where its runner is built; carries the config."""


@pytest.fixture
def config_of(tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The config that reaches the runner of a tool, with ``runner_class``: ``config_of('train', *arguments)``."""

    def stop(cls: type[Runner], cfg: Config) -> None:
        cfg.runner_class = cls.__name__
        raise Built(cfg)

    monkeypatch.setattr(Runner, 'from_cfg', classmethod(stop))

    def run(name: str, *arguments: object) -> Config:
        with pytest.raises(Built) as built:
            tool(name).main([str(argument) for argument in arguments])
        return built.value.args[0]

    return run
