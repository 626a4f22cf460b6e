"""Attention and feed-forward networks against plain formulations."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mm_ummae.analysis.memory import PeakMemory
from mm_ummae.models import UMPVT, GlobalAttention, UMMAEDecoder, UMSwin
from mm_ummae.models.layers import (
    FeedForward,
    PooledAttention,
    SelfAttention,
    WholeImagePositions,
    WindowAttention,
    WindowGrid,
    check_with_cp,
    compact_image_positions,
    run_block,
)
from tests.builders import SMALL, disturbed, draw, seeded

# Largest error over the largest value; bfloat16 has 8 bits, and the gradient of a bias is a sum over windows
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}
both_precisions = pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])


def assert_near(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape and ours.isfinite().all()
    assert (ours.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


# Attention in windows


def whole(height: int, width: int, shift: int) -> WindowGrid:
    return WindowGrid(height, width, 4, shift, WholeImagePositions(4, shift)())


def compact(n: int, size: tuple[int, int], shift: int) -> WindowGrid:
    height, width = size[0] // 16, size[1] // 16  # stride 8 on the compact image
    return WindowGrid(height, width, 4, shift, compact_image_positions(height, width, 4, shift, 8, draw(n, size)))


GRIDS = {  # images, their grid, distinct biases
    'compact': (2, compact(2, (128, 192), 2), 12),
    'compact, four windows': (2, compact(2, (64, 128), 0), 4),
    'whole, plain': (2, whole(8, 12, 0), 1),
    'whole': (2, whole(12, 16, 2), 4),
    'whole, one row': (3, whole(4, 12, 2), 4),
    'whole, one window': (1, whole(4, 4, 2), 4),
}


@pytest.mark.parametrize('name', GRIDS)
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_window_attention_is_softmax_with_a_bias_for_every_window(dtype: torch.dtype, name: str) -> None:
    """Output and all gradients, from one bias for all windows, four, and one for each window of each image."""
    n, grid, kinds = GRIDS[name]
    torch.manual_seed(0)
    attention = disturbed(WindowAttention(12, 2, 4)).to(dtype)
    windows = n * prod(grid.counts())
    x = seeded(windows, 16, 12).to(dtype).requires_grad_()
    grad = seeded(windows, 16, 12, seed=1).to(dtype)
    ours = attention(x, grid)
    weights = [value for key, value in attention.named_parameters() if key != 'position_bias.fc2.bias']
    ours = (ours, *torch.autograd.grad(ours, (x, *weights), grad))

    exact = attention.double()
    x = x.detach().double().requires_grad_()
    bias = grid.positions.expand_bias(exact.position_bias(grid.positions.points))
    assert len(bias) == kinds
    bias = grid.spread(bias)
    bias = bias.repeat(windows // len(bias), 1, 1, 1)
    query, key, value = (part.unflatten(-1, (2, 6)) for part in exact.qkv(x).chunk(3, -1))
    logits = torch.einsum('wqhd,wkhd->whqk', query / 6**0.5, key) + bias
    expected = exact.proj(torch.einsum('whqk,wkhd->wqhd', logits.softmax(-1), value).flatten(2))
    weights = [value for key, value in exact.named_parameters() if key != 'position_bias.fc2.bias']
    expected = (expected, *torch.autograd.grad(expected, (x, *weights), grad.double()))
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == dtype
        assert_near(mine, theirs, TOLERANCE[dtype])


# Attention of decoders and of PVT


@both_precisions
def test_self_attention_is_that_of_mmpretrain(autocast: bool) -> None:
    """The same names, output and gradients."""
    torch.manual_seed(0)
    ours, theirs = SelfAttention(12, 3), MultiheadAttention(12, 3)
    theirs.load_state_dict(ours.state_dict())
    x, grad, results = seeded(2, 10, 12).requires_grad_(), seeded(2, 10, 12, seed=1), []
    for module in (ours, theirs):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            out = module(x)
        results.append([out, *torch.autograd.grad(out, (x, *module.parameters()), grad.to(out.dtype))])
    for mine, expected in zip(*results, strict=True):
        # A bias that all keys share changes no score: a third of the gradient of qkv's bias is rounding
        assert_near(mine, expected, TOLERANCE[torch.bfloat16 if autocast else torch.float32])


@pytest.mark.parametrize('ratio', [1, 2, 4])
@pytest.mark.parametrize('size', [(8, 8), (5, 11), (1, 1)], ids=str)
@torch.no_grad()
def test_pooled_attention_equals_loops(size: tuple[int, int], ratio: int) -> None:
    """Head by head, with keys of ratio x ratio pooled tokens, fewer where a kernel hangs over the edge."""
    torch.manual_seed(0)
    layer, x = disturbed(PooledAttention(12, 3)), seeded(2, *size, 12)
    starts = [(row, column) for row in range(0, size[0], ratio) for column in range(0, size[1], ratio)]
    for image, result in zip(x, layer(x, ratio), strict=True):
        squares = [image[row : row + ratio, column : column + ratio] for row, column in starts]
        pooled = torch.stack([square.flatten(0, 1).mean(0) for square in squares])
        key, value = layer.kv(layer.norm(layer.reduction(pooled))).split(12, dim=-1)
        query = layer.q(image.flatten(0, 1))
        heads = []
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            logits = query[:, part] @ key[:, part].T / 2  # root of 4 channels per head
            heads.append(logits.softmax(-1) @ value[:, part])
        expected = layer.proj(torch.cat(heads, -1)).view(*size, 12)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'make', [lambda: WindowAttention(32, 3, 8), lambda: SelfAttention(32, 3), lambda: PooledAttention(32, 3)]
)
def test_heads_divide_width(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match='num_heads is 3, but it must divide embed_dims, which is 32'):
        make()


# Feed-forward networks, plain and with a recomputed activation


def made_ffn(recompute: bool = False) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward.of(16, 64, recompute)


def test_feed_forward_is_that_of_mmcv() -> None:
    """Without the residual connection: the same names and values, also with the layers and layer scale of one."""
    theirs = FFN(16, 64, act_cfg=dict(type='GELU'), add_identity=False, layer_scale_init_value=0.5)
    x, ours = seeded(4, 10, 16), made_ffn()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if 'gamma2' not in name})
    assert torch.equal(FeedForward(theirs.layers, theirs.gamma2)(x), theirs(x))
    torch.testing.assert_close(ours(x) / 2, theirs(x))


@both_precisions
def test_recomputing_keeps_less_and_changes_nothing(autocast: bool) -> None:
    """Less by the output of GELU, 40 tokens of 64 channels; the same values to the last bit, and matrix products."""
    grad, results, live, flops = seeded(4, 10, 16, seed=1), [], [], []
    for recompute in (False, True):
        ffn, x = made_ffn(recompute), seeded(4, 10, 16).requires_grad_()
        precision = torch.autocast('cpu', torch.bfloat16, enabled=autocast)
        with precision, FlopCounterMode(display=False) as counter, PeakMemory() as memory:
            out = ffn(x)
            live.append(memory.live)
            out.backward(grad.to(out.dtype))
        flops.append(counter.get_total_flops())
        results.append([out, x.grad, *(parameter.grad for parameter in ffn.parameters())])
    assert all(map(torch.equal, *results))
    assert live[0] - live[1] == (2 if autocast else 4) * 40 * 64
    assert flops[0] == flops[1] == 3 * 2 * 2 * 40 * 16 * 64


def test_nothing_is_recomputed_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a prediction nor where all before it and its first layer are frozen."""
    plain, ffn, x = made_ffn(), made_ffn(recompute=True), seeded(4, 10, 16)
    monkeypatch.setattr('mm_ummae.models.layers.blocks.checkpoint', None)
    with torch.no_grad():
        assert torch.equal(ffn(x), plain(x))
        assert torch.equal(run_block(plain, x, with_cp=True), plain(x))
    ffn.layers[0].requires_grad_(False)
    out = ffn(x)
    assert torch.equal(out, plain(x)) and out.requires_grad


