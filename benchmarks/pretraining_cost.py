"""What a step of masked pre-training costs: MAE, LoMaR and UM-MAE at several image sizes, with plain ViTs of one size.

A step is loss, backward and AdamW on a batch that lies normalised on the device: no images are read, and no loss is
scaled. :class:`Step` is one, :func:`step_memory` and :func:`count_step` measure it. :func:`pretraining_cost` puts them
together; the others report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmpretrain.models.utils.attention import MultiheadAttention, scaled_dot_product_attention_pyimpl
from torch import nn

from mm_ummae.analysis import ROOT, at_least, check_device, count_multiply_adds, environment, flop_counter, markdown_table, read_config, time_interleaved
from mm_ummae.analysis.networks import check_dtype
from benchmarks.profile import profile_step, profile_table
from mm_ummae.analysis.training import TrainingStep, gpu_memory
from mm_ummae.analysis.memory import PeakMemory

PATCH = 16
# Of the encoder. MMPretrain's own `small` is another one, of 768 channels
ARCHS: dict[str, str | dict[str, int]] = {
    'test': dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
    'small': dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
    'base': 'base',
}
# Windows of LoMaR by image side as published; beyond it they follow the area
WINDOWS = {224: 4, 384: 6, 448: 9}
SIZES = (224, 384, 448, 672)
SMALLEST = 128  # a window of 7 patches fits, and images are whole cells of 32 pixels
LINEAR = ('mm', 'addmm', 'convolution')  # operations of ATen; other products belong to attention


class Method(NamedTuple):
    """A way to pre-train.

    Attributes:
        name (str): For tables and plots.
        config (str): Of :func:`~mm_ummae.benchmark.read_config`, relative to the repository.
        explicit_attention (bool): Hold all scores of an attention in memory, as code did before PyTorch 2.
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


# Something to measure


def network_config(method: str, size: int, arch: str = 'base') -> Config:
    """A method's config for images of another size, with another encoder if it is a plain ViT.

    Decoders keep their size: 8 blocks of 512 channels for MAE, 2 for UM-MAE, none for LoMaR.

    Args:
        method (str): Key of :data:`METHODS`.
        size (int): Side of the images in pixels.
        arch (str): Key of :data:`ARCHS`. Default ``base``.
    Returns:
        Config: For :func:`~mm_ummae.benchmark.build_network`.
    """
    chosen = METHODS[method]
    config = read_config(chosen.config if '::' in chosen.config else ROOT / chosen.config)
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
    """Windows that LoMaR draws on an image: as published, else as many as 448 px have by area, at least one."""
    return WINDOWS.get(size, max(1, round(WINDOWS[448] * (size / 448) ** 2)))


class Step(TrainingStep):
    """A step of one of the methods.

    Args:
        method (str): Key of :data:`METHODS`.
        size (int): Side of the images in pixels.
        arch (str): Key of :data:`ARCHS`. Default ``base``.
        batch (int): Images of a step. Default 2.
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` or ``bfloat16`` for autocast. Default ``float32``.
    """

    def __init__(
        self,
        method: str,
        size: int,
        arch: str = 'base',
        batch: int = 2,
        device: str = 'cpu',
        dtype: str = 'float32',
    ) -> None:
        super().__init__(network_config(method, size, arch), (size, size), batch, device, dtype)
        if METHODS[method].explicit_attention:
            use_explicit_attention(self.model)


def use_explicit_attention(model: nn.Module) -> None:
    """Let MMPretrain's attention compute scores, softmax and values one after the other, whatever PyTorch has."""
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.scaled_dot_product_attention = scaled_dot_product_attention_pyimpl


# Measuring


def count_step(step: Step) -> dict[str, int]:
    """Multiply-adds of an image's forward pass.

    Args:
        step (Step): It does not step.
    Returns:
        dict[str, int]: ``encoder``, ``decoder`` with the layer that predicts pixels, and ``attention``: how many of
        these are products of queries, keys, values and position tables, and not of layers.
    """
    batch = len(step.inputs)
    with torch.no_grad(), flop_counter() as counter:
        children = count_multiply_adds(step.model, step.loss)
    by_operation = counter.get_flop_counts()['Global']
    attention = sum(flops for op, flops in by_operation.items() if op.__name__ not in LINEAR) // 2
    encoder = children.pop('backbone')
    return dict(encoder=encoder // batch, decoder=sum(children.values()) // batch, attention=attention // batch)


def step_memory(step: Step, device: str) -> int:
    """The most memory of a step: weights, gradients, moments and activations, without the images.

    Args:
        step (Step): Has made at least one step, so that there are moments.
        device (str): On ``cuda`` PyTorch's allocator is asked, on ``cpu`` :class:`~mm_ummae.analysis.memory.PeakMemory` counts
            tensors.
    Returns:
        int: Bytes.
    """
    if device == 'cuda':
        return gpu_memory(step)
    with PeakMemory() as memory:
        step()
    return memory.peak + step.resident()


# All together


def pretraining_cost(
    methods: Sequence[str] = DEFAULT_METHODS,
    sizes: Sequence[int] = SIZES,
    *,
    arch: str = 'base',
    batch: int = 2,
    rounds: int = 3,
    device: str = 'cpu',
    dtype: str = 'float32',
    profile: int | None = None,
) -> dict[str, Any]:
    """Measure steps of pre-training; at each size the methods are timed in turn, round by round.

    Args:
        methods (Sequence[str]): Keys of :data:`METHODS`. Default: those with a plain ViT.
        sizes (Sequence[int]): Sides of the images in pixels, multiples of 32. Default 224, 384, 448 and 672.
        arch (str): Key of :data:`ARCHS`. Default ``base``.
        batch (int): Images of a step. Default 2.
        rounds (int): How often each is timed, after two steps that are not. Default 3.
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` (on a GPU) or ``bfloat16`` for autocast. Default ``float32``.
        profile (int, optional): One of the sizes, at which the methods are profiled as well. Default none.
    Returns:
        dict[str, Any]: For JSON: ``environment``, ``arguments`` and ``rows``, one for each method at each size, with
        ``method``, ``name``, ``config``, ``size``, ``windows`` (of LoMaR, else None), ``parameters``,
        ``multiply_adds`` of an image's forward pass (see :func:`count_step`), ``seconds`` per image, one a round,
        ``processor_seconds``, what all threads of this process had of a processor in them, ``memory`` of a step in
        bytes, ``resident`` of it between steps, ``profile`` (see :func:`profile_step`, or None) and ``error``: None, or
        that memory did not suffice, and then what was not measured is None.
    Raises:
        ValueError: If an argument is illegal.
        RuntimeError: If there is no GPU and ``device`` asks for one.
    """
    arguments = dict(
        methods=list(methods),
        sizes=list(sizes),
        arch=arch,
        batch=batch,
        rounds=rounds,
        device=device,
        dtype=dtype,
        profile=profile,
    )
    _check_arguments(**arguments)
    where = environment(device)
    rows = []
    for size in sizes:
        rows += _measure_size(size, arguments)
    return dict(environment=where, arguments=arguments, rows=rows)


def _measure_size(size: int, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one size; its networks are gone when it returns."""
    batch, rounds, device = (arguments[key] for key in ('batch', 'rounds', 'device'))
    found = {method: _empty_row(method, size) for method in arguments['methods']}
    steps = {}
    for method, row in found.items():
        with _noting_lack_of_memory(row):
            steps[method] = _first_step(row, arguments['arch'], batch, device, arguments['dtype'])
    # Only now, when the others' weights and moments lie beside, as they will while time is taken
    for method, step in list(steps.items()):
        row = found[method]
        with _noting_lack_of_memory(row):
            row.update(resident=step.resident(), memory=step_memory(step, device))
            row['profile'] = profile_step(step, device) if size == arguments['profile'] else None
        if row['error'] is not None:
            del steps[method]
    for method in steps:
        found[method]['processor_seconds'] = []
    runs = {method: partial(_clocked, step, found[method]['processor_seconds']) for method, step in steps.items()}
    for method, times in time_interleaved(runs, rounds, warmup=0, device=device).items():
        found[method]['seconds'] = [seconds / batch for seconds in times]
    return list(found.values())


def _first_step(row: dict[str, Any], arch: str, batch: int, device: str, dtype: str) -> Step:
    """Build a row's network, count it and let it make a step."""
    step = Step(row['method'], row['size'], arch, batch, device, dtype)
    row['parameters'] = sum(parameter.numel() for parameter in step.model.parameters())
    row['multiply_adds'] = count_step(step)
    step()
    return step


def _clocked(step: Step, seconds: list[float]) -> None:
    """Make a step, and note its processor time per image."""
    start = time.process_time()
    step()
    seconds.append((time.process_time() - start) / len(step.inputs))


def _empty_row(method: str, size: int) -> dict[str, Any]:
    chosen = METHODS[method]
    row = dict(method=method, name=chosen.name, config=chosen.config, size=size)
    row |= dict(windows=num_windows(size) if method == 'lomar' else None)
    measured = ('parameters', 'multiply_adds', 'seconds', 'processor_seconds', 'memory', 'resident', 'profile', 'error')
    return row | dict.fromkeys(measured)


@contextmanager
def _noting_lack_of_memory(row: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The CPU's allocator has no class of errors
        if not isinstance(error, torch.cuda.OutOfMemoryError) and 'allocate memory' not in str(error):
            raise
        row['error'] = 'out of memory'


def _check_arguments(
    methods: list[str],
    sizes: list[int],
    arch: str,
    batch: int,
    rounds: int,
    device: str,
    dtype: str,
    profile: int | None,
) -> None:
    if not methods or len(set(methods)) < len(methods) or not set(methods) <= set(METHODS):
        raise ValueError(f'methods is {methods}, but it must be some of {", ".join(METHODS)}, none of them twice')
    if not sizes or any(size < SMALLEST or size % 32 for size in sizes):
        raise ValueError(f'sizes is {sizes}, but each must be a multiple of 32 pixels, at least {SMALLEST}')
    if arch not in ARCHS:
        raise ValueError(f'arch is {arch!r}, but it must be one of {", ".join(ARCHS)}')
    at_least(1, batch=batch, rounds=rounds)
    check_dtype(dtype, device)
    if profile is not None and profile not in sizes:
        raise ValueError(f'profile is {profile}, but it must be one of the sizes {sizes}')
    check_device(device)


# Reporting


def cost_table(report: dict[str, Any]) -> str:
    """The rows of :func:`pretraining_cost` as a Markdown table.

    Seconds (of :func:`taken_seconds`) are the median, with the smallest and the largest behind it; ratios are medians
    of MAE's time over this one's in the same round, so more than 1 is faster than MAE.
    """
    titles = ['pixels', 'method', 'parameters (M)', 'multiply-adds (G)', 'encoder', 'decoder', 'of them attention']
    titles += ['seconds per image', 'times as fast as MAE', 'memory (GB)']
    baseline = {row['size']: taken_seconds(report, row) for row in report['rows'] if row['method'] == 'mae'}
    lines = []
    for row in report['rows']:
        line = [
            str(row['size']),
            row['name'] + (f', {row["windows"]} window{"s" * (row["windows"] > 1)}' if row['windows'] else ''),
        ]
        if row['error'] is not None:
            lines.append([*line, *['–'] * 5, row['error'], '–', '–'])
            continue
        counts, times = row['multiply_adds'], taken_seconds(report, row)
        amounts = [counts['encoder'] + counts['decoder'], *counts.values()]
        line += [f'{row["parameters"] / 1e6:.1f}', *(f'{amount / 1e9:.1f}' for amount in amounts)]
        line.append(f'{median(times):.3g} ({min(times):.3g} to {max(times):.3g})')
        ratio = speed_ratio(baseline.get(row['size']), times)
        line += ['–' if ratio is None else f'{ratio:.2f}', f'{row["memory"] / 1e9:.2f}']
        lines.append(line)
    return markdown_table(titles, lines)


def taken_seconds(report: dict[str, Any], row: dict[str, Any]) -> list[float] | None:
    """Seconds per image, one a round: of the clock, or of the processor where one thread of a CPU does it all.

    Processor time leaves out when others had the core, and is else the same.
    """
    alone = (report['environment']['device'], report['environment']['threads']) == ('cpu', 1)
    return row['processor_seconds' if alone else 'seconds']


def speed_ratio(baseline: Sequence[float] | None, times: Sequence[float]) -> float | None:
    """How many times as fast as the baseline: median over the rounds; None where the baseline was not timed."""
    return None if baseline is None else median(b / t for b, t in zip(baseline, times, strict=True))


def cost_profile_table(report: dict[str, Any]) -> str:
    """Where the time of the profiled rows goes, as a Markdown table."""
    rows = [row for row in report['rows'] if row['profile'] is not None]
    return profile_table({f'{row["name"]}, {row["size"]} px': row['profile'] for row in rows})


def save_cost_plot(runs: Sequence[dict[str, Any]], path: Path) -> Path:
    """Seconds per image and memory of a step over the image's side, one line a method.

    Args:
        runs (Sequence[dict[str, Any]]): Of :func:`pretraining_cost`. Those with the same encoder, batch, device and
            precision share two panels.
        path (Path): PNG file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cost_figure(runs).savefig(path, dpi=110)
    return path


def cost_figure(runs: Sequence[dict[str, Any]]) -> Figure:
    """The figure of :func:`save_cost_plot`; what did not fit into memory is missing from its line."""
    groups: dict[tuple, dict[str, list[tuple[int, float, float]]]] = {}
    for run in runs:
        points = groups.setdefault(tuple(run['arguments'][key] for key in ('arch', 'batch', 'device', 'dtype')), {})
        for row in run['rows']:
            line = points.setdefault(row['method'], [])
            if row['error'] is None:
                line.append((row['size'], median(taken_seconds(run, row)), row['memory'] / 1e9))
    figure = Figure(figsize=(10, 3.6 * len(groups)), layout='tight')  # not pyplot's: no screen, no state
    all_axes = figure.subplots(len(groups), 2, squeeze=False)
    for axes, ((arch, batch, device, dtype), points) in zip(all_axes, groups.items(), strict=True):
        settings = f'{arch}, {device}, {dtype}'
        titles = f'seconds per image ({settings})', f'GB of a step, batch of {batch} ({settings})'
        for i, (axis, title) in enumerate(zip(axes, titles, strict=True), 1):
            for method, line in points.items():
                line = sorted(line)
                style = dict(color=f'C{list(METHODS).index(method)}', label=METHODS[method].name)
                axis.plot([point[0] for point in line], [point[i] for point in line], 'o-', **style)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel('side of the image, pixels')
            axis.set_xticks(sorted({point[0] for line in points.values() for point in line}))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    return figure
