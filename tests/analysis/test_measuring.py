"""FLOPs against formulas, memory against cases counted by hand, and times in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import SwinTransformer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from mm_ummae.analysis import PeakMemory, Settings, count_multiply_adds, measuring, time_interleaved
from mm_ummae.analysis.measuring import flop_counter, peak_memory, round_ratio
from mm_ummae.models import UMSwin

KILO = 1024  # bytes of 256 float32 numbers


def total(model: nn.Module, *inputs: Tensor) -> int:
    with torch.no_grad():
        return sum(count_multiply_adds(model, lambda: model(*inputs)).values())


# FLOPs


@pytest.mark.parametrize(
    ('layer', 'shape', 'expected'),
    [
        (nn.Linear(5, 7), (2, 3, 4, 5), 2 * 3 * 4 * 5 * 7),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), (2, 8, 11, 9), 2 * 6 * 5 * 12 * 2 * 9),
        (nn.ConvTranspose2d(8, 12, 2, 2), (2, 8, 5, 4), 2 * 5 * 4 * 12 * 8 * 4),
        (nn.LayerNorm(5), (2, 3, 5), 0),
    ],
    ids=['linear', 'grouped convolution', 'transposed convolution', 'norm'],
)
def test_multiply_adds_of_a_layer_follow_its_formula(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert total(layer, torch.randn(shape)) == expected


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_attention_counts_two_products_in_forward_and_four_in_backward(dtype: torch.dtype) -> None:
    """3 images, 4 heads, 10 queries, 7 keys of 8 channels, whichever kernels PyTorch would take."""
    query, key, value = (torch.randn(3, 4, tokens, 8, dtype=dtype, requires_grad=True) for tokens in (10, 7, 7))
    with flop_counter() as counter:
        loss = F.scaled_dot_product_attention(query, key, value).sum()
        forward = counter.get_total_flops()
        loss.backward()
    assert forward == 2 * 3 * 4 * (10 * 8 * 7 + 10 * 7 * 8)
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(('height', 'width'), [(128, 64), (100, 150)])
def test_swin_follows_its_formula(height: int, width: int) -> None:
    """Linear layers of all tokens with the padding, both products of attention, and the position MLP."""
    model = UMSwin('test', img_size=128, window_size=4, out_indices=(0, 1, 2, 3)).eval()
    window, h, w = 4, -(-height // 4), -(-width // 4)
    expected = 4 * 4 * 3 * 32 * h * w
    for i in range(4):
        dims, heads = 32 * 2**i, 2 * 2**i
        if i:
            h, w = -(-h // 2), -(-w // 2)
            expected += 2 * 2 * dims // 2 * dims * h * w
        padded = (h + -h % window) * (w + -w % window)
        block = padded * (4 * dims * dims + 2 * window**2 * dims) + h * w * 2 * 4 * dims * dims
        expected += 2 * (block + (2 * window - 1) ** 2 * 8 * (2 + heads))
    assert total(model, torch.randn(1, 3, height, width)) == expected


def test_swin_has_the_published_multiply_adds() -> None:
    """Stock Swin-T at 224 px: 4.5 G in table 1 of arXiv 2103.14030."""
    assert total(SwinTransformer('tiny'), torch.randn(1, 3, 224, 224)) / 1e9 == pytest.approx(4.5, abs=0.05)


# Memory


@pytest.mark.parametrize('fake', [False, True])
def test_storages_count_once_and_are_freed(fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        before = torch.ones(256)
        with PeakMemory() as memory:
            a = torch.ones(256)
            assert memory.live == memory.peak == KILO
            view = a.view(16, 16).t()[2:]
            a.add_(before)
            assert memory.live == KILO, 'a view or an operation in place counted'
            b = a + before
            assert memory.live == 2 * KILO
            del a, b
            assert memory.live == KILO and memory.peak == 2 * KILO, 'the view still holds it'
            del view
            before.mul_(2)
            assert memory.live == 0 and memory.peak == 2 * KILO


def test_activations_count_until_backward() -> None:
    """Three exponentials keep their three results; a checkpoint keeps its input only."""

    def chain(x: Tensor) -> Tensor:
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
        assert memory.peak >= 3 * KILO, 'recomputed in backward'


def test_memory_of_a_gpu_is_over_what_was_allocated_before(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = [5000]
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: 1040)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: peak.__setitem__(0, 1040))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: peak[0])
    assert peak_memory(lambda: peak.__setitem__(0, 1340), 'cuda') == 300


# Time


def test_callables_take_turns_and_warm_up_untimed() -> None:
    order: list[str] = []
    seconds = time_interleaved({name: lambda name=name: order.append(name) for name in 'ab'}, rounds=3, warmup=2)
    assert order == ['a', 'b'] * 5
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, b=3)


def test_times_cover_the_queue_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call only queues its work; waiting for it, here a clock that jumps, belongs to its time."""
    clock, queued = [0.0], [7.0]  # the first entry was queued before

    def wait() -> None:
        clock[0] += queued.pop() if queued else 0.0

    monkeypatch.setattr(torch.cuda, 'synchronize', wait)
    monkeypatch.setattr(measuring.time, 'perf_counter', lambda: clock[0])
    seconds = time_interleaved(dict(a=lambda: queued.append(2.0)), rounds=2, warmup=0, device='cuda')
    assert seconds == dict(a=[2.0, 2.0])


def test_ratio_is_the_median_of_the_rounds() -> None:
    assert round_ratio([2.0, 3.0, 10.0], [4.0, 30.0, 8.0]) == 0.5  # of 0.5, 0.1 and 1.25


# Settings


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(device='tpu'), "device is 'tpu', but it must be cpu or cuda"),
        (dict(dtype='int8'), "dtype is 'int8', but it must be one of float32, float16, bfloat16"),
        (dict(dtype='float16'), "dtype is 'float16', but .* on a CPU not float16"),
        (dict(rounds=0), 'rounds is 0, but it must be at least 1'),
        (dict(warmup=-1), 'warmup is -1, but it must be at least 0'),
    ],
    ids=str,
)
def test_illegal_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='device is cuda, but PyTorch finds no GPU here'):
        Settings('cuda')


@pytest.mark.parametrize(('dtype', 'expected'), [('float32', torch.float32), ('bfloat16', torch.bfloat16)])
def test_mixed_precision_is_that_of_autocast(dtype: str, expected: torch.dtype) -> None:
    with Settings(dtype=dtype).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected
