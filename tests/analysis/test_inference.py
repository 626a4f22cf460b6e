"""Inference: detectors with random weights that work like trained ones, and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import base_dense_head
from mmdet.models.layers import bbox_nms
from mmengine.config import Config
from torch import Tensor

from mm_ummae.analysis import Settings, count_multiply_adds, inference, measure_inference
from mm_ummae.analysis.inference import Inference
from tests.configs.leaves import config, leaf

SHAPE = (100, 150)  # padded to whole strides of 32: 128 x 160
LEAVES = {
    'detector': 'mask-rcnn_um-swin-test_1xb4-400it_demo-128px',
    'cascade': 'htcpp_um-swin-test_fpn_1xb8-200it_demo-128px',
    'one stage': 'gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco',
    'segmentor': 'upernet_um-swin-test_1xb8-150it_demo-128px',
    'classifier': 'um-swin-test_classification_1xb8-200it_demo-128px',
    'pre-training': 'ummae_swin-test_1xb16-coslr-20e_demo-128px',
}


def read(kind: str) -> Config:
    cfg = config(leaf(LEAVES[kind]))
    if kind == 'one stage':
        cfg.model.backbone.arch = 'test'
        cfg.model.neck[0].in_channels = [32, 64, 128, 256]
        cfg.model.bbox_head.stacked_convs = 1
    return cfg


def made(kind: str, settings: Settings | None = None, candidates: int = 1000) -> Inference:
    return Inference(read(kind), SHAPE, settings or Settings(), candidates)


def watch_suppression(kind: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Boxes that each later call of the last non-maximum suppression gets."""
    module = base_dense_head if kind == 'one stage' else bbox_nms
    original, sizes = module.batched_nms, []

    def watched(boxes: Tensor, scores: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        sizes.append(len(scores))
        return original(boxes, scores, *args, **kwargs)

    monkeypatch.setattr(module, 'batched_nms', watched)
    return sizes


@pytest.mark.parametrize('kind', ['detector', 'cascade', 'one stage'])
def test_as_many_candidates_as_asked_reach_suppression(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every later prediction; ``found`` says so."""
    run = made(kind, candidates=300)
    assert run.found['candidates'] == 300
    sizes = watch_suppression(kind, monkeypatch)
    results = [run()[0].pred_instances for _ in range(2)]
    assert sizes == [300, 300]
    assert [len(result) for result in results] == [run.found['detections']] * 2
    assert 0 < run.found['detections'] <= 100
    assert torch.equal(results[0].bboxes, results[1].bboxes)
    assert results[0].scores.min() > run.found['score_thr'] > 0
    assert kind == 'one stage' or results[0].masks.shape == (len(results[0]), *SHAPE)
    assert ('proposals' in run.found) == (kind != 'one stage')


def test_all_boxes_are_candidates_where_there_are_fewer_than_asked() -> None:
    """100 proposals of 10 classes."""
    found = made('detector', candidates=5000).found
    assert found['candidates'] == 1000 and found['score_thr'] < 1e-9


def test_ties_do_not_let_too_many_through() -> None:
    """All scores but five are the same: of those none passes."""
    scores = torch.cat([torch.full((995,), 0.25), torch.linspace(0.5, 0.9, 5)])
    threshold = inference._threshold(lambda value: int((scores > value).sum()), 100)
    assert int((scores > threshold).sum()) == 5


@pytest.mark.parametrize(
    ('kind', 'result', 'shape'),
    [
        ('segmentor', 'seg_logits', SHAPE),
        ('classifier', 'pred_score', SHAPE),
        ('pre-training', 'reconstruction', (96, 128)),
    ],
)
def test_networks_without_boxes_are_not_calibrated(kind: str, result: str, shape: tuple[int, int]) -> None:
    """They also run in mixed precision."""
    run = Inference(read(kind), shape, Settings(dtype='bfloat16'))
    assert run.found == {} and result in run()[0]
    assert run.model.backbone.patch_embed.projection.weight.dtype == torch.float32


def test_a_failed_calibration_leaves_the_head_as_it_was() -> None:
    model = made('detector').model

    def fail() -> list:
        raise RuntimeError('no image')

    with pytest.raises(RuntimeError, match='no image'):
        inference.calibrate(model, fail, 100)
    assert 'predict_by_feat' not in vars(model.roi_head.bbox_head)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (Settings(dtype='bfloat16'), 'dtype is bfloat16, but a detector on a CPU must have float32'),
        # Settings of a GPU can only be made where there is one
        (type('', (), dict(device='cuda', dtype='float16')), 'dtype is float16, but a detector of one stage must have'),
    ],
)
def test_a_detector_in_mixed_precision_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made('one stage', settings)


@pytest.mark.parametrize(('kind', 'padded'), [('detector', (128, 160)), ('segmentor', SHAPE), ('classifier', SHAPE)])
def test_the_image_is_normalised_and_padded_as_the_host_does(kind: str, padded: tuple[int, int]) -> None:
    inputs = made(kind).inputs
    assert inputs.shape == (1, 3, *padded) and inputs.dtype == torch.float32
    inside = inputs[..., : SHAPE[0], : SHAPE[1]]
    assert inside.mean().abs() < 1 and 0.5 < inside.std() < 2
    assert not inputs[..., SHAPE[0] :, :].any()


def test_multiply_adds_are_those_of_backbone_neck_and_heads() -> None:
    """Heads are used without calling their ``forward``. No hook stays behind."""
    run = made('detector')
    counts = count_multiply_adds(run.model, run)
    assert list(counts) == ['backbone', 'neck', 'heads'] and counts['heads'] > counts['backbone']
    with torch.no_grad():
        alone = count_multiply_adds(run.model.backbone, lambda: run.model.backbone(run.inputs))
    assert alone == dict(heads=counts['backbone'])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.model.modules())


def test_results() -> None:
    rows = measure_inference({kind: read(kind) for kind in ('detector', 'classifier')}, (64, 64), Settings(rounds=2))
    assert [row['name'] for row in rows] == ['detector', 'classifier']
    for row in rows:
        assert row['images_per_second'] == [1 / each for each in row['seconds']] and len(row['seconds']) == 2
        assert row['memory'] > 4 * row['parameters'] > 8e6
        assert set(row['multiply_adds']) >= {'backbone', 'heads'} and row['input_shape'] == [1, 3, 64, 64]
    assert rows[0]['found']['candidates'] == 200  # 20 anchors on maps of 4x4 and 2x2, of 10 classes
    (counted,) = measure_inference(dict(a=read('classifier')), (64, 64), flops_only=True)
    assert 'seconds' not in counted and counted['multiply_adds']['heads'] == 256 * 10


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(configs={}), 'configs is 0, but it must be at least 1'),
        (dict(shape=(0, 64)), r'shape is \(0, 64\), but it must be a height and a width of at least one pixel'),
        (dict(shape=(64,)), r'shape is \(64,\), but it must be a height and a width'),
        (dict(candidates=0), 'candidates is 0, but it must be at least 1'),
    ],
    ids=str,
)
def test_illegal_arguments_are_named_before_anything_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_inference(**(dict(configs=dict(a=None)) | options))
