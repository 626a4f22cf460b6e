"""Compare this project with other implementations, in turn, round by round.

    python -m benchmarks.compare step --profile --out benchmarks/results/performance.json
    python -m benchmarks.compare step --device cuda --dtype bfloat16 --batch 256 --rounds 20 --plot performance.png
    python -m benchmarks.compare loading --threads 1

The first argument is one of
  step                 a training step of UM-MAE, its plain formulation, SimMIM, and MMPretrain's SimMIM and MAE, with
                       the project's targets
  loading              the data pipelines of UM-MAE and MMPretrain's MAE, and decoding alone
  training             steps of UM-MAE and MMPretrain's SimMIM that their data loaders feed
  detector-step        a training step of Mask R-CNN on UMSwin and on MMDetection's Swin
  detector-inference   inference of the same detectors

Weights are random, and images are generated. With --out the run is appended to a file of runs.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm_ummae.analysis import (
    Settings,
    environment,
    markdown_table,
    measure_inference,
    measure_loading,
    measure_steps,
    measure_training,
    results_table,
)
from mm_ummae.analysis.measuring import round_ratio
from mm_ummae.analysis.step import TrainingStep

from .entries import DETECTORS, LOADERS, PRETRAINING, Entry
from .photographs import on_images, write_images
from .plots import save_figure, step_figure
from .profile import profile_step, profile_table
from .results import add_arguments, add_run
from .targets import product_share, target_table, targets

SIZE = 256  # of pre-training images in pixels
FILES, QUALITIES = 128, (75, 95)  # generated photographs
DETECTOR_SHAPES = {'detector-step': (640, 960), 'detector-inference': (800, 1280)}  # height and width in pixels
BATCHES = {'step': 16, 'loading': 32, 'training': 16, 'detector-step': 1}


class MatrixProduct:
    """A product of two large square matrices: the practical limit of a machine, operation by operation.

    Args:
        device (str): ``cpu`` or ``cuda``.
        dtype (str): ``float32``, ``float16`` or ``bfloat16``.

    Attributes:
        flops (int): Of a call, two for a multiply-add.
    """

    def __init__(self, device: str, dtype: str) -> None:
        side = 8192 if device == 'cuda' else 2048
        self.flops = 2 * side**3
        self._matrix = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))

    def __call__(self) -> Tensor:
        """The product."""
        return self._matrix @ self._matrix


def compare_steps(
    entries: Sequence[Entry], shape: tuple[int, int], batch: int, settings: Settings, profiled: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Training steps beside a matrix product; returns results and tables."""
    configs = {entry.name: entry.read() for entry in entries}
    product = MatrixProduct(settings.device, settings.dtype)
    *networks, row = measure_steps(configs, shape, batch, settings, beside={'matrix product': product})
    found: dict[str, Any] = dict(
        matrix_product=dict(flops=product.flops, seconds=row['seconds']), networks=_described(networks, entries)
    )
    tables = [results_table(networks), ratio_table(found)]
    if profiled:
        found['profiles'] = {}
        for name, config in configs.items():
            step = TrainingStep.on_random_images(config, shape, batch, settings)
            step()
            found['profiles'][name] = profile_step(step)
        tables.append(profile_table(found['profiles']))
    return found, tables


def ratio_table(run: dict[str, Any]) -> str:
    """Time and memory relative to the first network, and the share of matrix products, as a Markdown table."""
    first = run['networks'][0]
    rows = []
    for network in run['networks']:
        time, share = round_ratio(network['seconds'], first['seconds']), product_share(run, network)
        memory = network['memory'] / first['memory']
        rows.append([network['name'], f'{time:.2f}', f'{memory:.2f}', f'{share:.2f}'])
    return markdown_table(['network', 'time ratio', 'memory ratio', 'share of matrix products'], rows)


