"""How much memory training a detector takes on a GPU, estimated where there is none.

Tensors without data pass through backbone, neck and dense head at full size, and what a GPU would hold is added up.
RoI heads choose boxes, which needs data: they run for real, on random maps and boxes.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from packaging.version import Version
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

LOWEST_TORCH = '2.3'
INSTANCES = 20  # on a picture
PROPOSALS = 2000  # for a picture
ADAMW_BYTES = 8  # a parameter: two moments in float32


class PeakMemory(TorchDispatchMode):
    """Adds up the memory of tensors that operations make inside its context, and frees it when they die.

    Memory that several tensors share counts once. What existed before does not count.

    Attributes:
        live (int): Bytes now.
        peak (int): Most bytes so far.

    Raises:
        RuntimeError: If PyTorch is older than 2.3, which does not tell when memory is freed.
    """

    def __init__(self) -> None:
        if Version(torch.__version__) < Version(LOWEST_TORCH):
            raise RuntimeError(
                f'PyTorch is {torch.__version__}, but memory can be followed from {LOWEST_TORCH} on: '
                'older ones do not tell when it is freed'
            )
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count what it returns, unless it is memory of what it was given."""
        kwargs = kwargs or {}
        given = {_address(x) for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)}
        out = func(*args, **kwargs)
        for x in tree_flatten(out)[0]:
            if isinstance(x, Tensor) and _address(x) not in given | self._known:
                self._add(x)
        return out

    def _add(self, x: Tensor) -> None:
        storage, address = x.untyped_storage(), _address(x)
        self._known.add(address)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, address, storage.nbytes()).atexit = False

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def estimate_training_memory(cfg: Config, shape: tuple[int, int], images: int) -> dict[str, int]:
    """Bytes that a training step of a detector needs on a GPU, in mixed precision with AdamW.

    An upper bound of what tensors take: RoI heads run in float32, their memory is added to the peak of the rest though
    it is freed before that, and attention whose bias needs a gradient runs in steps here and may run fused on a GPU.
    Not in it are the CUDA context, workspaces of cuDNN and fragmentation.

    Args:
        cfg (Config): Of a detector of MMDetection, with one stage or two.
        shape (tuple[int, int]): Height and width of the largest pictures, in pixels.
        images (int): On one GPU.
    Returns:
        dict[str, int]: ``weights``, ``gradients``, ``optimiser``, ``dense`` (most of activations and temporaries of
        backbone, neck and dense head) and ``roi_heads`` (of these, with a semantic branch's).
    Raises:
        ValueError: If the config is no detector's, or a number is not positive.
        RuntimeError: If PyTorch is older than 2.3.
    """
    if cfg.get('default_scope') != 'mmdet':
        raise ValueError(f"default_scope of the config is {cfg.get('default_scope')!r}, but it must be 'mmdet'")
    if min(shape) < 1 or images < 1:
        raise ValueError(f'shape is {tuple(shape)} and images {images}, but all must be positive')
    divisor = cfg.model.data_preprocessor.get('pad_size_divisor', 1)
    padded = tuple(-(-side // divisor) * divisor for side in shape)
    dense, maps = _dense_part(cfg, padded, images)
    with torch.device('meta'):
        model = _build(cfg)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return dict(
        weights=sum(x.nbytes for x in [*model.parameters(), *model.buffers()]),
        gradients=4 * trained,
        optimiser=ADAMW_BYTES * trained,
        dense=dense,
        roi_heads=_roi_part(cfg, maps, padded) if 'roi_head' in cfg.model else 0,
    )


def _build(cfg: Config) -> nn.Module:
    model = Config(dict(model=cfg.model)).model
    model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return revert_sync_batchnorm(MODELS.build(model)).train()


def _dense_part(cfg: Config, shape: tuple[int, int], images: int) -> tuple[int, list[tuple[int, ...]]]:
    """Peak of forward and backward, and the shapes of the neck's maps."""
    with FakeTensorMode():
        model = _build(cfg)
        for parameter in model.parameters():  # counted on its own
            parameter.grad = torch.zeros_like(parameter)
        pictures = torch.randn(images, 3, *shape)
        memory = PeakMemory()
        with memory:
            with torch.autocast('cpu', torch.bfloat16):
                maps = model.extract_feat(pictures)
                head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
                outs = [x for x in tree_flatten(head(maps))[0] if isinstance(x, Tensor)]
            sum(x.float().sum() for x in outs).backward()
        return memory.peak, [tuple(x.shape) for x in maps]


def _roi_part(cfg: Config, shapes: list[tuple[int, ...]], picture: tuple[int, int]) -> int:
    """Peak of the RoI head's losses, forward and backward, over random maps that are not counted."""
    generator = np.random.default_rng(0)
    head = _build(cfg).roi_head
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    maps = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for x in maps:
        x.grad = torch.zeros_like(x)
    samples, proposals = zip(*(_random_objects(generator, picture) for _ in range(len(maps[0]))), strict=True)
    memory = PeakMemory()
    with memory:
        losses = head.loss(tuple(maps), list(proposals), list(samples))
        sum(x.sum() for name, x in losses.items() if 'loss' in name).backward()
    return memory.peak


def _random_objects(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[Any, InstanceData]:
    """A picture's objects and its proposals, of which one half are the objects and the others lie anywhere."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = _random_boxes(generator, INSTANCES, shape)
    masks = np.zeros((INSTANCES, *shape), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    labels = torch.zeros(INSTANCES, dtype=torch.long)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, *shape))
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, *shape, dtype=torch.long))
    # A sampler finds as many boxes of objects, and as many of background, as it may take
    half = PROPOSALS // 2
    near, anywhere = boxes.repeat(half // INSTANCES, 1), _random_boxes(generator, half, shape)
    return sample, InstanceData(bboxes=torch.cat((near, anywhere)), scores=torch.ones(PROPOSALS))


def _random_boxes(generator: np.random.Generator, count: int, shape: tuple[int, int]) -> Tensor:
    """(count, 4) x1, y1, x2, y2 inside a picture of this height and width."""
    size = np.array(shape[::-1])
    sides = generator.uniform(0.05, 0.5, (count, 2)) * size
    corners = generator.uniform(0, 1, (count, 2)) * (size - sides)
    return torch.from_numpy(np.hstack((corners, corners + sides))).float()


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata
