"""Training throughput from files: steps that a data loader feeds, and the same steps without it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmengine.config import Config
from torch.utils.data import DataLoader

from .loading import build_loader
from .measuring import Settings, at_least
from .step import TrainingStep


def measure_training(
    configs: Mapping[str, Config],
    batch: int = 16,
    settings: Settings | None = None,
    *,
    workers: int = 1,
    steps: int = 4,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Measure training steps that the data loader of each config feeds, the networks in turn, round by round.

    Each network is also timed without its loader, on a batch that stays on the device. A run with a loader is an epoch
    of ``steps`` steps. Its worker processes are kept, but have loaded nothing when it starts, and are idle while other
    networks are timed. So each run waits for its first batch, which a long epoch does not notice: ``steps`` should be
    several times ``workers``. Files come from the system's cache.

    Args:
        configs (Mapping[str, Config]): From :func:`~mm_ummae.analysis.read_config`, by name, with their data in place.
        batch (int): Files of a step. Default 16.
        settings (Settings, optional): Device, precision and rounds.
        workers (int): Processes of each loader; with 0 the training process loads. Default 1.
        steps (int): Steps of a run. Default 4.
        compiled (bool): Compile the losses with ``torch.compile``. Default False.
    Returns:
        list[dict[str, Any]]: For JSON. Of each network ``name`` and of every round ``images_per_second`` and
        ``images_per_second_without_loader``, counting each sample of a file.
    Raises:
        ValueError: If an argument is illegal, or a config has no training data.
    """
    settings = settings or Settings()
    at_least(1, configs=len(configs), batch=batch, steps=steps)
    at_least(0, workers=workers)
    runs, images = {}, {}
    for name, config in configs.items():
        step = TrainingStep(config, settings, compiled)
        loader = build_loader(config, batch, steps, workers, pin_memory=settings.device == 'cuda')
        step.take(next(iter(build_loader(config, batch, 1))))
        images[name] = steps * len(step.inputs)
        runs[name, 'loader'] = partial(_run_epoch, step, loader)
        runs[name, 'none'] = partial(_run_steps, step, steps)
    times = settings.time(runs)
    return [
        dict(
            name=name,
            images_per_second=[count / seconds for seconds in times[name, 'loader']],
            images_per_second_without_loader=[count / seconds for seconds in times[name, 'none']],
        )
        for name, count in images.items()
    ]


def _run_epoch(step: TrainingStep, loader: DataLoader) -> None:
    for data in loader:
        step.take(data)
        step()


def _run_steps(step: TrainingStep, steps: int) -> None:
    for _ in range(steps):
        step()
