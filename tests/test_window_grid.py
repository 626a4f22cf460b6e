"""Window grids: the looked-up bias must be the MLP on every pair, whatever the image, window and shift.

The reference here evaluates the MLP pair by pair on positions found token by token. It knows nothing of
blocks, only that :meth:`WindowGrid.partition` may order the tokens of a window as it likes.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mm_ummae.masking import UniformMask, draw_uniform_mask
from mm_ummae.models.layers import LogPositionBias, WindowAttention
from mm_ummae.models.layers import WindowGrid

SIZES = [(64, 64), (128, 128), (96, 160), (224, 224), (256, 256)]
STRIDES = (4, 8, 16, 32)
HIDDEN = -100.0


@cache
def made_mask(n: int, size: tuple[int, int]) -> UniformMask:
    return draw_uniform_mask(n, size, generator=torch.Generator().manual_seed(sum(size)))


def made_bias(heads: int = 2) -> LogPositionBias:
    torch.manual_seed(0)
    bias = LogPositionBias(heads, 8)
    for parameter in bias.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return bias


def slow_positions(mask: UniformMask, stride: int) -> Tensor:
    """(N, h, w, 2): row and column of each compact token in the full image, by the published rule.

    Stage 1 tokens stand where they stood; each merging keeps every second position and halves it.
    """
    n, gh, gw = mask.offsets.shape
    positions = torch.zeros(n, 4 * gh, 4 * gw, 2)
    for image, offsets in enumerate(mask.offsets.tolist()):
        for i in range(4 * gh):
            for j in range(4 * gw):
                offset = offsets[i // 4][j // 4]
                row = 8 * (i // 4) + 4 * (offset // 2) + i % 4
                column = 8 * (j // 4) + 4 * (offset % 2) + j % 4
                positions[image, i, j] = torch.tensor([row, column])
    while stride > 4:
        positions, stride = positions[:, ::2, ::2] / 2, stride // 2
    return positions


@cache
def token_positions(n: int, size: tuple[int, int], stride: int, masked: bool) -> Tensor:
    if masked:
        return slow_positions(made_mask(n, size), stride)
    height, width = (-(-side // stride) for side in size)
    axes = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return torch.stack(axes, -1).float().expand(n, -1, -1, -1)


class Case:
    """A grid, and which token stands where in each window, all (N * windows, T); ``real`` is no padding."""

    def __init__(self, size: tuple[int, int], stride: int, window: int, shift: int, masked: bool, n: int = 2) -> None:
        self.positions = token_positions(n, size, stride, masked)
        _, height, width, _ = self.positions.shape
        mask = made_mask(n, size) if masked else None
        self.grid = WindowGrid(height, width, window=window, shift=shift, stride=stride, mask=mask)
        indices = torch.arange(n * height * width).view(n, height, width, 1)
        indices = self.grid.partition(indices + 1)[..., 0] - 1  # padding becomes -1
        self.real, indices = indices >= 0, indices.clamp(min=0)
        self.image = indices // (height * width)
        self.row, self.column = indices // width % height, indices % width
        self.n, self.size, self.window, self.shift = n, (height, width), window, shift

    def visible(self) -> Tensor:
        """(N * windows, T, T): pairs of one region. A shift moves the first rows and columns to the end."""
        moved = torch.stack((self.row < self.shift, self.column < self.shift), -1)
        return (moved[:, :, None] == moved[:, None]).all(-1)

    def all_pairs(self, bias: LogPositionBias) -> Tensor:
        """(N * windows, heads, T, T): the MLP on every pair, key minus query."""
        place = self.positions[self.image, self.row, self.column]  # (N * windows, T, 2)
        difference = place[:, None, :, :] - place[:, :, None, :]  # (.., query, key, 2)
        spaced = difference.sign() * torch.log(1 + difference.abs())
        hidden = F.relu(spaced @ bias.fc1.weight.t() + bias.fc1.bias)
        value = (hidden @ bias.fc2.weight.t() + bias.fc2.bias).permute(0, 3, 1, 2)
        return torch.where(self.visible()[:, None], value, HIDDEN)

    def looked_up(self, bias: LogPositionBias) -> Tensor:
        """The package's bias, one for each window of each image."""
        value = bias(self.grid)
        windows = self.real.shape[0] // self.n
        assert value.shape[0] in (1, windows, self.n * windows)
        return value.repeat(self.real.shape[0] // value.shape[0], 1, 1, 1)

    def pairs(self) -> Tensor:
        """(N * windows, T, T): pairs of real tokens, the only ones whose bias matters."""
        return self.real[:, :, None] & self.real[:, None]


# Partition


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
@pytest.mark.parametrize('stride', STRIDES)
@pytest.mark.parametrize('window', [8, 7, 4])
@pytest.mark.parametrize('shifted', [False, True], ids=['plain', 'shifted'])
def test_partition(masked: bool, stride: int, window: int, shifted: bool) -> None:
    """Each window holds the right tokens, each token is in one window, and merge is the inverse."""
    for size in SIZES:
        shift = window // 2 if shifted else 0
        case = Case(size, stride, window, shift, masked)
        height, width = case.size
        rows, columns = -(-height // window), -(-width // window)
        assert case.real.shape == (2 * rows * columns, window**2)
        assert case.real.sum() == 2 * height * width  # nothing twice, nothing lost (merge below)
        number = torch.arange(2 * rows * columns)[:, None].expand(case.real.shape)
        row_window = ((case.row - shift) % (rows * window)) // window
        column_window = ((case.column - shift) % (columns * window)) // window
        expected = (case.image * rows + row_window) * columns + column_window
        assert torch.equal(number[case.real], expected[case.real])

        x = torch.randn(2, height, width, 3)
        windows = case.grid.partition(x)
        assert torch.equal(case.grid.merge(windows), x)
        assert torch.equal(windows[case.real], x[case.image, case.row, case.column][case.real])
        assert not windows[~case.real].any()  # padding is zero


def test_padding_does_not_reach_gradients() -> None:
    """Every token goes through once: the gradient of the sum of all is 1 for each."""
    grid = WindowGrid(13, 10, window=8, shift=4, stride=4)
    x = torch.randn(2, 13, 10, 3, requires_grad=True)
    grid.merge(grid.partition(x)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


# Bias


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
@pytest.mark.parametrize('stride', STRIDES)
@pytest.mark.parametrize('window', [8, 7, 6, 5, 4, 2])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_lookup_equals_all_pairs(masked: bool, stride: int, window: int, size: tuple[int, int]) -> None:
    """The central property: no pair of real tokens gets another bias than the MLP at its own difference."""
    bias = made_bias()
    for n, shift in ((1, 0), (2, 0), (1, window // 2), (2, window // 2)):
        case = Case(size, stride, window, shift, masked, n)
        with torch.no_grad():
            looked_up, expected = case.looked_up(bias), case.all_pairs(bias)
        pairs = case.pairs()[:, None].expand_as(expected)
        assert (looked_up[pairs] - expected[pairs]).abs().max() < 1e-6, f'{n} images, shift {shift}'
        hidden = (case.pairs() & ~case.visible())[:, None].expand_as(expected)
        assert (looked_up[hidden] == HIDDEN).all(), f'{n} images, shift {shift}'


@pytest.mark.parametrize(
    ('masked', 'window', 'shift'),
    [(False, 16, 0), (False, 16, 8), (True, 8, 2), (True, 8, 3), (True, 12, 6), (False, 8, 3), (False, 9, 6)],
)
@pytest.mark.parametrize('stride', STRIDES)
def test_lookup_with_other_shifts(masked: bool, window: int, shift: int, stride: int) -> None:
    """Windows of fine-tuning (16), and shifts that are not half a window."""
    bias = made_bias(1)
    case = Case((160, 192), stride, window, shift, masked)
    with torch.no_grad():
        looked_up, expected = case.looked_up(bias), case.all_pairs(bias)
    pairs = case.pairs()[:, None]
    assert (looked_up[pairs] - expected[pairs]).abs().max() < 1e-6


@pytest.mark.parametrize('offset', range(4))
def test_lookup_with_regular_offsets(offset: int) -> None:
    """Extreme masks: where all cells keep the same unit, and where neighbours keep the farthest ones."""
    bias = made_bias()
    for corner in (offset, 3 - offset):
        offsets = torch.full((1, 4, 4), offset)
        offsets[:, 1::2, 1::2] = corner
        mask = UniformMask(offsets, torch.zeros_like(offsets, dtype=torch.bool))
        for stride in STRIDES:
            case = Case((128, 128), stride, 4, 2, masked=True, n=1)
            case.positions = slow_positions(mask, stride)
            case.grid = WindowGrid(*case.size, window=4, shift=2, stride=stride, mask=mask)
            with torch.no_grad():
                looked_up, expected = case.looked_up(bias), case.all_pairs(bias)
            pairs = case.pairs()[:, None].expand_as(expected)
            assert (looked_up[pairs] - expected[pairs]).abs().max() < 1e-6


def test_difference_is_key_minus_query() -> None:
    """Written out on 2x2 tokens whose bias is the spaced column difference: looking right is positive."""
    bias = LogPositionBias(1, 2)
    with torch.no_grad():  # relu(c) - relu(-c) = c, c the column difference
        bias.fc1.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        bias.fc2.weight.copy_(torch.tensor([[1.0, -1.0]]))
        bias.fc1.bias.zero_()
        bias.fc2.bias.zero_()
    value = bias(WindowGrid(2, 2, window=2, shift=0, stride=4))[0, 0]
    one = torch.tensor(2.0).log()
    expected = torch.tensor([[0, one, 0, one], [-one, 0, -one, 0], [0, one, 0, one], [-one, 0, -one, 0]])
    torch.testing.assert_close(value, expected)


def test_half_positions_at_the_last_stage() -> None:
    """Spec: at the last stage positions can be half-integers, so that is not rounded away."""
    offsets = torch.zeros(1, 4, 4, dtype=torch.int64)
    offsets[0, 2, 2] = 3  # the unit that speaks for the second token of each axis moves by one unit
    mask = UniformMask(offsets, torch.zeros_like(offsets, dtype=torch.bool))
    positions = slow_positions(mask, 32)
    assert positions[0, 1, 1].tolist() == [2.5, 2.5]
    grid = WindowGrid(2, 2, window=2, shift=0, stride=32, mask=mask)
    bias = made_bias(1)
    expected = bias.evaluate(torch.tensor([2.5, 2.5]))
    torch.testing.assert_close(bias(grid)[0, :, 0, 3], expected)


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
@pytest.mark.parametrize('stride', STRIDES)
@pytest.mark.parametrize('window', [8, 7, 4])
def test_gradient_equals_all_pairs(masked: bool, stride: int, window: int) -> None:
    """The lookup's backward sums over pairs as the all-pairs MLP's does; nothing is counted twice or lost."""
    for shift in (0, window // 2):
        case = Case((96, 160), stride, window, shift, masked)
        torch.manual_seed(1)
        weights = torch.randn(case.real.shape[0], 2, window**2, window**2)
        weights = torch.where((case.pairs() & case.visible())[:, None], weights, 0)
        gradients = []
        for function in (case.looked_up, case.all_pairs):
            bias = made_bias()
            (function(bias) * weights).sum().backward()
            gradients.append([parameter.grad for parameter in bias.parameters()])
        for ours, expected in zip(*gradients, strict=True):
            assert (ours - expected).abs().max() < 1e-4 * max(expected.abs().max(), 1)


# Attention


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
def test_shifted_attention_keeps_regions_apart(masked: bool) -> None:
    """A changed token reaches the tokens of its window and region, all of them and no other one."""
    size = (128, 128) if masked else (64, 64)
    case = Case(size, 4, 8, 4, masked, n=1)
    assert case.size == (16, 16)
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, 4).eval()
    x = torch.randn(1, 16, 16, 8)

    def attend(x: Tensor) -> Tensor:
        with torch.no_grad():
            return case.grid.merge(attention(case.grid.partition(x), case.grid))

    before = attend(x)
    axis = torch.arange(16)
    region = (axis - 4) % 16 // 8 * 2 + (axis < 4)  # which window along an axis, and moved or not
    for row, column in ((0, 0), (3, 15), (15, 15), (15, 0), (4, 4), (11, 12), (12, 2)):
        changed = x.clone()
        changed[0, row, column] += 3 * torch.randn(8)
        difference = (attend(changed) - before)[0].abs().amax(-1)
        neighbours = (region == region[row])[:, None] & (region == region[column])
        assert (difference[neighbours] > 1e-6).all()
        assert difference[~neighbours].max() < 1e-7


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'dense'])
@pytest.mark.parametrize('shift', [0, 4])
def test_attention_equals_softmax_with_all_pairs_bias(masked: bool, shift: int) -> None:
    """Each window of each image uses its own bias: attention written out, for a batch whose masks differ."""
    case = Case((128, 192), 8, 8, shift, masked, n=3)
    torch.manual_seed(0)
    attention = WindowAttention(12, 2, 4)
    x = torch.randn(*case.real.shape, 12)
    with torch.no_grad():
        ours = attention(x, case.grid)
        query, key, value = (part.unflatten(-1, (2, 6)) for part in attention.qkv(x).chunk(3, -1))
        logits = torch.einsum('wqhd,wkhd->whqk', query / 6**0.5, key)
        logits = logits + case.all_pairs(attention.position_bias)
        expected = attention.proj(torch.einsum('whqk,wkhd->wqhd', logits.softmax(-1), value).flatten(2))
    real = case.real.all(1)  # windows without padding
    assert real.any()
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)


def test_heads_divide_width() -> None:
    with pytest.raises(ValueError, match='num_heads 3 does not divide embed_dims 32'):
        WindowAttention(32, 3, 8)
