"""Duration of training iterations, for comparisons in equal time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from statistics import median

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mm_ummae.analysis import time_interleaved


def seconds_per_iteration(configs: Mapping[str, Config], rounds: int = 5) -> dict[str, float]:
    """Time training iterations of several configs in turn, on one thread: data, forward, backward, optimizer step.

    Args:
        configs (Mapping[str, Config]): By name; not changed.
        rounds (int): Timed iterations of each, after one that is not timed. Default 5.
    Returns:
        dict[str, float]: Median seconds of an iteration. The data are loaded in this process.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = time_interleaved({name: _iteration(config) for name, config in configs.items()}, rounds)
    finally:
        torch.set_num_threads(threads)
    return {name: median(times) for name, times in seconds.items()}


def _iteration(config: Config) -> partial:
    config = Config(config.to_dict())
    config.model.backbone.init_cfg = None
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    # Hosts print notes when their modules are first imported
    with DefaultScope.overwrite_default_scope(config.default_scope), redirect_stdout(io.StringIO()):
        model = MODELS.build(config.model).train()
        batches = iter(Runner.build_dataloader(config.train_dataloader, seed=0))
    return partial(_step, model, OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-4)), batches)


def _step(model: BaseModel, optimizer: OptimWrapper, batches: Iterator[dict]) -> None:
    model.train_step(next(batches), optimizer)