def compare_loading(entries: Sequence[Entry], batch: int, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Data pipelines, and decoding alone by OpenCV and by Pillow, on JPEG files of two qualities."""
    loaders, tables = [], []
    for quality in QUALITIES:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(folder, FILES, quality)
            configs = {entry.name: on_images(entry.read(), folder, SIZE) for entry in entries}
            decoders = {'decoding by OpenCV': _decode_opencv, 'decoding by Pillow': _decode_pillow}
            beside = {name: partial(_decode_all, paths, decode) for name, decode in decoders.items()}
            rows = measure_loading(configs, batch, FILES // batch, settings, beside=beside)
            size = sum(path.stat().st_size for path in paths) / len(paths)
        loaders += [row | dict(quality=quality, bytes_per_file=size) for row in rows]
        rates = [row['images_per_second'] for row in rows]
        ratios = [[row['name'], f'{round_ratio(rate, rates[0]):.2f}'] for row, rate in zip(rows, rates, strict=True)]
        tables += [f'JPEG quality {quality}', results_table(rows), markdown_table(['loader', 'ratio'], ratios)]
    return dict(loaders=loaders), tables


def _decode_all(paths: Sequence[Path], decode: Callable[[bytes], Any]) -> None:
    for path in paths:
        decode(path.read_bytes())


def _decode_opencv(content: bytes) -> None:
    cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def _decode_pillow(content: bytes) -> None:
    Image.open(io.BytesIO(content)).load()


def compare_training(
    entries: Sequence[Entry], batch: int, settings: Settings, workers: int
) -> tuple[dict[str, Any], list[str]]:
    """Steps that loader processes feed from JPEG files."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder, FILES, QUALITIES[-1])
        configs = {entry.name: on_images(entry.read(), folder, SIZE) for entry in entries}
        networks = measure_training(configs, batch, settings, workers=workers, steps=4 * max(1, workers))
    return dict(networks=_described(networks, entries)), [results_table(networks)]


def _described(rows: Sequence[dict[str, Any]], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Rows with the config of their entry."""
    return [entry._asdict() | row for row, entry in zip(rows, entries, strict=True)]


def compare(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What the command line asks for."""
    settings = Settings(args.device, args.dtype, args.rounds, args.warmup)
    if args.measure == 'step':
        found, tables = compare_steps(PRETRAINING, (SIZE, SIZE), args.batch, settings, args.profile)
        bars = targets(dict(found, arguments=vars(args)))
        return found, [*tables, target_table(bars)]
    if args.measure == 'loading':
        return compare_loading(LOADERS, args.batch, settings)
    if args.measure == 'training':
        return compare_training((PRETRAINING[0], PRETRAINING[3]), args.batch, settings, args.workers)
    shape = DETECTOR_SHAPES[args.measure]
    if args.measure == 'detector-step':
        found, tables = compare_steps(DETECTORS, shape, args.batch, settings, args.profile)
        return dict(shape=shape, **found), tables
    networks = measure_inference({entry.name: entry.read() for entry in DETECTORS}, shape, settings)
    return dict(shape=shape, networks=_described(networks, DETECTORS)), [results_table(networks)]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables and write the files; returns the run."""
    parser = argparse.ArgumentParser(
        'python -m benchmarks.compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('measure', choices=('step', 'loading', 'training', 'detector-step', 'detector-inference'))
    parser.add_argument('--profile', action='store_true', help='also profile the steps')
    parser.add_argument('--workers', type=int, default=1, help='loader processes of training (default: %(default)s)')
    add_arguments(parser, batch=None, rounds=5)
    args = parser.parse_args(arguments)
    args.batch = args.batch or BATCHES.get(args.measure, 1)
    if args.threads:
        torch.set_num_threads(args.threads)
    found, tables = compare(args)
    print('\n\n'.join(tables))
    used = {key: value for key, value in vars(args).items() if key not in ('measure', 'out', 'plot')}
    run = dict(measure=args.measure, environment=environment(args.device), arguments=used, **found)
    runs = add_run(args.out, run) if args.out else [run]
    if args.plot:
        save_figure(step_figure([run for run in runs if run['measure'] == 'step']), args.plot)
    return run


if __name__ == '__main__':
    main()
