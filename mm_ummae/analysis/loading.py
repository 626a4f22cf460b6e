"""How fast images come from files: the pipelines of configs, in turn, beside decoding alone."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, default_collate
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from mm_ummae.analysis.measuring import at_least, round_ratio, time_interleaved
from mm_ummae.analysis.networks import SEED, read_config
from mm_ummae.analysis.report import environment, markdown_table

MMPRETRAIN_MAE = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'
PICTURE_SIZE = (500, 375)  # width and height in pixels, the most frequent ones of ImageNet


def benchmark_loading(
    configs: Sequence[str | Path],
    image_sizes: Sequence[int] = (224, 256),
    *,
    qualities: Sequence[int] = (75, 95),
    pictures: int = 128,
    batch_size: int = 32,
    rounds: int = 5,
    warmup: int = 1,
) -> dict[str, Any]:
    """Measure how many images a second one core loads: from the JPEG file to the collated batch.

    Every run loads the same files in the same order with the same seed, so that all pipelines that draw alike cut the
    same boxes. It has this process alone and one thread. Decoding alone, by OpenCV and by Pillow, is measured in the
    same rounds: the limit of any pipeline that decodes whole images. Files come from the cache of the system.

    Args:
        configs (Sequence[str | Path]): Of pre-training, see :func:`read_config`; the first is what the others are
            compared with. ``MMPRETRAIN_MAE`` is MMPretrain's default.
        image_sizes (Sequence[int]): Sides of the crops in pixels; those of the configs are replaced. Default
            (224, 256).
        qualities (Sequence[int]): Of the JPEG files, 1 to 95. Default (75, 95).
        images (int): Files of each quality. Default 128.
        batch_size (int): Files of a batch. Default 32.
        rounds (int): How often each is timed. Default 5.
        warmup (int): Rounds before those. Default 1.
    Returns:
        dict[str, Any]: For JSON: ``environment``, ``arguments``, ``files`` with the mean ``bytes`` for each
        ``quality``, and ``loaders``: each with ``name``, ``config`` and ``image_size`` (None of decoders),
        ``quality``, ``pipeline``, and of every round ``images_per_second``, samples of the batches counted.
    Raises:
        ValueError: If an argument is illegal or a config trains on nothing.
    """
    at_least(1, pictures=pictures, batch_size=batch_size, rounds=rounds)
    for name, values in dict(configs=configs, image_sizes=image_sizes, qualities=qualities).items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f'{name} is {values}, but there must be at least one and none of them twice')
    files, loaders, runs = [], {}, {}
    with tempfile.TemporaryDirectory() as folder, _one_core():
        for quality in qualities:
            paths = write_images(Path(folder) / str(quality), pictures, quality)
            files.append(dict(quality=quality, bytes=sum(path.stat().st_size for path in paths) / len(paths)))
            for config in map(str, configs):
                for size in image_sizes:
                    dataset = build_training_set(read_config(config), paths[0].parents[2], size)
                    loader = dict(name=_short(config), config=config, image_size=size, quality=quality)
                    steps = [type(step).__name__ for step in dataset.pipeline.transforms]
                    key = (config, size, quality)
                    loaders[key] = loader | dict(pipeline=steps, samples=pictures * getattr(dataset, 'repeats', 1))
                    runs[key] = _load_all(dataset, batch_size)
            for name, decode in dict(OpenCV=_decode_opencv, Pillow=_decode_pillow).items():
                loader = dict(name=f'decoding by {name}', config=None, image_size=None, quality=quality)
                loaders[name, quality] = loader | dict(pipeline=[], samples=pictures)
                runs[name, quality] = _decode_all(paths, decode)
        where = environment('cpu')
        for key, times in time_interleaved(runs, rounds, warmup).items():
            samples = loaders[key].pop('samples')
            loaders[key]['images_per_second'] = [samples / seconds for seconds in times]
    arguments = dict(
        configs=[str(config) for config in configs],
        image_sizes=list(image_sizes),
        qualities=list(qualities),
        pictures=pictures,
        picture_size=list(PICTURE_SIZE),
        batch_size=batch_size,
        rounds=rounds,
        warmup=warmup,
    )
    return dict(environment=where, arguments=arguments, files=files, loaders=list(loaders.values()))


def loading_table(report: dict[str, Any]) -> str:
    """The report of :func:`benchmark_loading` as a Markdown table.

    Rates are medians, with the smallest and the largest behind them. Ratios are medians of the rounds' own ratios: to
    the first config at the same image size, and to OpenCV's decoding of the same files.
    """
    loaders = report['loaders']
    rates = {(each['config'] or each['name'], each['image_size'], each['quality']): each for each in loaders}
    base = report['arguments']['configs'][0]
    rows = []
    for each in loaders:
        size, quality, rate = each['image_size'], each['quality'], each['images_per_second']
        limit = rates['decoding by OpenCV', None, quality]['images_per_second']
        faster = '–' if size is None else f'{round_ratio(rate, rates[base, size, quality]["images_per_second"]):.2f}'
        numbers = f'{median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f})'
        side = '–' if size is None else str(size)
        rows.append([each['name'], str(quality), side, numbers, faster, f'{100 * round_ratio(rate, limit):.0f} %'])
    titles = ['loader', 'JPEG quality', 'image size', 'images per second and core (smallest to largest)']
    return markdown_table([*titles, f'times {_short(base)}', 'of decoding alone'], rows)


def write_images(folder: str | Path, count: int, quality: int) -> list[Path]:
    """Write JPEG files with content like a photograph's: noise of all scales, weaker the finer it is, and edges.

    Args:
        folder (str | Path): Where a folder ``train`` with a class is made.
        count (int): Number of files.
        quality (int): Of Pillow's JPEG writer, with colours at half the resolution (4:2:0), as cameras do.
    Returns:
        list[Path]: The files; the same arguments and library versions give the same ones.
    """
    generator = np.random.default_rng(SEED)
    paths = [Path(folder) / 'train' / 'pictures' / f'{number:05d}.JPEG' for number in range(count)]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        _draw_picture(generator).save(path, quality=quality, subsampling='4:2:0')
    return paths


def build_training_set(config: Config, folder: str | Path, image_size: int) -> BaseDataset:
    """The training data set of a config on other images, of which labels are not read.

    Args:
        config (Config): Of pre-training with MMPretrain's transforms or ours; it is not changed.
        folder (str | Path): With a folder ``train`` of classes.
        image_size (int): Side of the crops in pixels.
    Returns:
        BaseDataset: With the config's pipeline; ``PretrainImages`` with its settings stays one, anything else
        becomes MMPretrain's ``CustomDataset``.
    Raises:
        ValueError: If the config has no training data, or no step that is a random resized crop.
    """
    if config.get('train_dataloader') is None:
        raise ValueError(f'the config {config.filename} has no train_dataloader, but its pipeline is what is measured')
    settings = copy.deepcopy(config.train_dataloader.dataset)
    crops = [step for step in settings.pipeline if step.type.endswith('RandomResizedCrop')]
    if not crops:
        raise ValueError(
            f'the pipeline of {config.filename} is {[step.type for step in settings.pipeline]}, but it must have a '
            'RandomResizedCrop, whose size can be set'
        )
    for crop in crops:
        crop.scale = image_size
    if settings.type != 'mm_ummae.PretrainImages':
        settings = dict(type='CustomDataset', with_label=False, pipeline=settings.pipeline)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return DATASETS.build({**settings, 'data_root': str(folder), 'data_prefix': 'train'})


@contextmanager
def _one_core() -> Iterator[None]:
    """One thread for everything; afterwards threads and the random stream are as before."""
    threads, cv2_threads, state = torch.get_num_threads(), cv2.getNumThreads(), np.random.get_state()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
        np.random.set_state(state)


def _load_all(dataset: BaseDataset, batch_size: int) -> Callable[[], None]:
    loader = DataLoader(dataset, batch_size, collate_fn=default_collate)

    def run() -> None:
        np.random.seed(SEED)
        for _ in loader:
            pass

    return run


def _decode_all(paths: Sequence[Path], decode: Callable[[bytes], Any]) -> Callable[[], None]:
    def run() -> None:
        for path in paths:
            decode(path.read_bytes())

    return run


def _decode_opencv(content: bytes) -> None:
    cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def _decode_pillow(content: bytes) -> None:
    Image.open(io.BytesIO(content)).load()


def _draw_picture(generator: np.random.Generator) -> Image.Image:
    width, height = PICTURE_SIZE
    pixels = np.full((height, width, 3), 128, np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):  # along the width
        noise = generator.normal(size=(3 * cells // 4 + 1, cells + 1, 3)).astype(np.float32)
        noise = noise.mean(axis=2, keepdims=True) + 0.3 * noise  # colours vary less than brightness
        pixels += 70 * (2 / cells) ** 0.75 * cv2.resize(noise, PICTURE_SIZE, interpolation=cv2.INTER_CUBIC)
    pixels += generator.normal(scale=4, size=(height, width, 1))  # a sensor's noise
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y, radius = (int(generator.integers(limit)) for limit in (width, height, 70))
        colour = tuple(generator.integers(256, size=3).tolist())
        draw.ellipse((x - radius, y - radius // 2, x + radius, y + radius // 2), fill=colour)
        ends = generator.integers((width, height), size=(2, 2)).flatten().tolist()
        draw.line(ends, fill=colour, width=1 + radius // 16)
    return picture


def _short(config: str) -> str:
    host, _, path = config.rpartition('::')
    return f'{host}::{Path(path).stem}' if host else Path(path).stem
