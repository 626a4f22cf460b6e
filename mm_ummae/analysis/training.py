"""What a training step costs: seconds, operations and memory of pre-training, and of any detector or segmentor.

:class:`TrainingStep` is a network, its optimiser and a batch. :func:`benchmark_training` times several of them in turn,
beside the machine's matrix products, and asks a process of its own for the memory of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from benchmarks.plain import PlainUMMAE
from mm_ummae.analysis.measuring import (
    MatrixProduct,
    at_least,
    check_device,
    flop_counter,
    process_growth,
    round_ratio,
    time_interleaved,
)
from mm_ummae.analysis.networks import DTYPES, SEED, Entry, build_network, check_dtype, labelled_images
from mm_ummae.analysis.report import environment, markdown_table

MEASURES = ('forward', 'backward', 'step')


class TrainingStep:
    """A network, AdamW and a batch that lies on the device; each call is a step: loss, backward, update.

    Between calls no gradients are kept, so that a network that waits holds its weights and Adam's moments only.

    Args:
        config (Config): Of :func:`read_config`.
        shape (tuple[int, int]): Height and width of the images in pixels.
        batch (int): Images of a step.
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` or ``bfloat16`` for autocast. Default ``float32``.
        compiled (bool): Compile the loss with ``torch.compile``. Default False.

    Attributes:
        model (nn.Module): The network, in train mode.
        optimizer (torch.optim.AdamW): Of all that is trained; its fused form where PyTorch has it for the device.
        inputs (Tensor): (batch, 3, H, W), normalised noise, or what a dense task's preprocessor made of black images.

    Raises:
        ValueError: If the network takes batches of another kind.
    """

    def __init__(
        self,
        config: Config,
        shape: tuple[int, int],
        batch: int,
        device: str = 'cpu',
        dtype: str = 'float32',
        compiled: bool = False,
    ) -> None:
        self.model = build_network(config).to(device).train()
        self.inputs, self._data_samples = _training_batch(config, self.model, shape, batch, device)
        self.optimizer = _adamw([parameter for parameter in self.model.parameters() if parameter.requires_grad])
        self._autocast = dict(device_type=device, dtype=DTYPES[dtype], enabled=DTYPES[dtype] is not None)
        self._losses = torch.compile(_all_losses) if compiled else _all_losses

    def __call__(self) -> None:
        """Loss, backward, AdamW."""
        self.loss().backward()
        self.update()

    def loss(self) -> Tensor:
        """The loss, a scalar."""
        with torch.autocast(**self._autocast):
            losses = self._losses(self.model, self.inputs, self._data_samples)
        return self.model.parse_losses(losses)[0]

    def forward(self) -> None:
        """Only the loss, without gradients."""
        with torch.no_grad():
            self.loss()

    def backward(self) -> None:
        """Loss and gradients, which are dropped."""
        self.loss().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """AdamW, and drop the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def take(self, data: dict[str, Any]) -> None:
        """Use another batch from now on: what a data loader gives, before the model's data preprocessor."""
        data = self.model.data_preprocessor(data, True)
        self.inputs, self._data_samples = data['inputs'], data['data_samples']

    def resident(self) -> int:
        """Bytes that stay between steps: weights, buffers and, after the first step, Adam's moments."""
        states = [each for state in self.optimizer.state.values() for each in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def _all_losses(model: nn.Module, inputs: Tensor, data_samples: list | None) -> dict[str, Tensor]:
    return model(inputs, data_samples, mode='loss')


def _training_batch(
    config: Config, model: nn.Module, shape: tuple[int, int], batch: int, device: str
) -> tuple[Tensor, list | None]:
    """Inputs and data samples as they leave the data preprocessor."""
    if config.default_scope != 'mmpretrain':
        data = labelled_images(config.default_scope, shape, batch)
        data = model.data_preprocessor(data, True)
        return data['inputs'], data['data_samples']
    if config.model.type.endswith('BEiT'):
        raise ValueError(f'the model is a {config.model.type}, which takes two views of each image: it is not measured')
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.randn(batch, 3, *shape, generator=generator).to(device)
    if not isinstance(model, BaseSelfSupervisor):
        classes = model.head.num_classes
        return inputs, [DataSample().set_gt_label(i % classes).to(device) for i in range(batch)]
    # MMPretrain's SimMIM has its masks drawn by the data pipeline
    pipeline = config.train_dataloader.dataset.pipeline
    steps = [step for step in pipeline if step.type.endswith('MaskGenerator')]
    if not steps:
        return inputs, None
    np.random.seed(SEED)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        draw = TRANSFORMS.build(steps[0])
    return inputs, [DataSample().set_mask(torch.from_numpy(draw({})['mask'])).to(device) for _ in range(batch)]


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    options = dict(lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)
    except RuntimeError:  # PyTorch 2.1 has none for a CPU
        return torch.optim.AdamW(parameters, **options)


_UMMAE = 'configs/ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py'
_STOCK = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'
# UM-MAE and what it competes with, at 256 px with a Swin-T; MAE has its ViT-B
COMPARISON = (
    Entry('UM-MAE', _UMMAE),
    Entry('UM-MAE, plain formulation', _UMMAE, {'model.type': f'mm_ummae.{PlainUMMAE.__name__}'}),
    Entry('SimMIM', 'configs/simmim/simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px.py'),
    Entry(
        'MMPretrain: SimMIM',
        _STOCK,
        {
            'model.backbone.arch': 'tiny',
            'model.backbone.img_size': 256,
            'model.backbone.stage_cfgs.block_cfgs.window_size': 8,  # as 6 at 192 px: the last map is one window
            'model.neck.in_channels': 768,
            'train_dataloader.dataset.pipeline.3.input_size': 256,
        },
    ),
    Entry(
        'MMPretrain: MAE, ViT-B',
        'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
        {'model.backbone.img_size': 256, 'model.neck.num_patches': 256},
    ),
)
# Fine-tuning and inference: the same detector on this project's backbone and on the stock one. Ours also projects each
# stage to 768 channels before the FPN, as published
_MASK_RCNN = 'configs/mask_rcnn/mask-rcnn_um-swin-tiny_fpn_amp-1x_coco.py'
DENSE = (
    Entry('Mask R-CNN, UMSwin-T', _MASK_RCNN),
    Entry('Mask R-CNN, UMSwin-T, window 7', _MASK_RCNN, {'model.backbone.window_size': 7}),
    Entry('MMDetection: Mask R-CNN, Swin-T', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
)
SETS = dict(pretraining=COMPARISON, dense=DENSE)


def make_step(entry: Entry, options: Mapping[str, Any]) -> TrainingStep:
    """The step of an entry; ``options`` are arguments of :class:`TrainingStep`."""
    return TrainingStep(entry.read(), **options)


def count_operations(step: TrainingStep) -> dict[str, int]:
    """Floating-point operations of matrix products, attention and convolutions, two a multiply-add.

    Args:
        step (TrainingStep): It does not update.
    Returns:
        dict[str, int]: ``forward`` and ``step``, forward and backward together.
    """
    with flop_counter() as counter:
        loss = step.loss()
        forward = counter.get_total_flops()
        loss.backward()
    step.optimizer.zero_grad(set_to_none=True)
    return dict(forward=forward, step=counter.get_total_flops())


def benchmark_training(
    entries: Sequence[Entry],
    shape: tuple[int, int] = (256, 256),
    batch: int = 16,
    *,
    measures: Sequence[str] = ('step',),
    device: str = 'cpu',
    dtype: str = 'float32',
    compiled: bool = False,
    rounds: int = 5,
    warmup: int = 1,
    memory: bool = True,
) -> dict[str, Any]:
    """Measure training steps, in turn, round by round; in each round also a large matrix product.

    Args:
        entries (Sequence[Entry]): What to measure; ratios are to the first.
        shape (tuple[int, int]): Height and width of the images in pixels. Default (256, 256).
        batch (int): Images of a step. Default 16.
        measures (Sequence[str]): Some of ``forward``, ``backward`` (with forward) and ``step``. Default ``step``.
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` (on a GPU) or ``bfloat16`` for autocast. Default ``float32``.
        compiled (bool): Compile the losses with ``torch.compile``. Default False.
        rounds (int): How often each is timed. Default 5.
        warmup (int): Rounds before those. Default 1.
        memory (bool): Also measure memory. Default True.
    Returns:
        dict[str, Any]: For JSON: ``environment``, ``arguments``, ``matrix_product`` with its ``operations`` and
        ``seconds``, and ``networks``: each with ``name``, ``config``, ``changes``, ``parameters``, ``operations`` (see
        :func:`count_operations`), ``seconds`` of each measure, one a round, and ``memory`` of a step in bytes, or None:
        on a GPU what PyTorch's allocator had at most, on a CPU by how much a process of its own grew at most.
    Raises:
        ValueError: If an argument is illegal.
        RuntimeError: If there is no GPU and ``device`` asks for one.
    """
    arguments = dict(
        shape=list(shape),
        batch=batch,
        measures=list(measures),
        device=device,
        dtype=dtype,
        compiled=compiled,
        rounds=rounds,
        warmup=warmup,
    )
    _check_arguments(entries, **arguments)
    where = environment(device)
    options = dict(shape=tuple(shape), batch=batch, device=device, dtype=dtype, compiled=compiled)
    networks, runs = {}, {}
    for entry in entries:
        step = make_step(entry, options | dict(compiled=False))
        operations = count_operations(step)
        if compiled:
            step = make_step(entry, options)
        networks[entry.name] = dict(
            **entry._asdict(),
            parameters=sum(parameter.numel() for parameter in step.model.parameters()),
            operations=operations,
            seconds={},
            memory=None,
        )
        calls = dict(forward=step.forward, backward=step.backward, step=step)
        runs |= {(entry.name, measure): calls[measure] for measure in measures}
        if memory and device == 'cuda':
            step()
            networks[entry.name]['memory'] = gpu_memory(step)
    product = MatrixProduct(device, dtype)
    seconds = time_interleaved({'product': product, **runs}, rounds, warmup, device)
    products = dict(operations=product.operations, seconds=seconds.pop('product'))
    for (name, measure), times in seconds.items():
        networks[name]['seconds'][measure] = times
    del runs, step, calls
    if memory and device == 'cpu':
        for entry in entries:
            make, small = (partial(make_step, entry, options | dict(batch=size)) for size in (batch, 1))
            networks[entry.name]['memory'] = process_growth(make, small)
    return dict(environment=where, arguments=arguments, matrix_product=products, networks=list(networks.values()))


def gpu_memory(step: TrainingStep) -> int:
    """The most bytes that PyTorch's allocator has in a step, with what stays between steps, but not the images."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before + step.resident()


