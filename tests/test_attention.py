"""Attention, bias, grids and feed-forward networks: each fast way equals the plain one that it stands for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmengine.analysis import get_model_complexity_info
from mmengine.hooks import EMAHook
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mm_ummae.masking import UniformMask, put_units, raster_to_cells, take_units, take_unsampled
from mm_ummae.analysis.memory import PeakMemory
from mm_ummae.models import UMSwin
from mm_ummae.models.layers import blocks as layers
from mm_ummae.models.layers import SelfAttention, attend, attend_in_windows
from mm_ummae.models.layers import LogPositionBias, feed_forward
from mm_ummae.models.layers import WindowGrid, look_up, whole_image_grid

from tests.builders import ALL, draw, made, maps, seeded
from .test_window_grid import made_bias

# Largest error over the largest value. bfloat16 has 8 bits, and the bias' gradient is a sum over windows
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}
all_dtypes = pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
SIZES = [(64, 64), (72, 40), (33, 65), (96, 64), (64, 96)]


class Elsewhere(Tensor):
    """Says that it is on a GPU, so that what is for GPUs runs, on a CPU."""

    device, is_cuda = torch.device('cuda'), True


def elsewhere(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.as_subclass(Elsewhere) for tensor in tensors)


@pytest.fixture
def no_grids() -> Iterator[None]:
    """Nothing is kept from other tests, or for them."""
    whole_image_grid.cache_clear()
    yield
    whole_image_grid.cache_clear()


def assert_near(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape and ours.isfinite().all()
    assert (ours.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


# Attention in windows


def whole(height: int, width: int, shift: int) -> WindowGrid:
    return WindowGrid(height, width, window=4, shift=shift, stride=1)


def compact(n: int, shift: int) -> WindowGrid:
    return WindowGrid(8, 12, window=4, shift=shift, stride=8, mask=draw(n, (128, 192)))


GRIDS: dict[str, tuple[int, Callable[[], WindowGrid]]] = {  # images, and how they are cut
    'masked': (2, lambda: compact(2, 2)),
    'masked, plain': (3, lambda: compact(3, 0)),
    'masked, one image': (1, lambda: compact(1, 2)),
    'whole, plain': (2, lambda: whole(8, 10, 0)),
    'whole': (2, lambda: whole(10, 12, 2)),
    'one image': (1, lambda: whole(10, 12, 2)),
    'one row': (3, lambda: whole(4, 12, 2)),
    'one column': (2, lambda: whole(12, 3, 1)),
    'one window': (2, lambda: whole(4, 4, 2)),
    'one window of one image': (1, lambda: whole(4, 4, 2)),
}
all_grids = pytest.mark.parametrize('grid', GRIDS)


class Case:
    """Leaves of a step of attention, (B, heads, T, d) and (K, heads, T, T), as a block would have them."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        n, make = GRIDS[name]
        self.grid = make()
        self.windows = n * self.grid.rows * self.grid.columns
        # (3, B, T, heads, d) -> (3, B, heads, T, d): views that are not contiguous
        self.qkv = seeded(3, self.windows, 16, 2, 5).to(dtype).transpose(2, 3).requires_grad_()
        self.bias = self.grid.expand_bias(seeded(len(self.grid.points), 2, seed=1)).to(dtype).requires_grad_()
        self.grad = seeded(self.windows, 2, 16, 5, seed=2).to(dtype)

    def run(self, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Output, gradient of queries, keys and values, gradient of the bias."""
        out = function(*self.qkv, self.bias, self.grid)
        return out, *torch.autograd.grad(out, (self.qkv, self.bias), self.grad)

    def plain(self) -> tuple[Tensor, Tensor, Tensor]:
        """In double precision, with a bias for every window of every image."""
        qkv, bias = (x.detach().double().requires_grad_() for x in (self.qkv, self.bias))
        spread = self.grid.spread(bias)
        spread = spread.repeat(self.windows // len(spread), 1, 1, 1)
        out = F.scaled_dot_product_attention(*qkv, attn_mask=spread)
        return out, *torch.autograd.grad(out, (qkv, bias), self.grad.double())


def attend_elsewhere(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, grid: WindowGrid) -> Tensor:
    return attend_in_windows(*elsewhere(query, key, value), bias, grid).as_subclass(Tensor)


@all_grids
@all_dtypes
@pytest.mark.parametrize('function', [attend_in_windows, attend_elsewhere], ids=['cpu', 'gpu'])
def test_attention_in_windows_is_that_of_pytorch(function: Callable, dtype: torch.dtype, grid: str) -> None:
    """Output and all gradients, from scores that are held and from the fused function."""
    case = Case(grid, dtype)
    for ours, expected in zip(case.run(function), case.plain(), strict=True):
        assert ours.dtype == dtype
        assert_near(ours, expected, TOLERANCE[dtype])


def test_the_cases_are_of_every_kind() -> None:
    """One bias for all windows, four, and one for each window of each image."""
    kinds = {name: len(Case(name, torch.float32).bias) for name in GRIDS}
    assert list(kinds.values()) == [12, 18, 6, 1, 4, 4, 4, 4, 4, 4]


@all_grids
def test_memory_that_was_not_written_is_not_read(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(grid, torch.float32)
    expected, calls = case.run(attend_in_windows), []

    def new_nans(tensor: Tensor, size: tuple[int, ...] | int) -> Tensor:
        calls.append(size)
        return tensor.new_full((size,) if isinstance(size, int) else size, float('nan'))

    monkeypatch.setattr(Tensor, 'new_empty', new_nans)
    outs = case.run(attend_in_windows)
    assert calls
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outs, expected, strict=True))


@pytest.mark.parametrize('grid', ['masked', 'whole'])
def test_a_bias_without_gradient_costs_none(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frozen position MLP: the same numbers, and nothing is summed for it."""
    case = Case(grid, torch.float32)
    expected = case.run(attend_in_windows)
    out = attend_in_windows(*case.qkv, case.bias.detach(), case.grid)
    monkeypatch.setattr('mm_ummae.models.layers.attention._by_kind', None)  # what the gradient of the bias needs
    (grad,) = torch.autograd.grad(out, case.qkv, case.grad)
    assert torch.equal(out, expected[0]) and torch.equal(grad, expected[1])


def test_only_the_bias_may_need_a_gradient() -> None:
    case = Case('whole', torch.float32)
    expected = case.run(attend_in_windows)[2]
    out = attend_in_windows(*case.qkv.detach(), case.bias, case.grid)
    (grad,) = torch.autograd.grad(out, case.bias, case.grad)
    assert torch.equal(grad, expected)


# Attention without a bias


@all_dtypes
@pytest.mark.parametrize('other', [False, True], ids=['cpu', 'gpu'])
def test_attend_is_that_of_pytorch(other: bool, dtype: torch.dtype) -> None:
    """Also with fewer keys than queries, in memory of any order."""
    query, key, value = (
        seeded(2, tokens, 3, 4, seed=tokens).to(dtype).transpose(1, 2).requires_grad_() for tokens in (9, 5, 5)
    )
    grad = seeded(2, 3, 9, 4).to(dtype)
    out = attend(*(elsewhere(query, key, value) if other else (query, key, value))).as_subclass(Tensor)
    ours = (out, *torch.autograd.grad(out, (query, key, value), grad))
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    out = F.scaled_dot_product_attention(*exact)
    expected = (out, *torch.autograd.grad(out, exact, grad.double()))
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == dtype
        assert_near(mine, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
def test_self_attention_is_that_of_mmpretrain(autocast: bool) -> None:
    """The same names, output and gradients."""
    torch.manual_seed(0)
    ours, theirs = SelfAttention(12, 3), MultiheadAttention(12, 3)
    theirs.load_state_dict(ours.state_dict())
    x, grad, results = seeded(2, 10, 12).requires_grad_(), seeded(2, 10, 12, seed=1), []
    for module in (ours, theirs):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            out = module(x)
        results.append((out, *torch.autograd.grad(out, (x, *module.parameters()), grad.to(out.dtype))))
    for mine, expected in zip(*results, strict=True):
        # What all keys share changes no score: a third of the gradient of qkv's bias is rounding
        assert_near(mine, expected, TOLERANCE[torch.bfloat16 if autocast else torch.float32])


# The bias that is kept


GRID = whole(10, 12, 2)


def fresh_kinds(bias: LogPositionBias, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a module with these weights gives that never kept anything."""
    new = made_bias().to(bias.fc1.weight.dtype)
    new.load_state_dict(bias.state_dict())
    return new.kinds(GRID, dtype).detach()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[LogPositionBias, list[int]]:
    """A bias in eval mode, and a note for each time its MLP runs."""
    bias, calls = made_bias().eval(), []
    evaluate = bias.evaluate
    monkeypatch.setattr(bias, 'evaluate', lambda points: calls.append(1) or evaluate(points))
    return bias, calls


def test_bias_is_kept_in_eval_without_gradients(counted: tuple[LogPositionBias, list[int]]) -> None:
    """Once for all blocks and calls, whatever the size of the image; each shift, window and dtype has its own."""
    bias, calls = counted
    with torch.no_grad():
        kept = bias.kinds(GRID, torch.float32)
        assert bias.kinds(GRID, torch.float32) is kept
        assert bias.kinds(whole(33, 21, 2), torch.float32) is kept
        assert len(calls) == 1
        rough = bias.kinds(GRID, torch.bfloat16)
        assert rough.dtype == torch.bfloat16 and torch.equal(rough, kept.bfloat16())
        assert bias.kinds(whole(10, 12, 0), torch.float32).shape == (1, 2, 16, 16)
        assert bias.kinds(GRID, torch.float32) is kept
    assert len(calls) == 3
    assert torch.equal(kept, fresh_kinds(bias)) and not kept.requires_grad


def test_bias_is_not_kept_in_training_or_with_a_mask(counted: tuple[LogPositionBias, list[int]]) -> None:
    bias, calls = counted
    for _ in range(2):
        assert bias.kinds(GRID, torch.float32).requires_grad
    with torch.no_grad():
        for seed in range(2):
            grid = WindowGrid(8, 8, window=4, shift=2, stride=8, mask=draw(1, (128, 128), seed=seed))
            bias.kinds(grid, torch.float32)
        bias.train()
        for _ in range(2):
            bias.kinds(GRID, torch.float32)
    assert len(calls) == 6


def in_place(bias: LogPositionBias) -> None:
    bias.fc1.weight.mul_(2)


def loaded(bias: LogPositionBias) -> None:
    bias.load_state_dict({name: 2 * value for name, value in bias.state_dict().items()})


def replaced(bias: LogPositionBias) -> None:
    bias.fc2.weight = nn.Parameter(2 * bias.fc2.weight)


def optimised(bias: LogPositionBias) -> None:
    for parameter in bias.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(bias.parameters(), lr=0.1).step()


def copied_before(mode: str) -> Callable[[LogPositionBias], None]:
    def change(bias: LogPositionBias) -> None:
        for parameter in bias.parameters():
            parameter.data.copy_(2 * parameter.data)
        getattr(bias, mode)()

    change.__name__ = f'copied_before_{mode}'
    return change


def rounded(bias: LogPositionBias) -> None:
    bias.bfloat16().float()


CHANGES = [in_place, loaded, replaced, optimised, copied_before('eval'), copied_before('train'), rounded]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_bias_is_new_after_a_change(change: Callable[[LogPositionBias], None]) -> None:
    """Of any parameter, in any way that a runner or a user has."""
    bias = made_bias().eval()
    before = bias.kinds(GRID, torch.float32).clone()
    change(bias)
    bias.training = False  # not by eval(), which forgets
    after = bias.kinds(GRID, torch.float32)
    assert torch.equal(after, fresh_kinds(bias))
    assert not torch.equal(after, before)


@torch.no_grad()
def test_bias_follows_the_dtype_of_its_weights() -> None:
    bias = made_bias().eval()
    bias.kinds(GRID, torch.float64)
    exact = bias.double().kinds(GRID, torch.float64)
    assert exact.dtype == torch.float64
    assert torch.equal(exact, fresh_kinds(bias, torch.float64))


def test_averaged_weights_are_used_in_validation() -> None:
    """MMEngine's EMA swaps them in through ``.data``, before a loop calls ``eval``, and out again."""
    model, images = made(UMSwin), seeded(1, 3, 64, 64)
    runner = SimpleNamespace(model=model, iter=0, epoch=0)
    hook = EMAHook(momentum=0.5)
    hook.before_run(runner)
    hook.after_train_iter(runner, 0)  # the first step copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    hook.after_train_iter(runner, 1)
    own = maps(model, images)[0]
    averaged = maps(copy.deepcopy(hook.ema_model.module), images)[0]
    assert not torch.allclose(own, averaged, atol=1e-3)
    for expected, swap in ((averaged, hook.before_val_epoch), (own, hook.after_val_epoch)):
        swap(runner)
        assert torch.equal(maps(model, images)[0], expected)


def test_a_model_that_keeps_a_bias_is_copied_and_saved() -> None:
    """Copies go their own way, and nothing of what is kept is in a checkpoint."""
    model, images = made(UMSwin), seeded(1, 3, 64, 64)
    names = list(model.state_dict())
    with torch.inference_mode():
        expected = model.eval()(images)[0].clone()
    assert any(module._kept for module in model.modules() if isinstance(module, LogPositionBias))
    assert list(model.state_dict()) == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(maps(other, images)[0], expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.1)
        assert not torch.equal(maps(other, images)[0], expected)
        assert torch.equal(maps(model, images)[0], expected)


@torch.inference_mode()
def test_a_model_that_was_made_in_inference_mode_predicts() -> None:
    """Its weights count no versions."""
    model, images = made(UMSwin).eval(), seeded(1, 3, 64, 64)
    assert torch.equal(model(images)[0], maps(made(UMSwin), images)[0])


# Grids that are kept


CPU = torch.device('cpu')


def test_a_whole_image_has_one_grid(no_grids: None) -> None:
    grid = whole_image_grid(10, 12, 4, 2, CPU)
    assert whole_image_grid(10, 12, 4, 2, CPU) is grid
    for other in ((12, 10, 4, 2), (10, 12, 4, 1), (10, 12, 2, 2)):
        assert whole_image_grid(*other, CPU) is not grid


def test_each_device_has_its_grid(no_grids: None) -> None:
    meta = whole_image_grid(10, 12, 4, 2, torch.device('meta'))
    here = whole_image_grid(10, 12, 4, 2, CPU)
    for grid, name in ((meta, 'meta'), (here, 'cpu')):
        assert {grid.index.device.type, grid.points.device.type, grid.block_to_point.device.type} == {name}
        x = torch.ones(2, 10, 12, 3, device=name)
        assert grid.merge(grid.partition(x)).shape == x.shape
        assert grid.partition(x).device.type == name


@cache
def alone(size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Maps of a model that never saw another size."""
    whole_image_grid.cache_clear()
    return maps(made(UMSwin, out_indices=ALL, window_size=4), seeded(2, 3, *size))


def test_many_sizes_in_turn(no_grids: None) -> None:
    """Each twice, and with another number of images between."""
    expected = [alone(size) for size in SIZES]
    model = made(UMSwin, out_indices=ALL, window_size=4)
    for _ in range(2):
        for size, theirs in zip(SIZES, expected, strict=True):
            assert all(map(torch.equal, maps(model, seeded(2, 3, *size)), theirs))
            maps(model, seeded(1, 3, *size))


def gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    loss = sum(out.square().mean() for out in model.train()(images))
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize('context', [torch.inference_mode, torch.no_grad], ids=['inference', 'no_grad'])
def test_training_after_a_prediction_of_the_same_size(context: Callable, no_grids: None) -> None:
    """Tensors made in inference mode may not be in a graph: none of them is left."""
    images = seeded(2, 3, 72, 40)
    expected = gradients(made(UMSwin, window_size=4), images)
    whole_image_grid.cache_clear()
    model = made(UMSwin, window_size=4).eval()
    with context():
        model(images)
    assert all(map(torch.equal, gradients(model, images), expected))


def test_fake_tensors_stay_among_themselves(no_grids: None) -> None:
    """An estimate before, between and after predictions leaves nothing, and takes nothing."""
    expected, model = alone((72, 40)), made(UMSwin, out_indices=ALL, window_size=4)
    whole_image_grid.cache_clear()
    for _ in range(2):
        with FakeTensorMode():
            fake = made(UMSwin, out_indices=ALL, window_size=4)
            for out, theirs in zip(maps(fake, torch.empty(2, 3, 72, 40)), expected, strict=True):
                assert type(out) is not Tensor and out.shape == theirs.shape
            assert len(gradients(fake, torch.empty(2, 3, 72, 40))) == len(list(model.parameters()))
        assert all(map(torch.equal, maps(model, seeded(2, 3, 72, 40)), expected))
        assert len(gradients(model, seeded(2, 3, 72, 40))) == len(list(model.parameters()))


def test_mmengine_counts_the_operations_of_a_model() -> None:
    """It traces the model, in which sizes are tensors; what was kept before does not matter, nor is it spoilt."""
    model, images = made(UMSwin, window_size=4), seeded(1, 3, 64, 72)
    expected = maps(model, images)
    counts = [get_model_complexity_info(model, inputs=images, show_table=False)['flops'] for _ in range(2)]
    assert counts[0] == counts[1] > 18 * 16 * 48 * 8  # the patch embedding alone
    assert all(map(torch.equal, maps(model, images), expected))
    assert all(map(torch.equal, maps(made(UMSwin, window_size=4), images), expected))


# Rows


@pytest.mark.parametrize('shape', [(7,), (3, 4, 5)], ids=str)
def test_both_ways_to_look_up_are_one_hot_products(shape: tuple[int, ...]) -> None:
    """Rows that are looked up often, once and never; on a CPU by index, on a GPU by an embedding."""
    table = seeded(6, 4).requires_grad_()
    index = torch.randint(5, shape, generator=torch.Generator().manual_seed(0))
    grad = seeded(*shape, 4, seed=1)
    for rows in (look_up(table, index), look_up(*elsewhere(table), index).as_subclass(Tensor)):
        assert torch.equal(rows, table[index])
        ours = [torch.autograd.grad(rows, table, grad, retain_graph=True)[0] for _ in range(3)]
        expected = F.one_hot(index.flatten(), 6).float().t() @ grad.view(-1, 4)
        torch.testing.assert_close(ours[0], expected)
        assert torch.equal(ours[0], ours[1]) and torch.equal(ours[0], ours[2]), 'the order of a sum changed'
        assert not ours[0][5].any()


def test_put_units_is_the_inverse_of_take_units() -> None:
    units, values = seeded(3, 8, 5).requires_grad_(), seeded(3, 4, 5, seed=1).requires_grad_()
    index = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :4]
    put = put_units(units, index, values)
    assert torch.equal(take_units(put, index), values)
    assert torch.equal(put_units(units, index, take_units(units, index)), units)
    others = torch.ones(3, 8).scatter(1, index, 0).bool()
    assert torch.equal(put[others], units[others])

    grad = seeded(3, 8, 5, seed=2)
    ours = torch.autograd.grad(put, (units, values), grad)
    assert torch.equal(ours[0], grad * others[..., None])
    assert torch.equal(ours[1], take_units(grad, index))
    token = torch.zeros(1, 1, 5).expand(3, 8, 5)  # as decoders have it: one row for all
    assert torch.equal(put_units(token, index, values)[others], token[others])
    assert not token.any()


@pytest.mark.parametrize('size', [(64, 64), (96, 160), (32, 224)], ids=str)
def test_units_of_a_uniform_mask(size: tuple[int, int]) -> None:
    """Kept ones by cell are kept ones by index; the others are those of the cells."""
    mask = draw(3, size)
    assert torch.equal(mask.kept().sort(1).values, mask.by_index().kept)
    units = seeded(3, size[0] // 16, size[1] // 16, 2, 5)
    cells = raster_to_cells(units)
    assert torch.equal(mask.select_targets(units), take_unsampled(cells, mask.offsets))
    offsets = mask.offsets.view(*mask.offsets.shape, 1, 1, 1).expand(*mask.offsets.shape, 1, 2, 5)
    assert torch.equal(take_units(units.flatten(1, 2), mask.kept()), cells.gather(3, offsets).flatten(1, 3))
    assert UniformMask(*(field[:, :1] for field in mask)).kept().shape == (3, size[1] // 32)


# Feed-forward networks


def made_ffn() -> FFN:
    torch.manual_seed(0)
    return FFN(16, 64, act_cfg=dict(type='GELU'))


def plainly(ffn: FFN, x: Tensor) -> Tensor:
    return ffn.layers(x)


def nested(ffn: FFN, x: Tensor) -> Tensor:
    """In a block whose activations are computed again."""
    return checkpoint(feed_forward, ffn, x, use_reentrant=False)


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('function', [feed_forward, nested])
def test_feed_forward_has_the_output_and_gradients_of_its_layers(function: Callable, autocast: bool) -> None:
    """To the last bit: the same operations, some of them twice."""
    ffn, x, grad, results = made_ffn(), seeded(4, 10, 16).requires_grad_(), seeded(4, 10, 16, seed=1), []
    for each in (function, plainly):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            out = each(ffn, x)
        assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
        results.append((out, *torch.autograd.grad(out, (x, *ffn.parameters()), grad.to(out.dtype))))
    assert len(results[0]) == 6
    assert all(map(torch.equal, *results))


def test_feed_forward_keeps_less() -> None:
    """By what comes out of GELU: 40 tokens of 64 channels."""
    ffn, x, live = made_ffn(), seeded(4, 10, 16).requires_grad_(), []
    for function in (plainly, feed_forward):
        with PeakMemory() as memory:
            out = function(ffn, x)
            live.append(memory.live)
            del out
    assert live[0] - live[1] == 4 * 40 * 64


def test_feed_forward_repeats_no_product() -> None:
    ffn, x, flops = made_ffn(), seeded(4, 10, 16).requires_grad_(), []
    for function in (plainly, feed_forward):
        with FlopCounterMode(display=False) as counter:
            function(ffn, x).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] == 3 * 2 * 2 * 40 * 16 * 64


def test_feed_forward_without_gradients_keeps_nothing_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a prediction nor where all before it and its first layer are frozen."""
    ffn, x = made_ffn(), seeded(4, 10, 16)
    monkeypatch.setattr(layers, 'checkpoint', None)
    with torch.no_grad():
        assert torch.equal(feed_forward(ffn, x), plainly(ffn, x))
    ffn.layers[0].requires_grad_(False)
    out = feed_forward(ffn, x)
    assert torch.equal(out, plainly(ffn, x)) and out.requires_grad
