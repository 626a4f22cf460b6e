"""The estimate of training memory: what is counted, against cases counted by hand, and what depends on what.

PyTorch before 2.3 does not tell when memory is freed; there the estimate is refused, which is tested too.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from mm_ummae.memory import LOWEST_TORCH, PeakMemory, estimate_training_memory

from .leaves import build_model, config, leaf
from .test_tools import tool

HTCPP = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
GFL = leaf('gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco')
SUPPORTED = Version(torch.__version__) >= Version(LOWEST_TORCH)
needs_supported = pytest.mark.skipif(not SUPPORTED, reason='refused on this PyTorch, see the last test')
KILO = 1024  # bytes of 256 float32 numbers


# Counting


@needs_supported
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


@needs_supported
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


@needs_supported
def test_half_precision_counts_half() -> None:
    layer, x = nn.Linear(256, 256), torch.ones(256, 256)
    with PeakMemory() as memory, torch.no_grad():
        layer(x)
    full = memory.peak
    with PeakMemory() as memory, torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
        # Input, weight and bias are copied to half precision, and the result has it
        assert out.dtype == torch.bfloat16 and memory.peak == pytest.approx(1.5 * full, rel=0.01)


# Estimates


def estimate(path: Path, side: int = 128, images: int = 1, **backbone: object) -> dict[str, int]:
    cfg = config(path)
    if path == GFL:
        cfg.model.backbone.arch = 'test'
        cfg.model.neck[0].in_channels = [32, 64, 128, 256]
    cfg.model.backbone.update(backbone)
    return estimate_training_memory(cfg, (side, side), images)


@needs_supported
def test_parameters_cost_16_bytes() -> None:
    found = estimate(HTCPP)
    model = build_model(config(HTCPP))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert found['weights'] == 4 * parameters + buffers
    assert (found['gradients'], found['optimiser']) == (4 * parameters, 8 * parameters)
    assert set(found) == {'weights', 'gradients', 'optimiser', 'dense', 'roi_heads'}


@needs_supported
def test_activations_grow_with_the_pictures() -> None:
    """Twice the images need twice the memory, but for copies of the weights."""
    one, two = estimate(GFL, images=2), estimate(GFL, images=4)
    assert one['weights'] == two['weights'] and one['roi_heads'] == two['roi_heads'] == 0
    assert 1.5 * one['dense'] < two['dense'] <= 2.01 * one['dense']
    assert estimate(GFL, side=97, images=2) == one, '97 pixels are padded to 128'


@needs_supported
def test_recomputing_activations_saves_memory() -> None:
    assert estimate(GFL, 256, with_cp=True)['dense'] < 0.8 * estimate(GFL, 256)['dense']


@needs_supported
def test_roi_heads_take_a_fixed_number_of_boxes() -> None:
    """So their part hardly depends on the size of the picture, but that of the semantic branch does."""
    small, large = (estimate(HTCPP, side)['roi_heads'] for side in (128, 256))
    assert 0 < small < large < 2 * small


@needs_supported
def test_tool_prints_whether_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [str(HTCPP), '--shape', '100', '128', '--images', '1', '--out', str(tmp_path / 'new' / 'memory.json')]
    found = tool('estimate_memory').main([*words, '--card', '1'])
    row = capsys.readouterr().out.splitlines()[-2]
    total = sum(found[str(HTCPP)].values())
    assert f'| {total / 1e9:.1f} | yes |' in row
    content = json.loads((tmp_path / 'new' / 'memory.json').read_text())
    assert content['bytes'] == found and content['environment']['versions']['torch']
    tool('estimate_memory').main([*words, '--card', str(total / 1e9)])
    assert capsys.readouterr().out.splitlines()[-2].endswith('| no |'), 'nothing is kept free'


# Refused


def test_other_networks_are_refused() -> None:
    cfg = config(leaf('upernet_um-swin-test_1xb8-150it_demo-128px'))
    with pytest.raises(ValueError, match=r"default_scope of the config is 'mmseg', but it must be 'mmdet'"):
        estimate_training_memory(cfg, (64, 64), 1)


@pytest.mark.parametrize(('shape', 'images'), [((0, 64), 1), ((64, 64), 0)])
def test_impossible_sizes_are_refused(shape: tuple[int, int], images: int) -> None:
    with pytest.raises(ValueError, match='but all must be positive'):
        estimate_training_memory(Config(dict(default_scope='mmdet')), shape, images)


def test_a_pytorch_that_hides_what_is_freed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, '__version__', '2.1.2+cpu')
    with pytest.raises(RuntimeError, match=r'PyTorch is 2\.1\.2\+cpu, but memory can be followed from 2\.3 on'):
        PeakMemory()