def _check_arguments(
    entries: Sequence[Entry],
    shape: list[int],
    batch: int,
    measures: list[str],
    device: str,
    dtype: str,
    compiled: bool,
    rounds: int,
    warmup: int,
) -> None:
    check_training(entries, batch, device, dtype, rounds, warmup)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape is {tuple(shape)}, but it must be a height and a width of at least one pixel')
    if not measures or not set(measures) <= set(MEASURES):
        raise ValueError(f'measures is {measures}, but it must be some of {", ".join(MEASURES)}')


def check_training(entries: Sequence[Entry], batch: int, device: str, dtype: str, rounds: int, warmup: int) -> None:
    """Raise for the first argument, of those of :func:`benchmark_training`, that is illegal.

    Raises:
        ValueError: If one is.
        RuntimeError: If there is no GPU and ``device`` asks for one.
    """
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'entries are {names}, but there must be at least one and no name twice')
    check_dtype(dtype, device)
    at_least(1, batch=batch, rounds=rounds)
    at_least(0, warmup=warmup)
    check_device(device)


# Reporting


def time_ratio(report: dict[str, Any], name: str, base: str, measure: str = 'step') -> float:
    """How many times as long as another network: the median of the rounds' own ratios."""
    times = {network['name']: network['seconds'][measure] for network in report['networks']}
    return round_ratio(times[name], times[base])