# The switch with_cp of every model that has it

ENCODER = dict(img_size=64, drop_path_rate=0.5)
IMAGES = seeded(4, 3, 64, 64)
MODELS = {  # model, keyword arguments, and a call
    'UMSwin': (UMSwin, dict(arch=SMALL[UMSwin], **ENCODER), lambda model: model(IMAGES)[0]),
    'UMSwin-masked': (UMSwin, dict(arch=SMALL[UMSwin], **ENCODER), lambda model: model(IMAGES, draw(4, (64, 64)))[0]),
    'UMPVT': (UMPVT, dict(arch=SMALL[UMPVT], **ENCODER), lambda model: model(IMAGES)[0]),
    'UMMAEDecoder': (
        UMMAEDecoder,
        dict(in_channels=6, embed_dims=8, depth=2, num_heads=2, img_size=64),
        lambda model: model(seeded(4, 6, 1, 1), draw(4, (64, 64))),
    ),
    'GlobalAttention': (
        GlobalAttention,
        dict(in_channels=8, num_heads=2, drop_path=0.5),
        lambda model: model(seeded(4, 8, 5, 7).requires_grad_()),
    ),
}


@pytest.mark.parametrize(('kind', 'kwargs', 'run'), MODELS.values(), ids=MODELS)
def test_with_cp_changes_memory_only(kind: type[nn.Module], kwargs: dict, run: Callable) -> None:
    """The same output and gradients, with stochastic depth drawn the same again; 'ffn' and True keep less and less."""
    results, live = [], []
    for with_cp in (False, 'ffn', True):
        torch.manual_seed(0)
        model = disturbed(kind(**kwargs, with_cp=with_cp)).train()
        torch.manual_seed(3)
        with PeakMemory() as memory:
            out = run(model)
            live.append(memory.live)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert live[0] > live[1] > live[2]
    for other in results[1:]:
        for plain, recomputed in zip(results[0], other, strict=True):
            torch.testing.assert_close(plain, recomputed)
    message = r"with_cp is 'all', but it must be False, True .* or 'ffn' \(recompute only the activation"
    for call in (lambda: kind(**kwargs, with_cp='all'), lambda: check_with_cp('all')):
        with pytest.raises(ValueError, match=message):
            call()
