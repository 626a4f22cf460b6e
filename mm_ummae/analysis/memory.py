"""How much GPU memory a training step of a detector or a segmentor takes, estimated without a GPU.

A step is cut at the maps that the heads get, because the heads cannot run without numbers: they match boxes.

* Backbone and neck run on fake tensors, which have shapes and no values: forward and backward take seconds at any size.
* Everything behind the maps runs on the CPU in float32, with the model's own targets, samplers and losses, on random
  boxes; only convolutions and matrix products give zeros at once, since their values change no size.

:class:`PeakMemory` sees every tensor that either of them makes. Autograd runs the heads' backward before it comes to
the neck's, so a step holds at most the larger of two amounts: what backbone and neck keep for their backward together
with the peak of the heads, or the peak of backbone and neck alone.

The estimate is an upper bound of what PyTorch allocates for tensors:

* The heads are counted in float32, since MMCV's operations on a CPU take nothing else; in mixed precision most of it is
  half.
* Attention with a bias that needs a gradient is not fused on a CPU: all scores of a block are held in forward and in
  backward. A fused kernel of a GPU holds none in forward, and in backward one such tensor, the gradient of the bias.
* All gradients are counted for the whole step, and the buckets that DistributedDataParallel copies them to.

The CUDA context, workspaces of cuDNN and fragmentation come on top.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from mm_ummae.analysis import SEED, build_network
from mm_ummae.analysis.networks import labelled_images, random_boxes

HOSTS = ('mmdet', 'mmseg')
OPTIMIZERS = ('Adam', 'AdamW')
PRODUCTS = tuple(
    getattr(torch.ops.aten, name).default for name in ('convolution', 'convolution_backward', 'addmm', 'mm', 'bmm')
)


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that are made inside this context: those alive now, and the most at any time.

    Counts storages: a view, or a result that is written in place, adds nothing, and a storage lives as long as anything
    holds it, be it a graph of autograd. Tensors from before the context do not count. Not seen is what an operation
    allocates and frees again inside its kernel.

    Attributes:
        peak (int): The most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._counted = 0  # bytes of _storages; those that died since the last look are still among them
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def live(self) -> int:
        """Bytes that are alive now."""
        # weakref's references call back when a storage dies, but crash with PyTorch 2.1
        for key in [key for key, (storage, _) in self._storages.items() if storage.expired()]:
            self._counted -= self._storages.pop(key)[1]
        return self._counted

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation of ATen and count what it made."""
        result = func(*args, **(kwargs or {}))
        if _makes_storage(func):
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor):
                    self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata in self._storages:
            return
        # The reference also keeps the address from being used again before the entry is removed
        self._storages[reference.cdata] = reference, storage.nbytes()
        self._counted += storage.nbytes()
        if self._counted > self.peak:  # only then it matters what has died
            self.peak = max(self.peak, self.live)


@cache
def _makes_storage(func: Any) -> bool:
    """Whether an operation may return anything but its arguments and views of them."""
    return any(result.alias_info is None for result in func._schema.returns)


class ZeroProducts(TorchDispatchMode):
    """Convolutions and matrix products inside this context return zeros of the right shape at once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation of ATen; of a product only the shapes."""
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        shapes = func(*(each.to('meta') if isinstance(each, Tensor) else each for each in args), **(kwargs or {}))
        if isinstance(shapes, Tensor):
            return torch.zeros_like(shapes, device='cpu')
        return tuple(each if each is None else torch.zeros_like(each, device='cpu') for each in shapes)


def estimate_training_memory(config: Config, shape: tuple[int, int], images: int = 2) -> dict[str, Any]:
    """Estimate the GPU memory of a training step; see the head of this module for how.

    Weights, gradients and the two moments of Adam are float32 in mixed precision too.

    Args:
        config (Config): A detector of MMDetection or a segmentor of MMSegmentation that trains with Adam or AdamW; in
            mixed precision if its optimiser wrapper is ``AmpOptimWrapper``.
        shape (tuple[int, int]): Height and width of an image in pixels; the data preprocessor pads it.
        images (int): Images on a GPU. Default 2.
    Returns:
        dict[str, Any]: For JSON. In bytes ``weights`` (with buffers), ``gradients``, ``buckets`` (of distributed
        training), ``optimizer``, ``activations`` and ``total``, the sum of these. What the activations are made of:
        ``kept`` (maps, and what backbone and neck keep for backward), ``backbone_and_neck`` (their peak in forward and
        backward) and ``heads`` (peak of all that comes behind the maps). Also ``input_shape`` after padding and
        ``mixed_precision``.
    Raises:
        ValueError: If an argument is illegal, or the config is of another kind.
    """
    _check(config, tuple(shape), images)
    amp = config.optim_wrapper.get('type') == 'AmpOptimWrapper'
    model = build_network(config)
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    data = model.data_preprocessor(labelled_images(config.default_scope, tuple(shape), images), True)
    input_shape = tuple(data['inputs'].shape)
    kept, trunk, shapes = backbone_and_neck_memory(config, input_shape, amp)
    heads = heads_memory(model, data, shapes)
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


def backbone_and_neck_memory(
    config: Config, input_shape: tuple[int, ...], amp: bool
) -> tuple[int, int, list[tuple[int, ...]]]:
    """Forward and backward of backbone and neck on fake tensors.

    Args:
        config (Config): Of :func:`estimate_training_memory`.
        input_shape (tuple[int, ...]): (N, 3, H, W) of the padded images.
        amp (bool): Mixed precision.
    Returns:
        tuple[int, int, list[tuple[int, ...]]]: Bytes alive when forward is done, the most bytes at any time, and the
        shapes of the maps. Gradients of parameters are not among the bytes.
    """
    settings = copy.deepcopy(config.model)
    with FakeTensorMode():
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = _ready_to_train(revert_sync_batchnorm(MODELS.build(settings)))
        for module in model.modules():
            if amp and isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                # Autocast does so on a GPU; on a CPU it leaves norms, and so all that adds up along a transformer's
                # blocks, in half precision
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        with PeakMemory() as memory:
            # bfloat16 is as large as a GPU's float16
            with torch.autocast('cpu', torch.bfloat16, enabled=amp):
                maps = model.extract_feat(torch.empty(input_shape))
            kept = memory.live
            torch.autograd.backward(maps, [torch.ones_like(each) for each in maps])
    return kept, memory.peak, [tuple(each.shape) for each in maps]


def heads_memory(model: nn.Module, data: dict[str, Any], shapes: list[tuple[int, ...]]) -> int:
    """Forward and backward of everything behind the maps, in float32 on the CPU.

    Proposals of random weights hit nothing. So those of a detector with two stages are put in the place of the RPN's
    own: as many as it passes on, half of them close to true boxes, so that every sampler gets its positive boxes.

    Args:
        model (nn.Module): The network; its backbone and neck do not run, then or later.
        data (dict[str, Any]): From its data preprocessor.
        shapes (list[tuple[int, ...]]): Of the maps.
    Returns:
        int: The most bytes at any time, over the maps themselves and without the gradients of parameters.
    Raises:
        ValueError: If the model's losses do not come from these maps.
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
    """What an RPN finds: half of it anywhere, the others with an IoU of at least 0.78 to one of the boxes (n, 4)."""
    rng = np.random.default_rng(SEED)
    true = boxes.numpy()[rng.integers(len(boxes), size=count // 2)]
    sizes = np.tile(true[:, 2:] - true[:, :2], 2)
    near = true + sizes * rng.uniform(-0.03, 0.03, true.shape)  # IoU at least 0.94 ** 2 / 1.06 ** 2
    found = np.concatenate((near, random_boxes(rng, count - len(near), shape)))
    bboxes = torch.from_numpy(found.astype(np.float32))
    return InstanceData(bboxes=bboxes, scores=torch.rand(count), labels=torch.zeros(count, dtype=torch.long))


def _ready_to_train(model: nn.Module) -> nn.Module:
    """In train mode, with a gradient for every parameter, so that backward adds to it and makes no new one."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # the same memory, and no error where a map of a single image has a single pixel
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model


def _check(config: Config, shape: tuple[int, ...], images: int) -> None:
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape is {shape}, but it must be a height and a width of at least one pixel')
    if images < 1:
        raise ValueError(f'images is {images}, but it must be at least 1')
    if config.get('default_scope') not in HOSTS:
        raise ValueError(
            f'default_scope of the config is {config.get("default_scope")!r}, but it must be mmdet or mmseg'
        )
    optimizer = config.get('optim_wrapper', {}).get('optimizer', {}).get('type')
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f'optim_wrapper.optimizer.type is {optimizer}, but it must be {" or ".join(OPTIMIZERS)}: '
            'the state of others is not known here'
        )
