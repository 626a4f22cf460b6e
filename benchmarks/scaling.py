"""Hours of pre-training on one GPU and on many, on paper: arithmetic with numbers that were measured elsewhere.

A step of the optimiser takes the total batch, on each GPU in iterations of some images each. Its time is modelled as

* **compute**: the images of a GPU times the seconds that an image takes there;
* **all-reduce**: each GPU sends 2 (n - 1) / n times the bytes of the float32 gradients, as a ring of n GPUs does, once
  a step, over the slowest link of the ring: that between nodes as soon as there are two. DistributedDataParallel does
  it during the backward pass of the step's last iteration, so only what takes longer than that is waited for;
* **loader**: the images of a GPU over what its processor cores decode and crop in a second. It works beside the GPU.

step = max(compute + waiting for all-reduce, loader), and what limits it is the largest part of the larger side.

Left out are the latency of collectives, slower GPUs that others wait for, storage that cannot keep up, checkpoints,
and, unless the seconds of an image include it, the update of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mm_ummae.analysis.measuring import at_least, flop_counter
from mm_ummae.analysis.networks import read_config
from mm_ummae.analysis.report import markdown_table

IMAGENET_IMAGES = 1_281_167
TOTAL_BATCH = 4096  # GPUs x images x iterations of every pre-training recipe
GRADIENT_BYTES = 4  # of a parameter: float32 in mixed precision too


class Workload(NamedTuple):
    """What a recipe asks for.

    Attributes:
        name (str): For tables.
        parameters (int): That are trained.
        forward_flops (int): Operations of an image's forward pass; a multiply-add is two.
        backward_flops (int): Those of its backward pass.
        epochs (int): Of ImageNet-1K.
        images (int): The most in an iteration on a GPU.
    """

    name: str
    parameters: int
    forward_flops: int
    backward_flops: int
    epochs: int
    images: int


class Machine(NamedTuple):
    """What feeds and connects the GPUs.

    Attributes:
        loader (float): Images per second of a processor core.
        cores (float): Processor cores of a GPU.
        inside (float): Bytes per second that a GPU sends to another one of its node.
        between (float): Bytes per second that a GPU sends to another node, while all do.
        node (int): GPUs of a node. Default 8.
    """

    loader: float
    cores: float
    inside: float
    between: float
    node: int = 8


def read_workload(config: str | Path | Config) -> Workload:
    """Read a recipe and count the operations of its step: forward and backward run once, on an image of noise.

    Counted are matrix products, attention and convolutions, without what a fused backward computes again.

    Args:
        config (str | Path | Config): A config of masked pre-training; a file also gives the name.
    Returns:
        Workload: With weights as they are built; the counts do not depend on them.
    """
    name = 'pre-training' if isinstance(config, Config) else Path(config).stem
    config = config if isinstance(config, Config) else read_config(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    side = config.model.backbone.img_size
    fused = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)  # its backward computes products again, which do not count here
    try:
        with flop_counter() as counter:
            loss = model(torch.randn(1, 3, side, side), mode='loss')['loss']
            forward = counter.get_total_flops()
            loss.backward()
    finally:
        torch.backends.cuda.enable_flash_sdp(fused)
    return Workload(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        forward_flops=forward,
        backward_flops=counter.get_total_flops() - forward,
        epochs=config.train_cfg.max_epochs,
        images=config.train_dataloader.batch_size,
    )


def seconds_on_paper(work: Workload, peak: float, share: float) -> float:
    """Seconds per image of a GPU that was not measured.

    Args:
        work (Workload): Whose operations count.
        peak (float): Operations per second that the GPU is sold with, in the precision of the training.
        share (float): Of them that a step is assumed to reach, in (0, 1].
    Raises:
        ValueError: If one is not positive, or the share above 1.
    """
    _positive(peak=peak, share=share)
    if share > 1:
        raise ValueError(f'share is {share:g}, but it must be at most 1')
    return (work.forward_flops + work.backward_flops) / (peak * share)


def pretraining_hours(work: Workload, machine: Machine, gpus: int, seconds_per_image: float) -> dict[str, Any]:
    """Hours of a recipe, and where they go; the head of this module has the model.

    Args:
        work (Workload): The recipe.
        machine (Machine): What is around the GPUs.
        gpus (int): How many.
        seconds_per_image (float): Of forward, backward and, if it was measured so, the update, on one GPU.
    Returns:
        dict[str, Any]: For JSON: ``name``, ``gpus``, ``images`` and ``iterations`` of a GPU and step; seconds of a
        step in ``compute``, ``loader`` and ``all_reduce``, in ``waiting`` what of the latter the backward does not
        hide, and in ``step`` altogether; ``images_per_second`` of all GPUs, ``hours``, and ``limit``.
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
