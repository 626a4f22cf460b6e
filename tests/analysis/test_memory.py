"""Estimate of training memory: what it depends on, and what it refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from mmdet.models.task_modules import RandomSampler, SamplingResult
from torch import nn

from mm_ummae.analysis import build_network, estimate_training_memory
from mm_ummae.analysis.memory import ZeroProducts
from tests.configs.leaves import config, leaf

HTCPP = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
MASK_RCNN = leaf('mask-rcnn_um-swin-test_1xb4-400it_demo-128px')
UPERNET = leaf('upernet_um-swin-test_1xb8-150it_demo-128px')
PARTS = ('weights', 'gradients', 'buckets', 'optimizer', 'activations')


@cache
def estimate(
    name: str = 'mask-rcnn',
    side: int = 128,
    images: int = 1,
    wrapper: str | None = 'OptimWrapper',
    with_cp: bool = False,
) -> dict[str, Any]:
    cfg = config({'mask-rcnn': MASK_RCNN, 'upernet': UPERNET}[name])
    cfg.model.backbone.with_cp = with_cp
    if wrapper is None:
        del cfg.optim_wrapper['type']
    else:
        cfg.optim_wrapper.type = wrapper
    return estimate_training_memory(cfg, (side, side), images)


def test_products_return_zeros_of_their_shapes() -> None:
    """In forward and backward; everything else keeps its values."""
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    with ZeroProducts():
        out = layer(x)
        (out + 1).sum().backward()
        batched = torch.ones(2, 3, 4) @ torch.ones(2, 4, 5)
    assert out.shape == (2, 5) and not out.any() and batched.shape == (2, 3, 5) and not batched.any()
    assert x.grad.shape == x.shape and not x.grad.any()
    assert layer[0].weight.grad.shape == layer[0].weight.shape
    assert torch.equal(layer[2].bias.grad, torch.full((5,), 2.0)), 'a sum is no product'


def test_a_parameter_takes_20_bytes() -> None:
    """In training on several GPUs: itself, its gradient, a copy of it to exchange, and two moments."""
    found, model = estimate(), build_network(config(MASK_RCNN))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert found['weights'] == 4 * parameters + sum(buffer.nbytes for buffer in model.buffers())
    assert [found[part] for part in PARTS[1:4]] == [4 * parameters, 4 * parameters, 8 * parameters]
    assert found['total'] == sum(found[part] for part in PARTS)
    assert found['activations'] == max(found['backbone_and_neck'], found['kept'] + found['heads'])


@pytest.mark.parametrize('name', ['mask-rcnn', 'upernet'])
def test_activations_grow_with_the_images(name: str) -> None:
    """Twice the images need twice the memory, but for copies of the weights; sides are padded before."""
    one, two = estimate(name, images=1), estimate(name, images=2, side=97 if name == 'mask-rcnn' else 128)
    assert one['weights'] == two['weights']
    assert (one['input_shape'], two['input_shape']) == ([1, 3, 128, 128], [2, 3, 128, 128])
    for part in ('kept', 'backbone_and_neck', 'heads'):
        assert 1.4 * one[part] < two[part] <= 2.01 * one[part], part


def test_recomputing_activations_saves_memory() -> None:
    """In the backbone; heads recompute nothing."""
    plain, recomputed = (estimate('upernet', with_cp=with_cp) for with_cp in (False, True))
    assert recomputed['backbone_and_neck'] < 0.8 * plain['backbone_and_neck']
    assert recomputed['kept'] < 0.7 * plain['kept'] and recomputed['heads'] == plain['heads']


def test_mixed_precision_saves_memory() -> None:
    """Norms and what adds up along the blocks stay float32, as on a GPU. Without a type the wrapper has none of it."""
    full, mixed = (estimate('upernet', images=4, wrapper=name) for name in ('OptimWrapper', 'AmpOptimWrapper'))
    assert mixed['mixed_precision'] and not full['mixed_precision']
    assert 0.5 < mixed['kept'] / full['kept'] < 0.9 and mixed['heads'] == full['heads']
    assert estimate('upernet', images=4, wrapper=None) == full


def test_every_sampler_gets_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as it may take, positive ones too, in each stage: on random weights alone there would be none."""
    found = []
    sample = RandomSampler.sample

    def watched(*args: Any, **kwargs: Any) -> SamplingResult:
        found.append(sample(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(RandomSampler, 'sample', watched)
    cfg = config(HTCPP)
    estimate_training_memory(cfg, (128, 128), 2)
    stages = [stage.sampler for stage in cfg.model.train_cfg.rcnn]
    ends = {(int(each.num * each.pos_fraction), each.num - int(each.num * each.pos_fraction)) for each in stages}
    assert {(each.num_pos, each.num_neg) for each in found[-2 * len(stages) :]} == ends


@pytest.mark.parametrize(
    ('shape', 'images', 'changes', 'message'),
    [
        ((0, 64), 1, {}, r'shape is \(0, 64\)'),
        ((64, 64), 0, {}, 'images is 0, but it must be at least 1'),
        (
            (64, 64),
            1,
            {'default_scope': 'mmpretrain'},
            "default_scope of the config is 'mmpretrain', but it must be mm",
        ),
        (
            (64, 64),
            1,
            {'optim_wrapper.optimizer.type': 'SGD'},
            r'optim_wrapper\.optimizer\.type is SGD, but it must be Adam or AdamW',
        ),
    ],
)
def test_other_cases_are_refused(shape: tuple[int, int], images: int, changes: dict, message: str) -> None:
    cfg = config(MASK_RCNN)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message):
        estimate_training_memory(cfg, shape, images)
