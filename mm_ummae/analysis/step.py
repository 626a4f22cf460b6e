"""Cost of a training step: FLOPs, time and peak memory of loss, backward and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .measuring import Settings, at_least, check_shape, flop_counter, peak_memory
from .networks import SEED, annotated_images, build_network


class TrainingStep:
    """A network, AdamW and a batch on the device; each call is a step: loss, backward, update.

    No gradients are kept between calls, so that a waiting network holds only its weights and Adam's moments.

    Args:
        config (Config): From :func:`~mm_ummae.analysis.read_config`.
        settings (Settings): Device and precision.
        compiled (bool): Compile the loss with ``torch.compile``. Default False.

    Attributes:
        model (nn.Module): The network, in train mode.
        optimizer (torch.optim.AdamW): Of all trained parameters; the fused one where PyTorch has it for the device.
        inputs (Tensor): (N, 3, H, W), after the data preprocessor.
        data_samples (list | None): One of each image, or None if the network needs none.
    """

    inputs: Tensor
    data_samples: list | None

    def __init__(self, config: Config, settings: Settings, compiled: bool = False) -> None:
        self.model = build_network(config).to(settings.device).train()
        self.optimizer = _adamw([parameter for parameter in self.model.parameters() if parameter.requires_grad])
        self._settings = settings
        self.channels = getattr(getattr(self.model, 'backbone', None), 'in_channels', 3)  # of the images
        self._losses = torch.compile(_losses) if compiled else _losses

    @classmethod
    def on_random_images(
        cls, config: Config, shape: tuple[int, int], batch: int, settings: Settings, compiled: bool = False
    ) -> TrainingStep:
        """With a batch of normalised noise (N, C, H, W), or for dense tasks of annotated black images.

        Raises:
            ValueError: If the network needs batches of another kind.
        """
        step = cls(config, settings, compiled)
        if config.default_scope == 'mmpretrain':
            noise = torch.randn(batch, step.channels, *shape, generator=torch.Generator().manual_seed(SEED))
            step.inputs, step.data_samples = noise.to(settings.device), None
            samples = _pretrain_samples(config, step.model, batch)
            if samples is not None:
                step.data_samples = [sample.to(settings.device) for sample in samples]
        else:
            step.take(annotated_images(config.default_scope, shape, batch))
        return step

    def take(self, data: dict[str, Any]) -> None:
        """Use a batch of a data loader from now on."""
        data = self.model.data_preprocessor(data, True)
        self.inputs, self.data_samples = data['inputs'], data['data_samples']

    def __call__(self) -> None:
        """Loss, backward, update."""
        self.loss().backward()
        self.update()

    def loss(self) -> Tensor:
        """The loss, a scalar."""
        with self._settings.autocast():
            losses = self._losses(self.model, self.inputs, self.data_samples)
        return self.model.parse_losses(losses)[0]

    def update(self) -> None:
        """AdamW; drops the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def flops(self) -> dict[str, int]:
        """FLOPs of ``forward`` and of a ``step`` (forward and backward), two for a multiply-add; no update."""
        with flop_counter() as counter:
            loss = self.loss()
            forward = counter.get_total_flops()
            loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        return dict(forward=forward, step=counter.get_total_flops())

    def resident(self) -> int:
        """Bytes that stay between steps: weights, buffers and, after the first step, Adam's moments."""
        states = [each for state in self.optimizer.state.values() for each in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def memory(self) -> int:
        """Peak memory of a step in bytes, without the images; needs a step before, for Adam's moments."""
        return self.resident() + peak_memory(self, self._settings.device)


def _losses(model: nn.Module, inputs: Tensor, data_samples: list | None) -> dict[str, Tensor]:
    return model(inputs, data_samples, mode='loss')


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    options = dict(lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)
    except RuntimeError:  # PyTorch 2.1 has no fused AdamW for a CPU
        return torch.optim.AdamW(parameters, **options)


def _pretrain_samples(config: Config, model: nn.Module, batch: int) -> list[DataSample] | None:
    """Labels of a classifier, masks of a pipeline that draws them, else None."""
    if config.model.type.endswith('BEiT'):
        raise ValueError(
            f'model.type is {config.model.type}, which takes two views of each image, but random images have one: '
            'measure it with its data loader (--measure training)'
        )
    if not isinstance(model, BaseSelfSupervisor):
        return [DataSample().set_gt_label(i % model.head.num_classes) for i in range(batch)]
    # MMPretrain's SimMIM draws its masks in the data pipeline
    generators = [step for step in config.train_dataloader.dataset.pipeline if step.type.endswith('MaskGenerator')]
    if not generators:
        return None
    np.random.seed(SEED)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        draw = TRANSFORMS.build(generators[0])
    return [DataSample().set_mask(torch.from_numpy(draw({})['mask'])) for _ in range(batch)]


def measure_steps(
    configs: Mapping[str, Config],
    shape: tuple[int, int] = (256, 256),
    batch: int = 16,
    settings: Settings | None = None,
    *,
    compiled: bool = False,
    beside: Mapping[str, Callable[[], Any]] | None = None,
) -> list[dict[str, Any]]:
    """Measure training steps on random images, the networks in turn, round by round.

    Args:
        configs (Mapping[str, Config]): From :func:`~mm_ummae.analysis.read_config`, by name.
        shape (tuple[int, int]): Height and width of the images in pixels. Default (256, 256).
        batch (int): Images of a step. Default 16.
        settings (Settings, optional): Device, precision and rounds.
        compiled (bool): Compile the losses with ``torch.compile``. Default False.
        beside (Mapping[str, Callable[[], Any]], optional): Other callables to time in the same rounds.
    Returns:
        list[dict[str, Any]]: For JSON. Of each network ``name``, ``batch``, ``parameters``, ``flops`` (see
        :meth:`TrainingStep.flops`), ``seconds`` and ``images_per_second``, one value a round, and ``memory``, the peak
        in bytes with weights, gradients and moments, without the images (None in compiled code on a CPU, where tensors
        cannot be seen). Then ``name`` and ``seconds`` of each of ``beside``.
    Raises:
        ValueError: If an argument is illegal.
    """
    settings = settings or Settings()
    check_shape(shape)
    at_least(1, configs=len(configs), batch=batch)
    rows, steps = {}, {}
    for name, config in configs.items():
        step = TrainingStep.on_random_images(config, tuple(shape), batch, settings)
        parameters, flops = sum(parameter.numel() for parameter in step.model.parameters()), step.flops()
        if compiled:  # compiled code cannot be counted
            step = TrainingStep.on_random_images(config, tuple(shape), batch, settings, compiled)
        step()
        peak = None if compiled and settings.device == 'cpu' else step.memory()
        rows[name] = dict(name=name, batch=batch, parameters=parameters, flops=flops, memory=peak)
        steps[name] = step
    for name, seconds in settings.time({**(beside or {}), **steps}).items():
        rows.setdefault(name, dict(name=name))['seconds'] = seconds
    for name in steps:
        rows[name]['images_per_second'] = [batch / each for each in rows[name]['seconds']]
    return list(rows.values())
