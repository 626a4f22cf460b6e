"""Estimate of the GPU memory of a training step of a detector or a segmentor, without a GPU.

A step is cut at the feature maps, because heads cannot run without numbers: they match boxes.

* Backbone and neck run on fake tensors, which have shapes but no data: forward and backward take seconds at any size.
* The heads run on the CPU in float32, with the model's own targets, samplers and losses, on random boxes; only
  convolutions and matrix products return zeros at once, since their values do not change any size.

:class:`PeakMemory` sees every tensor that both of them make. Autograd finishes the heads' backward before the neck's,
so a step holds at most the larger of two amounts: what backbone and neck keep for backward together with the peak of
the heads, or the peak of backbone and neck alone.

The estimate is an upper bound of what PyTorch allocates for tensors:

* Heads count in float32, because MMCV supports nothing else on a CPU; in mixed precision most of it is half.
* Attention with a bias that needs a gradient is not fused on a CPU: all scores of a block count in forward and in
  backward. A fused GPU kernel holds none in forward, and one such tensor, the gradient of the bias, in backward.
* All gradients count for the whole step, and so do the buckets that DistributedDataParallel copies them to.

The CUDA context, workspaces of cuDNN and fragmentation come on top.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from .measuring import PeakMemory, at_least, check_shape
from .networks import SEED, annotated_images, build_network, random_boxes

HOSTS = ('mmdet', 'mmseg')
OPTIMIZERS = ('Adam', 'AdamW')
PRODUCTS = tuple(
    getattr(torch.ops.aten, name).default for name in ('convolution', 'convolution_backward', 'addmm', 'mm', 'bmm')
)


class ZeroProducts(TorchDispatchMode):
    """Convolutions and matrix products inside this context return zeros of the right shape at once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an ATen operation; of a product only the shapes."""
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        shapes = func(*(each.to('meta') if isinstance(each, Tensor) else each for each in args), **(kwargs or {}))
        if isinstance(shapes, Tensor):
            return torch.zeros_like(shapes, device='cpu')
        return tuple(each if each is None else torch.zeros_like(each, device='cpu') for each in shapes)


def estimate_training_memory(config: Config, shape: tuple[int, int], images: int = 2) -> dict[str, Any]:
    """Estimate the GPU memory of a training step; the module's docstring explains how.

    Weights, gradients and the two moments of Adam are float32, also in mixed precision.

    Args:
        config (Config): A detector of MMDetection or a segmentor of MMSegmentation that trains with Adam or AdamW; in
            mixed precision if its optimizer wrapper is ``AmpOptimWrapper``.
        shape (tuple[int, int]): Height and width of an image in pixels; the data preprocessor pads it.
        images (int): Images per GPU. Default 2.
    Returns:
        dict[str, Any]: For JSON. In bytes ``weights`` (with buffers), ``gradients``, ``buckets`` (of distributed
        training), ``optimizer``, ``activations``, and ``total``, their sum. Of the activations ``kept`` (feature maps
        and what backbone and neck keep for backward), ``backbone_and_neck`` (their peak in forward and backward) and
        ``heads`` (peak of everything behind the feature maps). Also ``input_shape`` after padding and
        ``mixed_precision``.
    Raises:
        ValueError: If an argument is illegal, or the config is of another kind.
    """
    check_shape(shape)
    at_least(1, images=images)
    _check_config(config)
    amp = config.optim_wrapper.get('type') == 'AmpOptimWrapper'
    model = build_network(config)
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    data = model.data_preprocessor(annotated_images(config.default_scope, tuple(shape), images), True)
    input_shape = tuple(data['inputs'].shape)
    kept, trunk, shapes = _backbone_and_neck(config, input_shape, amp)
    heads = _heads(model, data, shapes)
    parts = dict(
        weights=sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        gradients=trained,
        buckets=trained,
        optimizer=2 * trained,
        activations=max(trunk, kept + heads),
    )
    made_of = dict(kept=kept, backbone_and_neck=trunk, heads=heads)
    total = sum(parts.values())
    return dict(**parts, total=total, **made_of, input_shape=list(input_shape), mixed_precision=amp)


def _backbone_and_neck(
    config: Config, input_shape: tuple[int, ...], amp: bool
) -> tuple[int, int, list[tuple[int, ...]]]:
    """Forward and backward of backbone and neck on fake images (N, 3, H, W).

    Returns bytes alive after forward, the peak, and the shapes of the feature maps. Gradients of parameters do not
    count.
    """
    with FakeTensorMode():
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = _ready_to_train(revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model))))
        for module in model.modules():
            if amp and isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                # As autocast does on a GPU. On a CPU it leaves norms, and so all that adds up along a transformer's
                # blocks, in half precision
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        with PeakMemory() as memory:
            with torch.autocast('cpu', torch.bfloat16, enabled=amp):  # the size of a GPU's float16
                maps = model.extract_feat(torch.empty(input_shape))
            kept = memory.live
            torch.autograd.backward(maps, [torch.ones_like(each) for each in maps])
    return kept, memory.peak, [tuple(each.shape) for each in maps]


def _heads(model: nn.Module, data: dict[str, Any], shapes: list[tuple[int, ...]]) -> int:
    """Peak bytes in forward and backward of everything behind the feature maps, in float32 on the CPU.

    Feature maps and gradients of parameters do not count. Proposals of random weights match no ground truth. So a
    detector with two stages gets others, as many as its RPN passes on, half of them close to ground-truth boxes, so
    that every sampler gets its positive boxes.
    """
    _ready_to_train(model)
    maps = tuple(torch.rand(shape, requires_grad=True) for shape in shapes)
    model.extract_feat = lambda inputs: maps
    if getattr(model, 'with_rpn', False):
        count = model.train_cfg.get('rpn_proposal', model.test_cfg.rpn).max_per_img
        proposals = [_proposals(sample.gt_instances.bboxes, sample.img_shape, count) for sample in data['data_samples']]
        model.rpn_head.predict_by_feat = lambda *args, **kwargs: proposals
    with ZeroProducts(), PeakMemory() as memory:
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
    if all(each.grad is None for each in maps):
        raise ValueError(f'model is a {type(model).__name__}, whose losses do not come from the maps of extract_feat')
    return memory.peak


def _proposals(boxes: Tensor, shape: tuple[int, int], count: int) -> InstanceData:
    """Proposals, half of them random, the others with an IoU of at least 0.78 to one of the boxes (n, 4)."""
    rng = np.random.default_rng(SEED)
    matched = boxes.numpy()[rng.integers(len(boxes), size=count // 2)]
    sizes = np.tile(matched[:, 2:] - matched[:, :2], 2)
    near = matched + sizes * rng.uniform(-0.03, 0.03, matched.shape)  # IoU at least 0.94 ** 2 / 1.06 ** 2
    found = np.concatenate((near, random_boxes(rng, count - len(near), shape)))
    bboxes = torch.from_numpy(found.astype(np.float32))
    return InstanceData(bboxes=bboxes, scores=torch.rand(count), labels=torch.zeros(count, dtype=torch.long))


def _ready_to_train(model: nn.Module) -> nn.Module:
    """In train mode, with a gradient for every parameter, so that backward accumulates and makes no new one."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # the same memory, and no error where a map of a single image has a single pixel
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model


def _check_config(config: Config) -> None:
    if config.get('default_scope') not in HOSTS:
        raise ValueError(
            f'default_scope of the config is {config.get("default_scope")!r}, but it must be mmdet or mmseg'
        )
    optimizer = config.get('optim_wrapper', {}).get('optimizer', {}).get('type')
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f'optim_wrapper.optimizer.type is {optimizer}, but it must be {" or ".join(OPTIMIZERS)}: '
            'the size of the state of others is not known here'
        )
