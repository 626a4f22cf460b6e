"""Networks of configs with random weights, and random images for them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import nn

from mm_ummae.resources import config_path

# Transform that packs an image into a data sample, by the default scope of a config
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}
SEED = 0  # of weights and images
OBJECTS = 20  # on an annotated image


def read_config(name: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config file, or a config that comes with an installed package.

    Args:
        name (str | Path): A file, or ``package::path`` of a host or of this package, as in
            ``mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py``.
        options (dict[str, Any], optional): Values to override, by dotted keys.
    Returns:
        Config: With a model and the default scope of a host.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no model, or its default scope is none of MMDetection, MMSegmentation and
            MMPretrain.
    """
    package, _, path = str(name).rpartition('::')
    if package == 'mm_ummae':  # MMEngine has a fixed table of packages
        config = Config.fromfile(config_path(path))
    else:
        config = get_config(str(name)) if package else Config.fromfile(name)
    if 'model' not in config:
        raise ValueError(f'the config {name} has no model, but a network is what is measured')
    if config.get('default_scope') not in PACKERS:
        raise ValueError(
            f'default_scope of the config {name} is {config.get("default_scope")!r}, but it must be one of '
            f'{", ".join(PACKERS)}'
        )
    config.merge_from_dict(options or {})
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
    if 'pretrained' in settings:  # the older key for the same
        settings.pretrained = None
    if 'data_preprocessor' in config:  # MMPretrain's runner puts it into the model
        settings.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
    if 'custom_imports' in config:  # a process that received the config has not imported them
        import_modules_from_strings(**config.custom_imports)
    torch.manual_seed(SEED)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(settings)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')  # else it logs the initialisation of every parameter
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
    return revert_sync_batchnorm(model).eval()


def random_image(scope: str, shape: tuple[int, int]) -> dict[str, Any]:
    """An image of noise with a fixed seed, as a host's data loader passes it to the data preprocessor.

    Args:
        scope (str): Default scope of the host.
        shape (tuple[int, int]): Height and width in pixels.
    Returns:
        dict[str, Any]: ``inputs``, one (3, H, W) uint8 in a list, or stacked in MMPretrain, and ``data_samples``, one
        of the host's.
    """
    image = np.random.default_rng(SEED).integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = _pack(scope, [dict(img=image)])
    if scope == 'mmpretrain':  # where a list would be views of one batch
        data['inputs'] = torch.stack(data['inputs'])
    return data


def annotated_images(scope: str, shape: tuple[int, int], count: int) -> dict[str, list]:
    """Black images with random boxes, masks and a segmentation map, as a host's data loader passes them.

    Args:
        scope (str): Default scope of the host, ``mmdet`` or ``mmseg``.
        shape (tuple[int, int]): Height and width in pixels.
        count (int): Number of images.
    Returns:
        dict[str, list]: ``inputs``, (3, H, W) uint8 each, and ``data_samples``, one of the host's each.
    """
    rng = np.random.default_rng(SEED)
    image, classes = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    samples = [
        dict(img=image, gt_seg_map=classes, instances=[_instance(*box) for box in boxes.tolist()])
        for boxes in (random_boxes(rng, OBJECTS, shape) for _ in range(count))
    ]
    return _pack(scope, samples, [dict(type='LoadAnnotations', with_mask=True)] if scope == 'mmdet' else [])


def _pack(scope: str, samples: list[dict], steps: list[dict] | None = None) -> dict[str, list]:
    steps = [*(steps or []), dict(type=PACKERS[scope], meta_keys=('img_shape', 'ori_shape', 'scale_factor'))]
    with DefaultScope.overwrite_default_scope(scope):
        transforms = [TRANSFORMS.build(step) for step in steps]
    packed = []
    for results in samples:
        shape = results['img'].shape[:2]
        results = results | dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
        for transform in transforms:
            results = transform(results)
        packed.append(results)
    return {key: [results[key] for results in packed] for key in packed[0]}


def _instance(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    outline = [left, top, right, top, right, bottom, left, bottom]
    return dict(bbox=[left, top, right, bottom], bbox_label=0, ignore_flag=0, mask=[outline])


def random_boxes(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """(count, 4): x1, y1, x2, y2 of boxes whose sides are 5 % to 60 % of the image's."""
    sides = np.array(shape[::-1])
    sizes = sides * rng.uniform(0.05, 0.6, (count, 2))
    corners = (sides - sizes) * rng.random((count, 2))
    return np.concatenate((corners, corners + sizes), 1)
