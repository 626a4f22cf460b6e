"""Hours of pre-training on one GPU and on many, on paper, and what limits them: compute, all-reduce or loader.

    python -m benchmarks.hours --peak 989 --share 0.35 --loader 456 --cores 12 --inside 450 --between 50
    python -m benchmarks.hours CONFIG --seconds-per-image 0.0005 --loader 456 --cores 12 --inside 450 --between 50

This is arithmetic with the numbers given, not a measurement. A step of the optimizer takes the total batch, on each GPU
in iterations of some images. Its time is modelled as

* compute: the images of a GPU times the seconds of an image (measured, or FLOPs over a share of the GPU's peak);
* all-reduce: once a step each of n GPUs sends 2 (n - 1) / n times the bytes of the float32 gradients, as in a ring,
  over the slowest link of the ring: that between nodes as soon as there are two. DistributedDataParallel does so during
  the backward pass of the last iteration, so only what takes longer than that adds to the step;
* loader: the images of a GPU over what its CPU cores decode and crop per second, in parallel with the GPU.

step = max(compute + waiting for all-reduce, loader), and the largest part of the larger side limits it. Left out are
the latency of collectives, stragglers, storage, checkpoints, and, unless the seconds of an image include it, AdamW.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mm_ummae.analysis import Settings, environment, markdown_table, read_config, write_json
from mm_ummae.analysis.measuring import at_least
from mm_ummae.analysis.step import TrainingStep

from .entries import ROOT

CONFIGS = tuple(
    str(ROOT / f'configs/ummae/ummae_{name}_in1k-256px.py')
    for name in (
        'swin-tiny_8xb128x4-amp-coslr-200e',
        'swin-base_8xb64x8-amp-coslr-800e',
        'swin-large_8xb64x8-amp-coslr-800e',
    )
)
IMAGENET_IMAGES = 1_281_167
TOTAL_BATCH = 4096  # GPUs x images x iterations of every pre-training recipe
GRADIENT_BYTES = 4  # of a parameter: float32 in mixed precision too


class Workload(NamedTuple):
    """A recipe in numbers.

    Attributes:
        name (str): For tables.
        parameters (int): Trained parameters.
        forward_flops (int): FLOPs of the forward pass of an image, two for a multiply-add.
        backward_flops (int): Those of its backward pass.
        epochs (int): Of ImageNet-1K.
        images (int): The most images of an iteration on a GPU.
    """

    name: str
    parameters: int
    forward_flops: int
    backward_flops: int
    epochs: int
    images: int


class Machine(NamedTuple):
    """CPU cores and links of the GPUs.

    Attributes:
        loader (float): Images per second of a CPU core.
        cores (float): CPU cores of a GPU.
        inside (float): Bytes per second that a GPU sends to another one of its node.
        between (float): Bytes per second that a GPU sends to another node, while all do.
        node (int): GPUs of a node. Default 8.
    """

    loader: float
    cores: float
    inside: float
    between: float
    node: int = 8


def read_workload(name: str, config: Config) -> Workload:
    """Read a masked pre-training recipe and count the FLOPs of its step on a random image."""
    side = config.model.backbone.img_size
    step = TrainingStep.on_random_images(config, (side, side), 1, Settings())
    flops = step.flops()
    return Workload(
        name=name,
        parameters=sum(parameter.numel() for parameter in step.model.parameters() if parameter.requires_grad),
        forward_flops=flops['forward'],
        backward_flops=flops['step'] - flops['forward'],
        epochs=config.train_cfg.max_epochs,
        images=config.train_dataloader.batch_size,
    )


def seconds_on_paper(work: Workload, peak: float, share: float) -> float:
    """Seconds per image of a GPU that was not measured.

    Args:
        work (Workload): Its FLOPs count.
        peak (float): Peak FLOP/s from the data sheet, in the precision of the training.
        share (float): Assumed share of the peak that a step reaches, in (0, 1].
    Raises:
        ValueError: If one is not positive, or the share above 1.
    """
    _positive(peak=peak, share=share)
    if share > 1:
        raise ValueError(f'share is {share:g}, but it must be at most 1')
    return (work.forward_flops + work.backward_flops) / (peak * share)


def pretraining_hours(work: Workload, machine: Machine, gpus: int, seconds_per_image: float) -> dict[str, Any]:
    """Hours of a recipe and their parts, by the model in this module's docstring.

    Args:
        work (Workload): The recipe.
        machine (Machine): Cores and links.
        gpus (int): Number of GPUs.
        seconds_per_image (float): Of forward, backward and, if measured so, the update, on one GPU.
    Returns:
        dict[str, Any]: For JSON: ``name``, ``gpus``, ``images`` and ``iterations`` of a GPU and step; seconds of a step
        in ``compute``, ``loader`` and ``all_reduce``, in ``waiting`` those of the latter that the backward pass does
        not hide, and in ``step`` altogether; ``images_per_second`` of all GPUs, ``hours``, and ``limit``.
    Raises:
        ValueError: If a number is not positive, or the GPUs cannot share the total batch.
    """
    at_least(1, gpus=gpus, node=machine.node)
    _positive(seconds_per_image=seconds_per_image, **machine._asdict())
    images = min(work.images, TOTAL_BATCH // gpus)
    if images < 1 or TOTAL_BATCH % (gpus * images):
        raise ValueError(
            f'gpus is {gpus} with {images} images each, but GPUs x images x iterations must be {TOTAL_BATCH}'
        )
    iterations = TOTAL_BATCH // (gpus * images)
    compute = images * iterations * seconds_per_image
    loader = images * iterations / (machine.loader * machine.cores)
    bandwidth = machine.inside if gpus <= machine.node else machine.between
    all_reduce = 2 * (gpus - 1) / gpus * GRADIENT_BYTES * work.parameters / bandwidth
    backward = work.backward_flops / (work.forward_flops + work.backward_flops) * images * seconds_per_image
    waiting = max(0.0, all_reduce - backward)
    step = max(compute + waiting, loader)
    limit = 'loader' if step == loader else 'compute' if compute >= waiting else 'all-reduce'
    return dict(
        name=work.name,
        gpus=gpus,
        images=images,
        iterations=iterations,
        compute=compute,
        loader=loader,
        all_reduce=all_reduce,
        waiting=waiting,
        step=step,
        images_per_second=TOTAL_BATCH / step,
        hours=work.epochs * IMAGENET_IMAGES / TOTAL_BATCH * step / 3600,
        limit=limit,
    )


def hours_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Results of :func:`pretraining_hours` as a Markdown table, with the time of each part as a share of the step."""
    titles = ['recipe', 'GPUs', 'images x iterations', 'images/s', 'hours', 'limited by']
    titles += ['compute', 'waiting for all-reduce', 'all-reduce', 'loader']
    lines = []
    for row in rows:
        line = [row['name'], str(row['gpus']), f'{row["images"]} x {row["iterations"]}']
        line += [f'{row["images_per_second"]:,.0f}', f'{row["hours"]:,.1f}', row['limit']]
        line += [f'{row[part] / row["step"]:.1%}' for part in ('compute', 'waiting', 'all_reduce', 'loader')]
        lines.append(line)
    return markdown_table(titles, lines)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f'{name} is {value:g}, but it must be more than 0')


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'python -m benchmarks.hours', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', help='of masked pre-training (default: UM-MAE of Swin-T, -B and -L)'
    )
    parser.add_argument('--gpus', nargs='+', type=int, default=[1, 8, 64], help='numbers of GPUs (default: 1 8 64)')
    parser.add_argument(
        '--seconds-per-image', nargs='+', type=float, metavar='S', help='of a step on one GPU, one for each config'
    )
    parser.add_argument('--peak', type=float, metavar='TFLOPS', help='peak of the GPU from its data sheet')
    parser.add_argument('--share', type=float, help='assumed share of the peak that a step reaches, at most 1')
    parser.add_argument('--loader', type=float, required=True, help='images per second of a CPU core')
    parser.add_argument('--cores', type=float, required=True, help='CPU cores of a GPU')
    parser.add_argument('--inside', type=float, required=True, help='GB/s that a GPU sends inside its node')
    parser.add_argument('--between', type=float, required=True, help='GB/s that a GPU sends to another node')
    parser.add_argument('--node', type=int, default=8, help='GPUs of a node (default: %(default)s)')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args(arguments)
    args.configs = args.configs or list(CONFIGS)
    if (args.seconds_per_image is None) == (args.peak is None or args.share is None):
        raise ValueError('--seconds-per-image is needed, or else --peak and --share, and not all of them')
    if args.seconds_per_image and len(args.seconds_per_image) != len(args.configs):
        raise ValueError(
            f'--seconds-per-image has {len(args.seconds_per_image)} numbers, but there are {len(args.configs)} configs'
        )
    return args


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Estimate, print a table and write the JSON file; returns the rows."""
    args = parse_args(arguments)
    machine = Machine(args.loader, args.cores, args.inside * 1e9, args.between * 1e9, args.node)
    works = [read_workload(Path(config).stem, read_config(config)) for config in args.configs]
    seconds = args.seconds_per_image or [seconds_on_paper(work, args.peak * 1e12, args.share) for work in works]
    rows = [
        pretraining_hours(work, machine, gpus, each)
        for work, each in zip(works, seconds, strict=True)
        for gpus in args.gpus
    ]
    print(hours_table(rows))
    print(
        f'\nOn paper, not measured. Steps of {TOTAL_BATCH} images; {args.loader:g} images/s per core, {args.cores:g} '
        f'cores per GPU; {args.inside:g} GB/s in a node of {args.node} GPUs, {args.between:g} GB/s between nodes'
    )
    for work, each in zip(works, seconds, strict=True):
        flops = (work.forward_flops + work.backward_flops) / 1e9
        print(f'{work.name}: {work.parameters / 1e6:.1f} M parameters, {flops:.1f} GFLOPs and {each:.3g} s per image')
    if args.out:
        report = dict(
            environment=environment('cpu'),
            arguments={key: value for key, value in vars(args).items() if key not in ('configs', 'out')},
            workloads=[work._asdict() for work in works],
            rows=rows,
        )
        write_json(report, args.out)
    return rows


if __name__ == '__main__':
    main()