def product_share(report: dict[str, Any], network: dict[str, Any], measure: str = 'step') -> float:
    """The rate of operations as a share of the matrix product's in the same round: the median over the rounds."""
    product = report['matrix_product']
    operations = network['operations']['forward' if measure == 'forward' else 'step']
    rounds = zip(network['seconds'][measure], product['seconds'], strict=True)
    return median(operations / own / (product['operations'] / other) for own, other in rounds)


def training_table(report: dict[str, Any]) -> str:
    """The networks of :func:`benchmark_training` as a Markdown table, a row for each measure.

    Seconds are the median, with the smallest and the largest behind it; ratios are to the first network.
    """
    networks, batch = report['networks'], report['arguments']['batch']
    first = networks[0]
    with_memory = all(network['memory'] is not None for network in networks)
    rows = []
    for network in networks:
        for measure, times in network['seconds'].items():
            operations = network['operations']['forward' if measure == 'forward' else 'step']
            rows.append(
                [
                    network['name'],
                    measure,
                    f'{network["parameters"] / 1e6:.1f}',
                    f'{operations / batch / 1e9:.1f}',
                    f'{median(times):.3g} ({min(times):.3g} to {max(times):.3g})',
                    f'{batch / median(times):.3g}',
                    f'{time_ratio(report, network["name"], first["name"], measure):.2f}',
                    f'{product_share(report, network, measure):.2f}',
                ]
            )
            if with_memory:
                rows[-1] += [f'{network["memory"] / 1e9:.2f}', f'{network["memory"] / first["memory"]:.2f}']
    titles = ['network', 'measure', 'parameters (M)', 'GFLOP per image', 'seconds (smallest to largest)']
    titles += ['images per second', 'time ratio', 'share of matrix products']
    return markdown_table(titles + ['memory (GB)', 'memory ratio'] * with_memory, rows)


