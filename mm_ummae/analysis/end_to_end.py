"""Pre-training from the file to the update: how many images a second, beside the steps alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from mmengine.dataset import BaseDataset, default_collate
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch.utils.data import DataLoader, RandomSampler

from mm_ummae.analysis.loading import build_training_set, write_images
from mm_ummae.analysis.measuring import at_least, round_ratio, time_interleaved
from mm_ummae.analysis.networks import SEED, Entry
from mm_ummae.analysis.report import environment, markdown_table
from mm_ummae.analysis.training import TrainingStep, check_training, make_step


def benchmark_end_to_end(
    entries: Sequence[Entry],
    image_size: int = 256,
    batch: int = 16,
    *,
    workers: int = 1,
    steps: int = 4,
    pictures: int = 64,
    quality: int = 90,
    device: str = 'cpu',
    dtype: str = 'float32',
    compiled: bool = False,
    rounds: int = 3,
    warmup: int = 1,
) -> dict[str, Any]:
    """Measure pre-training steps that a data loader feeds with JPEG files, by the pipeline of each config.

    Networks are timed in turn, round by round, and each also without its loader, on a batch that lies on the device. A
    run with a loader is an epoch of so many steps. Its workers are there already, but have loaded nothing, and when it
    ends they rest: none works while another network is timed. So a run waits for its first batch, which a long epoch
    does not notice: ``steps`` should be several times ``workers``. Files come from the cache of the system.

    Args:
        entries (Sequence[Entry]): Configs of pre-training.
        image_size (int): Side of the crops in pixels; those of the configs are replaced. Default 256.
        batch (int): Images of a step. Default 16.
        workers (int): Processes of each loader; with 0 the process that trains loads. Default 1.
        steps (int): Of a run. Default 4.
        images (int): Files. Default 64.
        quality (int): Of the JPEG files, 1 to 95. Default 90.
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` (on a GPU) or ``bfloat16`` for autocast. Default ``float32``.
        compiled (bool): Compile the losses with ``torch.compile``. Default False.
        rounds (int): How often each is timed. Default 3.
        warmup (int): Rounds before those. Default 1.
    Returns:
        dict[str, Any]: For JSON: ``environment``, ``arguments`` and ``networks``: each with ``name``, ``config``,
        ``changes``, and of every round ``images_per_second`` and ``compute_images_per_second``, those without loader.
    Raises:
        ValueError: If an argument is illegal, or a config is none of pre-training.
        RuntimeError: If there is no GPU and ``device`` asks for one.
    """
    check_training(entries, batch, device, dtype, rounds, warmup)
    at_least(1, image_size=image_size, steps=steps, pictures=pictures)
    at_least(0, workers=workers)
    if not 1 <= quality <= 95:
        raise ValueError(f'quality is {quality}, but it must be from 1 to 95')
    arguments = dict(
        image_size=image_size,
        batch=batch,
        workers=workers,
        steps=steps,
        pictures=pictures,
        quality=quality,
        device=device,
        dtype=dtype,
        compiled=compiled,
        rounds=rounds,
        warmup=warmup,
    )
    where = environment(device)
    options = dict(shape=(image_size, image_size), batch=batch, device=device, dtype=dtype, compiled=compiled)
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder, pictures, quality)
        for entry in entries:
            step = make_step(entry, options)
            if not isinstance(step.model, BaseSelfSupervisor):
                raise ValueError(
                    f'the model of {entry.name} is {type(step.model).__name__}, but it must be one of pre-training: '
                    'the images have no labels'
                )
            dataset = build_training_set(entry.read(), folder, image_size)
            loader = _data_loader(dataset, batch, steps, workers, pin_memory=device == 'cuda')
            runs[entry.name, 'fed'] = partial(_run_epoch, step, loader)
            runs[entry.name, 'alone'] = partial(_run_alone, step, steps)
        seconds = time_interleaved(runs, rounds, warmup, device)
    rates = {key: [batch * steps / each for each in times] for key, times in seconds.items()}
    networks = [
        dict(
            **entry._asdict(),
            images_per_second=rates[entry.name, 'fed'],
            compute_images_per_second=rates[entry.name, 'alone'],
        )
        for entry in entries
    ]
    return dict(environment=where, arguments=arguments, networks=networks)


def _data_loader(dataset: BaseDataset, batch: int, steps: int, workers: int, pin_memory: bool) -> DataLoader:
    """With so many batches in an epoch, whatever the number of files; every epoch has another order."""
    repeats = getattr(dataset, 'repeats', 1)
    if batch % repeats:
        raise ValueError(f'batch is {batch}, but it must be a multiple of repeats, the {repeats} samples of each file')
    files = batch // repeats
    generator = torch.Generator().manual_seed(SEED)
    return DataLoader(
        dataset,
        files,
        sampler=RandomSampler(dataset, num_samples=files * steps, generator=generator),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=default_collate,
        pin_memory=pin_memory,
        generator=generator,
    )


def _run_epoch(step: TrainingStep, loader: DataLoader) -> None:
    for data in loader:
        step.take(data)
        step()


def _run_alone(step: TrainingStep, steps: int) -> None:
    for _ in range(steps):
        step()


def end_to_end_table(report: dict[str, Any]) -> str:
    """The report of :func:`benchmark_end_to_end` as a Markdown table.

    Rates are medians, with the smallest and the largest behind them; shares and ratios are medians of the rounds' own.
    """
    first = report['networks'][0]
    rows = []
    for network in report['networks']:
        fed, alone = network['images_per_second'], network['compute_images_per_second']
        rows.append(
            [
                network['name'],
                f'{median(fed):.3g} ({min(fed):.3g} to {max(fed):.3g})',
                f'{median(alone):.3g} ({min(alone):.3g} to {max(alone):.3g})',
                f'{100 * round_ratio(fed, alone):.0f} %',
                f'{round_ratio(fed, first["images_per_second"]):.2f}',
            ]
        )
    titles = ['network', 'images per second (smallest to largest)', 'steps alone (smallest to largest)']
    return markdown_table([*titles, 'of steps alone', f'times {first["name"]}'], rows)
