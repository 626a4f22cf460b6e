"""Data-loading throughput of a config's training pipeline: from files to collated batches on one CPU core."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, DefaultScope
from torch.utils.data import DataLoader, RandomSampler

from .measuring import Settings, at_least
from .networks import SEED


def build_loader(config: Config, batch: int, batches: int, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """Build the training loader of a config, with epochs of a fixed number of random batches.

    Args:
        config (Config): Its dataset, pipeline and collate function are used; it is not changed.
        batch (int): Files of a batch.
        batches (int): Batches of an epoch, whatever the number of files.
        workers (int): Processes; with 0 the calling process loads. Default 0.
        pin_memory (bool): For copies to a GPU. Default False.
    Returns:
        DataLoader: Its ``generator`` draws the order of the files.
    Raises:
        ValueError: If the config has no training data.
    """
    if config.get('train_dataloader') is None:
        raise ValueError(f'the config {config.filename} has no train_dataloader, but its pipeline is what is measured')
    settings = copy.deepcopy(config.train_dataloader)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(settings.dataset)
        collate = FUNCTIONS.get(settings.get('collate_fn', {}).get('type', 'pseudo_collate'))
    generator = torch.Generator().manual_seed(SEED)
    return DataLoader(
        dataset,
        batch,
        sampler=RandomSampler(dataset, num_samples=batch * batches, generator=generator),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=generator,
    )


def measure_loading(
    configs: Mapping[str, Config],
    batch: int = 32,
    batches: int = 8,
    settings: Settings | None = None,
    *,
    beside: Mapping[str, Callable[[], Any]] | None = None,
) -> list[dict[str, Any]]:
    """Measure how many images per second one core loads with the training pipeline of each config.

    Each run loads the same files in the same order with the same seed, so that pipelines which draw alike crop the
    same boxes. It has one process and one thread. After the warm-up, files come from the system's cache.

    Args:
        configs (Mapping[str, Config]): From :func:`~mm_ummae.analysis.read_config`, by name, with their data in place.
        batch (int): Files of a batch. Default 32.
        batches (int): Batches of a run. Default 8.
        settings (Settings, optional): Rounds; device and precision have no effect.
        beside (Mapping[str, Callable[[], Any]], optional): Other callables to time in the same rounds; each has to
            process ``batch * batches`` files.
    Returns:
        list[dict[str, Any]]: For JSON: ``name`` and ``images_per_second``, one value a round, counting each sample of a
        file; of configs also ``pipeline``, the names of its transforms.
    Raises:
        ValueError: If an argument is illegal, or a config has no training data.
    """
    at_least(1, configs=len(configs), batch=batch, batches=batches)
    loaders = {name: build_loader(config, batch, batches) for name, config in configs.items()}
    runs = {name: partial(_load, loader) for name, loader in loaders.items()}
    with single_thread():
        times = (settings or Settings()).time({**runs, **(beside or {})})
    rows = []
    for name, seconds in times.items():
        dataset = loaders[name].dataset if name in loaders else None
        images = batch * batches * getattr(dataset, 'repeats', 1)
        rows.append(dict(name=name, images_per_second=[images / each for each in seconds]))
        if dataset is not None:
            rows[-1]['pipeline'] = [type(step).__name__ for step in dataset.pipeline.transforms]
    return rows


def _load(loader: DataLoader) -> None:
    loader.generator.manual_seed(SEED)
    np.random.seed(SEED)
    for _ in loader:
        pass


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for PyTorch and OpenCV; threads and NumPy's random state are restored afterwards."""
    threads, cv2_threads, state = torch.get_num_threads(), cv2.getNumThreads(), np.random.get_state()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
        np.random.set_state(state)
