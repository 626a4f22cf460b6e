"""HTCRoIHead: masks averaged over all stages at test time, the parent's head in training."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.roi_heads import HybridTaskCascadeRoIHead
from mmengine.structures import InstanceData

from tests.builders import seeded
from tests.detection.detectors import batch, build_htc, train_step

BOX = (16.0, 24.0, 44.0, 52.0)  # 28x28 pixels, the size of a mask, so that pasting does not interpolate


@pytest.mark.parametrize(
    'options', [dict(), dict(mask_info_flow=False), dict(semantic_fusion=('bbox',)), dict(semantic=False)], ids=str
)
@torch.no_grad()
def test_masks_are_the_mean_over_the_stages(options: dict) -> None:
    """The logits of each stage come from the parent's training path."""
    model = build_htc(**options).eval()
    head = model.roi_head
    x = model.extract_feat(seeded(1, 3, 64, 96))
    semantic = head.semantic_head(x)[1] if head.with_semantic else None
    rois, label = torch.tensor([[0, *BOX]]), 2
    stages = torch.cat(
        [HybridTaskCascadeRoIHead._mask_forward(head, i, x, rois, semantic)['mask_preds'].sigmoid() for i in range(3)]
    )[:, label]
    assert (stages.mean(0) - stages[2]).abs().mean() > 0.05, 'the last stage alone would pass'

    head.test_cfg.mask_thr_binary = -1  # returns 255 times the probability
    found = InstanceData(bboxes=torch.tensor([BOX]), labels=torch.tensor([label]), scores=torch.ones(1))
    meta = dict(ori_shape=(64, 96), scale_factor=(1.0, 1.0))
    (result,) = head.predict_mask(x, semantic, [meta], [found], rescale=True)
    pasted = result.masks[0, 24:52, 16:44].float() / 255
    torch.testing.assert_close(pasted, stages.mean(0), atol=1.5 / 255, rtol=0)


@pytest.mark.integration
def test_training_is_that_of_the_parent() -> None:
    """The same parameters under the same names, the same losses and the same gradients of the mask heads."""
    ours, parent = build_htc(seed=1), build_htc('HybridTaskCascadeRoIHead', seed=2)
    parent.load_state_dict(ours.state_dict())
    results = []
    for model in (ours, parent):
        torch.manual_seed(3)  # of the samplers
        terms = train_step(model, batch((96, 80)))
        results.append((terms, [parameter.grad for parameter in model.roi_head.mask_head.parameters()]))
    (terms, gradients), (expected_terms, expected_gradients) = results
    assert {f's{i}.loss_mask' for i in range(3)} <= terms.keys() == expected_terms.keys()
    assert all(torch.equal(value, expected_terms[name]) for name, value in terms.items())
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert (gradient is expected is None) or torch.equal(gradient, expected)


@pytest.mark.parametrize('options', [dict(), dict(mask_info_flow=False)], ids=str)
@torch.no_grad()
def test_detector_predicts_masks(options: dict) -> None:
    model = build_htc(**options).eval()
    model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=5)
    (result,) = model.test_step(batch((96, 80)))
    masks = result.pred_instances.masks
    assert masks.shape == (5, 96, 80) and masks.dtype == torch.bool and masks.flatten(1).any(1).all()
