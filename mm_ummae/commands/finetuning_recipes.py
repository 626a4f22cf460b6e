"""Recipe of a network for a fine-tuning, and what it takes to put another network or other images into it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from mmengine.config import Config

from mm_ummae.registry import MODELS as NETWORKS
from mm_ummae.resources import config_path

from .pretraining import MODELS
from .run_folder import plain
from .settings import Reference

TASKS = ('detection', 'segmentation', 'classification')
PROBE = 64  # pixels of the image that a network is tried with for the channels of its maps
# Recipe of each network. Others are derived: pyramids of the hosts from that of Swin-T, Swins of ours from UMSwin-T
RECIPES = {
    'detection': {
        'um-swin-test': 'demo/mask-rcnn_um-swin-test_1xb4-400it_demo-128px.py',
        'um-swin-tiny': 'mask_rcnn/mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco.py',
        'um-swin-large': 'mask_rcnn/mask-rcnn_um-swin-large_fpn_8xb2-amp-1x_coco.py',
        'um-pvt-small': 'mask_rcnn/mask-rcnn_um-pvt-small_fpn_8xb2-amp-1x_coco.py',
        'lomar-vit-base': 'vitdet/mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco.py',
        'swin-tiny': 'mask_rcnn/mask-rcnn_stock-swin-tiny-w7_fpn_8xb2-amp-1x_coco.py',
        'swin-small': 'mask_rcnn/mask-rcnn_stock-swin-small-w7_fpn_8xb2-amp-1x_coco.py',
        'swin-base': 'mask_rcnn/mask-rcnn_stock-swin-base-w7_fpn_8xb2-amp-1x_coco.py',
        'swin-large': 'mask_rcnn/mask-rcnn_stock-swin-large-w7_fpn_8xb2-amp-1x_coco.py',
    },
    'segmentation': {
        'um-swin-test': 'demo/upernet_um-swin-test_1xb8-150it_demo-128px.py',
        'um-swin-tiny': 'upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py',
        'um-swin-large': 'upernet/upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512.py',
        'um-pvt-small': 'upernet/upernet_um-pvt-small_8xb2-amp-160k_ade20k-512x512.py',
        'swin-tiny': 'upernet/upernet_stock-swin-tiny-w7_8xb2-amp-160k_ade20k-512x512.py',
        'swin-small': 'upernet/upernet_stock-swin-small-w7_8xb2-amp-160k_ade20k-512x512.py',
        'swin-base': 'upernet/upernet_stock-swin-base-w7_8xb2-amp-160k_ade20k-512x512.py',
        'swin-large': 'upernet/upernet_stock-swin-large-w7_8xb2-amp-160k_ade20k-512x512.py',
    },
    'classification': {
        'um-swin-test': 'demo/um-swin-test_classification_1xb8-200it_demo-128px.py',
        'um-swin-tiny': 'classification/um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px.py',
        'um-swin-large': 'classification/um-swin-large_8xb128-amp-coslr-100e_in1k-256px.py',
        'um-pvt-small': 'classification/um-pvt-small_8xb128-amp-coslr-100e_in1k-256px.py',
        'um-vit-base': 'classification/um-vit-base-p16_8xb128-amp-coslr-100e_in1k-224px.py',
        'lomar-vit-base': 'classification/lomar-vit-base-p16_8xb128-amp-coslr-100e_in1k-224px.py',
        'swin-tiny': 'classification/stock-swin-tiny-w7_8xb128-amp-coslr-100e_in1k-224px.py',
        'swin-small': 'classification/stock-swin-small-w7_8xb128-amp-coslr-100e_in1k-224px.py',
        'swin-base': 'classification/stock-swin-base-w7_8xb128-amp-coslr-100e_in1k-224px.py',
        'swin-large': 'classification/stock-swin-large-w7_8xb128-amp-coslr-100e_in1k-224px.py',
        'swin-v2-tiny': 'classification/stock-swin-v2-tiny-w8_8xb128-amp-coslr-100e_in1k-256px.py',
        'swin-v2-base': 'classification/stock-swin-v2-base-w8_8xb128-amp-coslr-100e_in1k-256px.py',
    },
}
SAME = {'simmim-swin-tiny': 'um-swin-tiny'}  # pre-trained otherwise, the same network
# Images of the data sets that the recipes are for: of the demo, and COCO, ADE20K, ImageNet-1K
IMAGES = dict(detection=(400, 117_266), segmentation=(400, 20_210), classification=(500, 1_281_167))


@cache
def _read(name: str) -> Config:
    """A config below ``configs/``, not to be changed."""
    return Config.fromfile(config_path(name))


def choose_recipe(task: str, model: str) -> tuple[str, list[str]]:
    """The recipe of a network.

    Args:
        task (str): One of ``TASKS``.
        model (str): One of the names of ``pretrain``.
    Returns:
        tuple[str, list[str]]: Config below ``configs/``, and lines of a config that put the network into it if the
        recipe is of another one.
    Raises:
        ValueError: If there is no such network, or none for the task.
    """
    name = SAME.get(model, model)
    if name in RECIPES[task]:
        return RECIPES[task][name], []
    if name not in MODELS:
        raise ValueError(f'model is {model!r}, but it must be one of {", ".join(MODELS)}')
    backbone = _read(MODELS[name]).model.backbone
    if backbone.type == 'mm_ummae.UMBackbone':
        recipe = RECIPES[task]['swin-v2-tiny' if task == 'classification' else 'swin-tiny']
        network = plain(backbone.network)
        network['_delete_'] = True
        if task != 'classification':
            network['out_indices'] = (0, 1, 2, 3)
        if 'drop_path_rate' in network:
            network['drop_path_rate'] = 0.1
        change = dict(network=network, img_size=backbone.img_size)
    elif backbone.type == 'mm_ummae.UMSwin':
        recipe = RECIPES[task]['um-swin-tiny']
        change = dict(arch=backbone.arch, drop_path_rate=0.2)
    else:
        possible = sorted({*RECIPES[task], *SAME} | {each for each in MODELS if each.startswith(('um-swin', 'swin'))})
        raise ValueError(
            f'model is {model!r}, but there is no recipe for {task} with it: take one of {", ".join(possible)}, or '
            'write a config'
        )
    return recipe, [f"model['backbone'].update({_arguments(change)})", *_width_lines(task, recipe, change)]


def _width_lines(task: str, recipe: str, change: dict[str, Any]) -> list[str]:
    """Lines of a config that fit necks and heads to the maps of another backbone."""
    cfg = copy.deepcopy(_read(recipe))
    cfg.merge_from_dict(dict(model=dict(backbone=change)))
    backbone = NETWORKS.build(dict(cfg.model.backbone, init_cfg=None)).eval()
    with torch.no_grad():
        widths = [each.shape[1] for each in backbone(torch.zeros(1, 3, PROBE, PROBE))]
    neck = plain(cfg.model.neck)
    if task == 'classification':
        own = f"model['neck'] = dict(in_channels={widths[-1]})" if 'in_channels' in neck else ''
        return [line for line in (own, f"model['head'].update(in_channels={widths[-1]})") if line]
    if isinstance(neck, list):
        return [f"model['neck'] = {[dict(neck[0], in_channels=widths), *neck[1:]]!r}"]
    if neck:
        return [f"model['neck'] = dict(in_channels={widths})"]
    return [
        f"model['decode_head'].update(in_channels={widths})",
        f"model['auxiliary_head'].update(in_channels={widths[2]})",
    ]


def network_lines(task: str, recipe: str, lines: Sequence[str], channels: int, size: int | None) -> list[str]:
    """Lines of a config that fit the backbone to the images.

    Args:
        task (str): The task.
        recipe (str): Of :func:`choose_recipe`.
        lines (Sequence[str]): Likewise.
        channels (int): Channels of the images.
        size (int, optional): Image size that is not that of the recipe, in pixels.
    Returns:
        list[str]: Assignments to the config's ``model``.
    """
    backbone = _read(recipe).model.backbone
    change: dict[str, Any] = {}
    if size is not None and task == 'detection' and backbone.type == 'mm_ummae.LoMaRViT':
        raise ValueError(f'image_size is {size}, but a detector on a ViT has that of its recipe: leave it out')
    if size is not None and (task == 'classification' or backbone.type == 'mm_ummae.UMSwin'):
        change['img_size'] = size
    found = [f"model['backbone'].update({_arguments(change)})"] if change else []
    if size is not None and task == 'classification' and 'img_size' in (backbone.get('network') or {}) and not lines:
        found.append(f"model['backbone'].setdefault('network', {{}}).update(img_size={size})")
    if channels != 3:
        found.append(f"model['backbone'].update(in_channels={channels})")
        if backbone.type == 'mm_ummae.UMBackbone':
            found.append(f"model['backbone'].setdefault('network', {{}}).update(in_channels={channels})")
    return found


def _arguments(values: dict[str, Any]) -> str:
    return ', '.join(f'{key}={value!r}' for key, value in values.items())


def reference_of(task: str, recipe: str) -> Reference:
    """Batch, length and learning rate of a recipe, and the images that it is for.

    Args:
        task (str): The task.
        recipe (str): Config below ``configs/``.
    Returns:
        Reference: For the rules of :func:`~mm_ummae.commands.settings.choose_finetuning`.
    """
    cfg = _read(recipe)
    images = IMAGES[task][not recipe.startswith('demo/')]
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size') or cfg.train_dataloader.batch_size
    updates = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * images // batch
    return Reference(images, batch, updates, cfg.optim_wrapper.optimizer.lr)


def image_size_values(task: str, recipe: str, size: int | None) -> dict[str, Any]:
    """Values of the config that set its image size.

    Args:
        task (str): The task.
        recipe (str): Config below ``configs/``.
        size (int, optional): Pixels. None: that of the recipe.
    Returns:
        dict[str, Any]: A value of the template of the task.
    Raises:
        ValueError: If it is no multiple of 32.
    """
    cfg = _read(recipe)
    if size is not None and (size < 32 or size % 32):
        raise ValueError(f'image_size is {size}, but it must be a multiple of 32 px')
    if task == 'classification':
        return dict(image_size=size or cfg.image_size)
    if task == 'segmentation':
        return dict(crop_size=(size, size) if size else tuple(cfg.crop_size))
    if size:
        return dict(image_scale=(size, size))
    resize = next(step for step in cfg.test_pipeline if step.type == 'Resize')
    return dict(image_scale=tuple(resize.scale))