class Target(NamedTuple):
    """A figure to reach.

    Attributes:
        name (str): What it is.
        limit (float): At most this, or at least if ``at_most`` is False.
        value (float): As measured.
        at_most (bool): Which side of the limit is right.
    """

    name: str
    limit: float
    value: float
    at_most: bool = True

    def reached(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def targets(report: dict[str, Any]) -> list[Target]:
    """The project's targets and what a report of :data:`COMPARISON` says of them.

    Args:
        report (dict[str, Any]): Of :func:`benchmark_training` with the measure ``step``.
    """
    networks = {network['name']: network for network in report['networks']}
    ours, plain, simmim, stock, _ = (networks[entry.name] for entry in COMPARISON)
    on_gpu = report['arguments']['device'] == 'cuda'
    half = report['arguments']['dtype'] != 'float32'
    operations = ours['operations']['step'] / simmim['operations']['step']
    factor = 1.1 if on_gpu else 1.05

    def times(other: dict[str, Any]) -> float:
        return time_ratio(report, ours['name'], other['name'])

    to_plain, share = (0.4, 0.35) if on_gpu else (0.6, 0.5) if half else (0.75, 0.8)
    found = [
        Target('step time, to plain formulation', to_plain, times(plain)),
        Target(f'step time, to SimMIM ({factor} x operations)', factor * operations, times(simmim)),
        Target("step time, to MMPretrain's SimMIM", 0.35, times(stock)),
        Target('share of matrix products', share, product_share(report, ours), at_most=False),
    ]
    if ours['memory'] is not None:
        limits = (0.4, 0.35) if on_gpu else (0.7, 0.4)
        for other, what, limit in zip((plain, simmim), ('plain formulation', 'SimMIM'), limits, strict=True):
            found.append(Target(f'memory, to {what}', limit, ours['memory'] / other['memory']))
    return found


def target_table(found: Sequence[Target]) -> str:
    """Targets as a Markdown table."""
    rows = []
    for target in found:
        sign = '≤' if target.at_most else '≥'
        rows.append(
            [target.name, f'{sign} {target.limit:.3g}', f'{target.value:.3g}', 'yes' if target.reached() else 'no']
        )
    return markdown_table(['target', 'limit', 'measured', 'reached'], rows)
