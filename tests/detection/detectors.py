"""Tiny detectors made from configs of MMDetection and of this project, and batches for them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

import mm_ummae.detection  # noqa: F401  registers the RoI head of HTC++

CONFIGS = Path(__file__).parents[2] / 'configs'
CHANNELS = 16
CLASSES = 4
WIDTHS = [32, 64, 128, 256]  # of the stages of UMSwin's arch 'test'
# Left, top, right and bottom of the objects in a batch, as shares of the image
OBJECTS = ((0.1, 0.15, 0.7, 0.7), (0.4, 0.05, 0.95, 0.5))


@cache
def published(name: str) -> Config:
    """A config of MMDetection."""
    return Config.fromstring(f"_base_ = 'mmdet::{name}'", '.py')


def leaf(pattern: str) -> Path:
    """The only config of this project that fits a file name pattern."""
    (path,) = CONFIGS.rglob(f'{pattern}.py')
    return path


def narrow(model: ConfigDict) -> ConfigDict:
    """A published two-stage detector with a tiny UMSwin, and few channels and classes."""
    model.backbone = dict(type='mm_ummae.UMSwin', arch='test', img_size=128, out_indices=(0, 1, 2, 3), drop_path_rate=0)
    model.neck.update(in_channels=WIDTHS, out_channels=CHANNELS)
    model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    head = model.roi_head
    extractors = ('bbox_roi_extractor', 'mask_roi_extractor', 'semantic_roi_extractor')
    for extractor in (head[name] for name in extractors if name in head):
        extractor.out_channels = CHANNELS
    for part in head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]:
        part.update(in_channels=CHANNELS, fc_out_channels=32, num_classes=CLASSES)
    masks = head.get('mask_head', [])
    for part in masks if isinstance(masks, list) else [masks]:
        part.update(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1, num_classes=CLASSES)
    if 'semantic_head' in head:
        head.semantic_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1, num_classes=5)
    return model


def build(model: ConfigDict, scope: str = 'mmdet', seed: int = 0) -> nn.Module:
    """As the runner of a host builds it."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def build_narrow(model: ConfigDict, seed: int = 0) -> nn.Module:
    """A narrow detector whose masks have clear edges."""
    detector = build(narrow(copy.deepcopy(model)), seed=seed)
    for name, parameter in detector.named_parameters():
        if name.endswith('conv_logits.weight'):
            nn.init.normal_(parameter, std=5.0)
    return detector


def build_htc(head: str = 'mm_ummae.HTCRoIHead', semantic: bool = True, seed: int = 0, **options: object) -> nn.Module:
    """A narrow HTC with this type of RoI head."""
    name = 'htc_r50_fpn_1x_coco' if semantic else 'htc-without-semantic_r50_fpn_1x_coco'
    model = copy.deepcopy(published(f'htc/{name}.py').model)
    model.roi_head.update(type=head, **options)
    return build_narrow(model, seed)


def smooth_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    """(3, H, W) uint8: smooth colours, which a network can tell from their mirror image."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 5, 6))).float()
    return nn.functional.interpolate(coarse, size, mode='bicubic').clamp(0, 255)[0].to(torch.uint8)


def batch(*sizes: tuple[int, int]) -> dict[str, list]:
    """Images of these heights and widths, each with two objects and a semantic map, as a data loader gives them."""
    samples = []
    for height, width in sizes:
        boxes = (torch.tensor(OBJECTS) * torch.tensor([width, height] * 2)).round()
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        shape = (height, width)
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor([1, 3]), masks=BitmapMasks(masks, height, width)
        )
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(masks.sum(0, dtype=np.int64)[None]))
        samples.append(sample)
    return dict(inputs=[smooth_image(size, seed) for seed, size in enumerate(sizes)], data_samples=samples)


def train_step(model: nn.Module, data: dict[str, list]) -> dict[str, Tensor]:
    """Loss terms of one step, with gradients in the model."""
    data = model.train().data_preprocessor(data, True)
    total, terms = model.parse_losses(model(data['inputs'], data['data_samples'], mode='loss'))
    total.backward()
    return terms
