"""The HTC head that averages its stages' masks: its numbers against the parent's, and a detector around it."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import HybridTaskCascadeRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

import mm_ummae.detection  # noqa: F401  registers the head

CHANNELS = 16
CLASSES = 4
WIDTHS = [32, 64, 128, 256]  # of the stages of UMSwin's arch 'test'
OURS, PARENT = 'mm_ummae.HTCRoIHead', 'HybridTaskCascadeRoIHead'
BOX = (16.0, 24.0, 44.0, 52.0)  # of 28 pixels, the side of a mask: pasting leaves its values as they are

every_kind = pytest.mark.parametrize(
    'options',
    [dict(), dict(mask_info_flow=False), dict(semantic_fusion=('bbox',)), dict(semantic=False)],
    ids=str,
)


@cache
def published(name: str) -> Config:
    """A config of MMDetection."""
    return Config.fromstring(f"_base_ = 'mmdet::{name}'", '.py')


def narrow(model: ConfigDict) -> ConfigDict:
    """A published detector of two stages with our tiny backbone and few channels and classes."""
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


def build(model: ConfigDict, seed: int = 0) -> nn.Module:
    """As MMDetection's runner builds it, with masks that are sure of themselves."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MMENGINE_MODELS.build(model)
    for name, parameter in detector.named_parameters():
        if name.endswith('conv_logits.weight'):
            nn.init.normal_(parameter, std=5.0)
    return detector


def build_htc(head: str = OURS, *, semantic: bool = True, seed: int = 0, **options: object) -> nn.Module:
    """HTC with a narrow head of this type."""
    name = 'htc_r50_fpn_1x_coco' if semantic else 'htc-without-semantic_r50_fpn_1x_coco'
    model = copy.deepcopy(published(f'htc/{name}.py').model)
    model.roi_head.update(type=head, **options)
    return build(narrow(model), seed)


def picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Smooth colours, which a network tells apart from their mirror image."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 5, 6))).float()
    return nn.functional.interpolate(coarse, size, mode='bicubic').clamp(0, 255)[0].to(torch.uint8)


def training_batch() -> dict[str, list]:
    """One image with two objects and a semantic map."""
    masks = np.zeros((2, 128, 96), np.uint8)
    masks[0, 20:90, 10:70] = masks[1, 5:60, 40:90] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(128, 96), ori_shape=(128, 96), scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 20.0, 70.0, 90.0], [40.0, 5.0, 90.0, 60.0]]),
        labels=torch.tensor([1, 3]),
        masks=BitmapMasks(masks, 128, 96),
    )
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(masks.sum(0, dtype=np.int64)[None]))
    return dict(inputs=[picture((128, 96))], data_samples=[sample])


@every_kind
@torch.no_grad()
def test_masks_are_the_mean_of_the_stages(options: dict) -> None:
    """Each stage's logits come from the parent's training path."""
    model = build_htc(**options).eval()
    head = model.roi_head
    x = model.extract_feat(torch.randn(1, 3, 64, 96))
    semantic = head.semantic_head(x)[1] if head.with_semantic else None
    rois = torch.tensor([[0, *BOX]])
    stages = torch.cat(
        [HybridTaskCascadeRoIHead._mask_forward(head, i, x, rois, semantic)['mask_preds'].sigmoid() for i in range(3)]
    )
    label = 2
    expected = stages[:, label].mean(0)
    assert expected.shape == (28, 28)
    assert (expected - stages[2, label]).abs().mean() > 0.05, 'the last stage alone would pass'

    head.test_cfg.mask_thr_binary = -1  # gives 255 times the probability
    found = InstanceData(bboxes=torch.tensor([BOX]), labels=torch.tensor([label]), scores=torch.ones(1))
    meta = dict(ori_shape=(64, 96), scale_factor=(1.0, 1.0))
    (result,) = head.predict_mask(x, semantic, [meta], [found], rescale=True)
    pasted = result.masks[0, 24:52, 16:44].float() / 255
    assert torch.allclose(pasted, expected, atol=1.5 / 255)


@every_kind
def test_training_is_the_parents(options: dict) -> None:
    """Same parameters under the same names, same losses and same gradients of the mask heads."""
    ours, parent = build_htc(OURS, seed=1, **options), build_htc(PARENT, seed=2, **options)
    parent.load_state_dict(ours.state_dict())
    results = []
    for model in (ours, parent):
        data = model.data_preprocessor(training_batch(), True)
        torch.manual_seed(3)  # of the samplers
        losses = model(data['inputs'], data['data_samples'], mode='loss')
        total, terms = model.parse_losses(losses)
        total.backward()
        gradients = {name: parameter.grad for name, parameter in model.roi_head.mask_head.named_parameters()}
        results.append((terms, gradients))
    (terms, gradients), (parent_terms, parent_gradients) = results
    assert {f's{i}.loss_mask' for i in range(3)} <= terms.keys() == parent_terms.keys()
    assert all(torch.equal(value, parent_terms[name]) for name, value in terms.items())
    for name, gradient in gradients.items():
        other = parent_gradients[name]
        assert (gradient is None) == (other is None) and (gradient is None or torch.equal(gradient, other)), name


@pytest.mark.parametrize('options', [dict(), dict(mask_info_flow=False)], ids=str)
@torch.no_grad()
def test_a_detector_predicts_with_it(options: dict) -> None:
    model = build_htc(**options).eval()
    model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=5)
    data = training_batch()
    (result,) = model.test_step(data)
    assert result.pred_instances.masks.shape == (5, 128, 96) and result.pred_instances.masks.dtype == torch.bool
    assert result.pred_instances.masks.flatten(1).any(1).all()
