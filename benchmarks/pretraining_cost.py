"""Cost of a pre-training step: MAE, LoMaR and UM-MAE at several image sizes, with plain ViTs of one size.

    python -m benchmarks.pretraining_cost --device cuda --dtype bfloat16 --batch 32 --profile 448 --out OUT.json

A step is loss, backward and AdamW on a batch of random images on the device, with random weights. At each size the
methods are timed in turn, round by round, so that ratios hold on a machine that is also used otherwise. With --out the
run is appended to a file of runs, so that sizes or encoders can be measured one after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmpretrain.models.utils.attention import MultiheadAttention, scaled_dot_product_attention_pyimpl
from torch import nn

from mm_ummae.analysis import Settings, count_multiply_adds, environment, markdown_table
from mm_ummae.analysis.measuring import at_least, flop_counter, round_ratio
from mm_ummae.analysis.report import spread
from mm_ummae.analysis.step import TrainingStep

from .entries import Entry
from .plots import cost_figure, save_figure, taken_seconds
from .profile import profile_step, profile_table
from .results import add_arguments, add_run

PATCH = 16
# Of the encoder. MMPretrain's own `small` is another one, of 768 channels
ARCHS: dict[str, str | dict[str, int]] = {
    'test': dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
    'small': dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
    'base': 'base',
}
WINDOWS = {224: 4, 384: 6, 448: 9}  # published local windows of LoMaR by image size
SIZES = (224, 384, 448, 672)
SMALLEST = 128  # a local window of 7 patches fits, and images consist of whole cells of 32 pixels
LINEAR = ('mm', 'addmm', 'convolution')  # ATen operations; other products belong to attention


class Method(NamedTuple):
    """A pre-training method.

    Attributes:
        name (str): For tables and plots.
        config (str): See :class:`~benchmarks.entries.Entry`.
        explicit_attention (bool): Hold all attention scores in memory, as code did before PyTorch 2.
        plain (bool): The encoder is a plain ViT, whose size can be chosen.
    """

    name: str
    config: str
    explicit_attention: bool = False
    plain: bool = True


MAE = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-400e_in1k.py'
METHODS = {
    'mae': Method('MAE', MAE),
    'mae-2022': Method('MAE, attention of 2022', MAE, explicit_attention=True),
    'lomar': Method('LoMaR', 'configs/lomar/lomar_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px.py'),
    'um-mae': Method('UM-MAE', 'configs/ummae/ummae_vit-base-p16_8xb128x4-amp-coslr-200e_in1k-224px.py'),
    'um-mae-swin': Method(
        'UM-MAE, Swin-T', 'configs/ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py', plain=False
    ),
}
DEFAULT_METHODS = ('mae', 'mae-2022', 'lomar', 'um-mae')


def method_config(method: str, size: int, arch: str = 'base') -> Config:
    """A method's config for images of another size, with another encoder if it is a plain ViT.

    Decoders keep their size: 8 blocks of 512 channels for MAE, 2 for UM-MAE, none for LoMaR.

    Args:
        method (str): Key of :data:`METHODS`.
        size (int): Image size in pixels.
        arch (str): Key of :data:`ARCHS`. Default ``base``.
    """
    chosen = METHODS[method]
    config = Entry(chosen.name, chosen.config).read()
    model = config.model
    model.backbone.img_size = size
    if chosen.plain:
        model.backbone.arch = ARCHS[arch]
    width = ARCHS[arch]['embed_dims'] if arch != 'base' else 768
    if model.type == 'MAE':
        model.neck.update(num_patches=(size // PATCH) ** 2, embed_dim=width)
    elif model.type == 'mm_ummae.LoMaR':
        model.num_windows = num_windows(size)
        model.head.in_channels = width
    else:
        model.neck.img_size = size
        if chosen.plain:
            model.neck.in_channels = width
    return config


def num_windows(size: int) -> int:
    """Local windows of LoMaR: as published, else as many as 448 px have by area, at least one."""
    return WINDOWS.get(size, max(1, round(WINDOWS[448] * (size / 448) ** 2)))


def make_step(method: str, size: int, arch: str, batch: int, settings: Settings) -> TrainingStep:
    """A training step of a method on random images."""
    step = TrainingStep.on_random_images(method_config(method, size, arch), (size, size), batch, settings)
    if METHODS[method].explicit_attention:
        use_explicit_attention(step.model)
    return step


def use_explicit_attention(model: nn.Module) -> None:
    """Make MMPretrain's attention compute scores, softmax and values one after the other, whatever PyTorch has."""
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.scaled_dot_product_attention = scaled_dot_product_attention_pyimpl


