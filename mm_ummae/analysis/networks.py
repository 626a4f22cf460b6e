"""Networks to measure: configs of this project and of its hosts, and an image to put in front of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from torch import nn

from mm_ummae.analysis.report import ROOT

# What makes a data sample of an image, by the default scope of a config
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}
DTYPES = {'float32': None, 'float16': torch.float16, 'bfloat16': torch.bfloat16}  # of autocast; None is without
SEED = 0  # of the weights and of the image
INSTANCES = 20  # of a labelled image


def read_config(name: str | Path) -> Config:
    """Read a config file, or one that an installed host brings.

    Args:
        name (str | Path): A file, or ``host::path`` as in ``mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py``.
    Returns:
        Config: With a model and a default scope of a host.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no model, or its default scope is none of MMDetection, MMSegmentation and
            MMPretrain.
    """
    config = get_config(str(name)) if '::' in str(name) else Config.fromfile(name)
    if 'model' not in config:
        raise ValueError(f'the config {name} has no model, but a network is what is measured')
    if config.get('default_scope') not in PACKERS:
        raise ValueError(
            f'default_scope of the config {name} is {config.get("default_scope")!r}, but it must be one of '
            f'{", ".join(PACKERS)}'
        )
    return config


class Entry(NamedTuple):
    """Something to measure.

    Attributes:
        name (str): For tables.
        config (str): Of :func:`read_config`; a file of this project relative to the repository.
        changes (dict): Of :meth:`mmengine.config.Config.merge_from_dict`.
    """

    name: str
    config: str
    changes: Mapping[str, Any] = {}

    @classmethod
    def of(cls, config: str | Path) -> Entry:
        """A config as it is, named as its file."""
        return cls(Path(str(config).rpartition('::')[2]).stem, str(config))

    def read(self) -> Config:
        """The config with its changes."""
        config = read_config(self.config if '::' in self.config or Path(self.config).exists() else ROOT / self.config)
        config.merge_from_dict(dict(self.changes))
        return config


def build_network(config: Config) -> nn.Module:
    """Build a config's model as its runner does, with random weights of a fixed seed.

    Nothing is downloaded or loaded, and SyncBN, which needs a process group, becomes BN.

    Args:
        config (Config): From :func:`read_config`; it is not changed.
    Returns:
        nn.Module: The model in eval mode, on the CPU.
    """
    settings = copy.deepcopy(config.model)
    settings.backbone.init_cfg = None
    if 'pretrained' in settings:  # an older way to say it
        settings.pretrained = None
    if 'data_preprocessor' in config:  # MMPretrain's runner puts it into the model
        settings.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
    torch.manual_seed(SEED)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(settings)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')  # else it tells of every parameter how it was made
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
    return revert_sync_batchnorm(model).eval()


def check_dtype(dtype: str, device: str) -> None:
    """Raise ValueError if training on a device (``cpu`` or ``cuda``) cannot have this precision."""
    if dtype not in DTYPES or (device == 'cpu' and dtype == 'float16'):
        raise ValueError(f'dtype is {dtype!r}, but it must be one of {", ".join(DTYPES)}, on a CPU not float16')


def random_image(scope: str, shape: tuple[int, int]) -> dict[str, list]:
    """An image of noise of a fixed seed, as a host's data loader gives it to the data preprocessor.

    Args:
        scope (str): Default scope of the host.
        shape (tuple[int, int]): Height and width in pixels.
    Returns:
        dict[str, list]: ``inputs``, one (3, H, W) uint8, and ``data_samples``, one of the host's.
    """
    pixels = np.random.default_rng(SEED).integers(0, 256, (*shape, 3), dtype=np.uint8)
    results = dict(img=pixels, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    with DefaultScope.overwrite_default_scope(scope):
        pack = TRANSFORMS.build(dict(type=PACKERS[scope], meta_keys=('img_shape', 'ori_shape', 'scale_factor')))
    return {key: [value] for key, value in pack(results).items()}


def labelled_images(scope: str, shape: tuple[int, int], images: int) -> dict[str, list]:
    """Black images with random boxes, masks and a map of classes, as a host's data loader gives them.

    Args:
        scope (str): Default scope of the host, ``mmdet`` or ``mmseg``.
        shape (tuple[int, int]): Height and width in pixels.
        images (int): How many.
    Returns:
        dict[str, list]: ``inputs``, (3, H, W) uint8 each, and ``data_samples``, one of the host's each.
    """
    steps = [dict(type=PACKERS[scope], meta_keys=('img_shape', 'ori_shape', 'scale_factor'))]
    if scope == 'mmdet':
        steps.insert(0, dict(type='LoadAnnotations', with_mask=True))
    with DefaultScope.overwrite_default_scope(scope):
        transforms = [TRANSFORMS.build(step) for step in steps]
    rng = np.random.default_rng(SEED)
    pictures = []
    for _ in range(images):
        results = dict(
            img=np.zeros((*shape, 3), np.uint8),
            gt_seg_map=np.zeros(shape, np.uint8),
            instances=[_instance(*box) for box in random_boxes(rng, INSTANCES, shape).tolist()],
            img_shape=shape,
            ori_shape=shape,
            scale_factor=(1.0, 1.0),
        )
        for transform in transforms:
            results = transform(results)
        pictures.append(results)
    return {key: [picture[key] for picture in pictures] for key in pictures[0]}


def _instance(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    outline = [left, top, right, top, right, bottom, left, bottom]
    return dict(bbox=[left, top, right, bottom], bbox_label=0, ignore_flag=0, mask=[outline])


def random_boxes(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """(count, 4): x1, y1, x2, y2, of a twentieth to six tenths of the image's sides."""
    sides = np.array(shape[::-1])
    sizes = sides * rng.uniform(0.05, 0.6, (count, 2))
    corners = (sides - sizes) * rng.random((count, 2))
    return np.concatenate((corners, corners + sizes), 1)
