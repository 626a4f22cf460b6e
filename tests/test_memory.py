"""The estimate of training memory: what is counted, against cases counted by hand, and what depends on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.task_modules import RandomSampler, SamplingResult
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from mm_ummae.analysis.memory import PeakMemory, ZeroProducts, estimate_training_memory

from .leaves import build_model, config, leaf
from .test_tools import tool

HTCPP = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
UPERNET = leaf('upernet_um-swin-test_1xb8-150it_demo-128px')
PARTS = ('weights', 'gradients', 'buckets', 'optimizer', 'activations')
KILO = 1024  # bytes of 256 float32 numbers


# Counting


@pytest.mark.parametrize('fake', [False, True])
def test_memory_counts_once_and_is_freed(fake: bool) -> None:
    """Of tensors with data and without."""
    context = FakeTensorMode() if fake else torch.no_grad()
    with context:
        before = torch.ones(256)
        with PeakMemory() as memory:
            a = torch.ones(256)
            assert memory.live == memory.peak == KILO
            view = a.view(16, 16).t()[2:]
            a.add_(before)
            assert memory.live == KILO, 'a view or an operation in place counted'
            b = a + before
            assert memory.live == 2 * KILO
            del b
            assert memory.live == KILO and memory.peak == 2 * KILO
            del a
            assert memory.live == KILO, 'the view still holds it'
            del view
            assert memory.live == 0 and memory.peak == 2 * KILO
            before.mul_(2)
            assert memory.live == 0


def test_what_autograd_keeps_counts_until_backward() -> None:
    """Three exponentials keep their three results; a checkpoint keeps the first input only."""

    def chain(x: torch.Tensor) -> torch.Tensor:
        return x.exp().exp().exp()

    x = torch.zeros(256, requires_grad=True)
    with PeakMemory() as memory:
        out = chain(x).sum()
        assert memory.live == 3 * KILO + 4
        out.backward()
        del out
        assert memory.live == KILO, 'the gradient alone is left'
    with PeakMemory() as memory:
        out = checkpoint(chain, x, use_reentrant=False).sum()
        assert memory.live <= KILO + 4
        out.backward()
        assert memory.peak >= 3 * KILO, 'the results come back in backward'


def test_half_precision_counts_half() -> None:
    layer, x = nn.Linear(256, 256), torch.ones(256, 256)
    with PeakMemory() as memory, torch.no_grad():
        layer(x)
    full = memory.peak
    with PeakMemory() as memory, torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
        # Input, weight and bias are copied to half precision, and the result has it
        assert out.dtype == torch.bfloat16 and memory.peak == pytest.approx(1.5 * full, rel=0.01)


def test_zeros_instead_of_products_have_their_shapes() -> None:
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


# Estimates


def estimate(path: Path = HTCPP, side: int = 128, images: int = 1, wrapper: str = 'OptimWrapper') -> dict[str, Any]:
    cfg = config(path)
    cfg.optim_wrapper.type = wrapper
    return estimate_training_memory(cfg, (side, side), images)


def test_parameters_cost_20_bytes() -> None:
    """In training on several GPUs: themselves, their gradients, a copy of these to exchange, and two moments."""
    found = estimate()
    model = build_model(config(HTCPP))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert found['weights'] == 4 * parameters + buffers
    assert (found['gradients'], found['buckets'], found['optimizer']) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )
    assert found['total'] == sum(found[part] for part in PARTS)
    assert found['activations'] == max(found['backbone_and_neck'], found['kept'] + found['heads'])


def test_activations_grow_with_the_pictures() -> None:
    """Twice the images need twice the memory, but for copies of the weights; sides are padded before."""
    one, two = estimate(images=2), estimate(images=4, side=97)
    assert one['weights'] == two['weights']
    assert (one['input_shape'], two['input_shape']) == ([2, 3, 128, 128], [4, 3, 128, 128])
    for part in ('kept', 'backbone_and_neck', 'heads'):
        assert 1.4 * one[part] < two[part] <= 2.01 * one[part], part


def test_recomputing_activations_saves_memory() -> None:
    """In the backbone; heads recompute nothing."""
    cfg = config(HTCPP)
    cfg.model.backbone.with_cp = True
    plain, recomputed = estimate(side=256), estimate_training_memory(cfg, (256, 256), 1)
    assert recomputed['backbone_and_neck'] < 0.8 * plain['backbone_and_neck']
    assert recomputed['kept'] < 0.7 * plain['kept'] and recomputed['heads'] == plain['heads']


def test_mixed_precision_saves_memory() -> None:
    """Norms and what adds up along the blocks stay float32, as on a GPU."""
    full, mixed = estimate(side=256), estimate(side=256, wrapper='AmpOptimWrapper')
    assert mixed['mixed_precision'] and not full['mixed_precision']
    assert 0.5 < mixed['kept'] / full['kept'] < 0.9 and mixed['heads'] == full['heads']


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


def test_without_a_type_the_wrapper_is_the_plain_one() -> None:
    cfg = config(HTCPP)
    del cfg.optim_wrapper['type']
    assert estimate_training_memory(cfg, (64, 64), 1) == estimate(side=64)


def test_a_segmentor_is_estimated_too() -> None:
    one, two = (estimate(UPERNET, images=images) for images in (2, 4))
    assert not one['mixed_precision'] and one['heads'] > 0
    assert 1.8 * one['heads'] < two['heads'] <= 2.01 * one['heads']


def test_tool_prints_whether_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [str(HTCPP), '--shape', '100', '128', '--images', '1', '--out', str(tmp_path / 'new' / 'memory.json')]
    found = tool('estimate_memory').main([*words, '--card', '2'])
    row = capsys.readouterr().out.splitlines()[-2]
    total = found[str(HTCPP)]['total'] / 1e9
    assert f'| {total:.2f} | yes |' in row
    content = json.loads((tmp_path / 'new' / 'memory.json').read_text())
    assert content['estimates'] == found and content['environment']['versions']['torch']
    tool('estimate_memory').main([*words, '--card', str(total)])
    assert capsys.readouterr().out.splitlines()[-2].endswith('| no |'), 'nothing is kept free'


# Refused


def test_classifiers_are_refused() -> None:
    cfg = config(leaf('um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px'))
    with pytest.raises(ValueError, match="default_scope of the config is 'mmpretrain', but it must be mmdet or mmseg"):
        estimate_training_memory(cfg, (64, 64), 1)


def test_an_optimizer_of_unknown_state_is_refused() -> None:
    cfg = config(HTCPP)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
    with pytest.raises(ValueError, match=r'optim_wrapper\.optimizer\.type is SGD, but it must be Adam or AdamW'):
        estimate_training_memory(cfg, (64, 64), 1)


@pytest.mark.parametrize(('shape', 'images', 'rule'), [((0, 64), 1, 'shape is .0, 64.'), ((64, 64), 0, 'images is 0')])
def test_impossible_sizes_are_refused(shape: tuple[int, int], images: int, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        estimate_training_memory(config(HTCPP), shape, images)


def test_a_card_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match='--card is 0, but it must be more than 0 GB'):
        tool('estimate_memory').main([str(HTCPP), '--card', '0'])