def count_step(step: TrainingStep) -> dict[str, int]:
    """Multiply-adds of the forward pass of an image.

    Returns:
        dict[str, int]: ``encoder``; ``decoder``, with the layer that predicts pixels; and ``attention``: the part of
        both that multiplies queries, keys, values and position tables, and not weights.
    """
    batch = len(step.inputs)
    with torch.no_grad(), flop_counter() as counter:
        parts = count_multiply_adds(step.model, step.loss)
    by_operation = counter.get_flop_counts()['Global']
    attention = sum(flops for op, flops in by_operation.items() if op.__name__ not in LINEAR) // 2
    encoder = parts.pop('backbone')
    return dict(encoder=encoder // batch, decoder=sum(parts.values()) // batch, attention=attention // batch)


def pretraining_cost(
    methods: Sequence[str] = DEFAULT_METHODS,
    sizes: Sequence[int] = SIZES,
    *,
    arch: str = 'base',
    batch: int = 2,
    settings: Settings | None = None,
    profile: int | None = None,
) -> list[dict[str, Any]]:
    """Measure pre-training steps.

    Args:
        methods (Sequence[str]): Keys of :data:`METHODS`. Default: those with a plain ViT.
        sizes (Sequence[int]): Image sizes in pixels, multiples of 32. Default 224, 384, 448 and 672.
        arch (str): Key of :data:`ARCHS`. Default ``base``.
        batch (int): Images of a step. Default 2.
        settings (Settings, optional): Device, precision and rounds.
        profile (int, optional): One of the sizes, at which the methods are profiled as well.
    Returns:
        list[dict[str, Any]]: For JSON, one for each method at each size: ``method``, ``name``, ``config``, ``size``,
        ``windows`` (of LoMaR, else None), ``parameters``, ``multiply_adds`` (see :func:`count_step`), ``seconds`` and
        ``cpu_seconds`` (of all threads) per image, one value a round, ``memory`` and ``resident`` in bytes, ``profile``
        (see :func:`~benchmarks.profile.profile_step`, or None) and ``error``: None, or ``out of memory``, and then what
        was not measured is None.
    Raises:
        ValueError: If an argument is illegal.
    """
    settings = settings or Settings()
    if not methods or len(set(methods)) < len(methods) or not set(methods) <= set(METHODS):
        raise ValueError(f'methods is {methods}, but it must be some of {", ".join(METHODS)}, none of them twice')
    if not sizes or any(size < SMALLEST or size % 32 for size in sizes):
        raise ValueError(f'sizes is {sizes}, but each must be a multiple of 32 pixels, at least {SMALLEST}')
    if arch not in ARCHS:
        raise ValueError(f'arch is {arch!r}, but it must be one of {", ".join(ARCHS)}')
    if profile is not None and profile not in sizes:
        raise ValueError(f'profile is {profile}, but it must be one of the sizes {sizes}')
    at_least(1, batch=batch)
    rows = []
    for size in sizes:
        make = partial(make_step, size=size, arch=arch, batch=batch, settings=settings)
        rows += _measure_size(methods, size, make, settings, size == profile)
    return rows


def _measure_size(
    methods: Sequence[str], size: int, make: Callable[[str], TrainingStep], settings: Settings, profiled: bool
) -> list[dict[str, Any]]:
    """Rows of one size; its networks are freed when it returns."""
    rows = {method: _empty_row(method, size) for method in methods}
    steps: dict[str, TrainingStep] = {}
    for method, row in rows.items():
        with _noting_lack_of_memory(row):
            step = make(method)
            row['parameters'] = sum(parameter.numel() for parameter in step.model.parameters())
            row['multiply_adds'] = count_step(step)
            step()
            steps[method] = step
    # Only now, with the weights and moments of the others in memory, as during timing
    for method, step in list(steps.items()):
        row = rows[method]
        with _noting_lack_of_memory(row):
            row.update(resident=step.resident(), memory=step.memory(), cpu_seconds=[])
            row['profile'] = profile_step(step) if profiled else None
        if row['error'] is not None:
            del steps[method]
    runs = {method: partial(_clocked, step, rows[method]['cpu_seconds']) for method, step in steps.items()}
    for method, times in settings.time(runs).items():
        images = len(steps[method].inputs)
        rows[method]['seconds'] = [seconds / images for seconds in times]
        rows[method]['cpu_seconds'] = rows[method]['cpu_seconds'][-settings.rounds :]  # without the warm-up
    return list(rows.values())


def _clocked(step: TrainingStep, cpu_seconds: list[float]) -> None:
    start = time.process_time()
    step()
    cpu_seconds.append((time.process_time() - start) / len(step.inputs))


def _empty_row(method: str, size: int) -> dict[str, Any]:
    row = dict(method=method, name=METHODS[method].name, config=METHODS[method].config, size=size)
    measured = ('parameters', 'multiply_adds', 'seconds', 'cpu_seconds', 'memory', 'resident', 'profile', 'error')
    return row | dict(windows=num_windows(size) if method == 'lomar' else None) | dict.fromkeys(measured)


@contextmanager
def _noting_lack_of_memory(row: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The CPU's allocator has no exception class of its own
        if not isinstance(error, torch.cuda.OutOfMemoryError) and 'allocate memory' not in str(error):
            raise
        row['error'] = 'out of memory'


def cost_table(run: dict[str, Any]) -> str:
    """The rows of a run as a Markdown table.

    Seconds are the median, with the smallest and the largest value behind it; the speed-up over MAE is the median of
    the ratios of each round.
    """
    baseline = {
        row['size']: taken_seconds(run, row) for row in run['rows'] if (row['method'], row['error']) == ('mae', None)
    }
    lines = []
    for row in run['rows']:
        windows = f', {row["windows"]} window{"s" * (row["windows"] > 1)}' if row['windows'] else ''
        line = [str(row['size']), row['name'] + windows]
        if row['error'] is not None:
            lines.append([*line, *['–'] * 5, row['error'], '–', '–'])
            continue
        counts, times = row['multiply_adds'], taken_seconds(run, row)
        amounts = [counts['encoder'] + counts['decoder'], *counts.values()]
        line += [f'{row["parameters"] / 1e6:.1f}', *(f'{amount / 1e9:.1f}' for amount in amounts), spread(times)]
        base = baseline.get(row['size'])
        line += ['–' if base is None else f'{round_ratio(base, times):.2f}', f'{row["memory"] / 1e9:.2f}']
        lines.append(line)
    titles = ['pixels', 'method', 'parameters (M)', 'multiply-adds (G)', 'encoder', 'decoder', 'of both, attention']
    return markdown_table([*titles, 'seconds per image', 'speed-up over MAE', 'peak memory (GB)'], lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables and write the files; returns the run."""
    parser = argparse.ArgumentParser(
        'python -m benchmarks.pretraining_cost',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--methods', nargs='+', choices=tuple(METHODS), default=list(DEFAULT_METHODS))
    parser.add_argument('--sizes', nargs='+', type=int, default=list(SIZES), help='image sizes in pixels')
    parser.add_argument('--arch', choices=tuple(ARCHS), default='base', help='of plain ViTs (default: %(default)s)')
    parser.add_argument('--profile', type=int, metavar='SIZE', help='also profile the methods at this size')
    add_arguments(parser, batch=2, rounds=3)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(args.device, args.dtype, args.rounds, args.warmup)
    rows = pretraining_cost(
        args.methods, args.sizes, arch=args.arch, batch=args.batch, settings=settings, profile=args.profile
    )
    used = {key: value for key, value in vars(args).items() if key not in ('out', 'plot')}
    run = dict(environment=environment(args.device), arguments=used, rows=rows)
    print(cost_table(run))
    if args.profile:
        profiled = {f'{row["name"]}, {row["size"]} px': row['profile'] for row in rows if row['profile']}
        print(f'\n{profile_table(profiled)}')
    runs = add_run(args.out, run) if args.out else [run]
    if args.plot:
        save_figure(cost_figure(runs), args.plot)
    return run


if __name__ == '__main__':
    main()
