"""Window grids: the looked-up bias must be the MLP on every pair, whatever the image, window and shift.

The reference evaluates the MLP pair by pair, on positions found token by token. It knows nothing of tiles, only that
:meth:`WindowGrid.partition` may order the tokens of a window as it likes.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.masking import UniformMask
from mm_ummae.models.layers import LogPositionBias, WholeImagePositions, WindowGrid, compact_image_positions, look_up
from tests.builders import draw, seeded

HIDDEN = -100.0
both_images = pytest.mark.parametrize('masked', [True, False], ids=['compact', 'whole'])
all_strides = pytest.mark.parametrize('stride', [4, 8, 16, 32])
drawn = cache(draw)


def made_bias() -> LogPositionBias:
    torch.manual_seed(0)
    bias = LogPositionBias(2, 8)
    for parameter in bias.parameters():
        nn.init.normal_(parameter, std=0.3)
    return bias


@cache
def compact_positions(mask: UniformMask, stride: int) -> Tensor:
    """(N, h, w, 2): row and column of each compact token in the full image, by the published rule.

    Tokens of stage 1 keep their position; each merging takes every second position and halves it.
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


def whole_positions(size: tuple[int, int], stride: int) -> Tensor:
    """The same of two whole images: each token has its own position."""
    axes = torch.meshgrid(*(torch.arange(-(-side // stride)) for side in size), indexing='ij')
    return torch.stack(axes, -1).float().expand(2, -1, -1, -1)


class Case:
    """A grid, and the token at each place of each window, all (N * windows, T); ``real`` is no padding."""

    def __init__(self, size: tuple[int, int], stride: int, window: int, shift: int, mask: UniformMask | None) -> None:
        self.positions = whole_positions(size, stride) if mask is None else compact_positions(mask, stride)
        self.n, height, width, _ = self.positions.shape
        self.size, self.shift = (height, width), shift
        if mask is None:
            relative = WholeImagePositions(window, shift)()
        else:
            relative = compact_image_positions(height, width, window, shift, stride, mask)
        self.grid = WindowGrid(height, width, window, shift, relative)
        indices = torch.arange(self.n * height * width).view(self.n, height, width, 1)
        indices = self.grid.partition(indices + 1)[..., 0] - 1  # padding becomes -1
        self.real, indices = indices >= 0, indices.clamp(min=0)
        self.image = indices // (height * width)
        self.row, self.column = indices // width % height, indices % width

    def visible(self) -> Tensor:
        """(N * windows, T, T): pairs of one region. A shift moves the first rows and columns to the end."""
        moved = torch.stack((self.row < self.shift, self.column < self.shift), -1)
        return (moved[:, :, None] == moved[:, None]).all(-1)

    def pairs(self) -> Tensor:
        """(N * windows, T, T): pairs of real tokens, the only ones whose bias matters."""
        return self.real[:, :, None] & self.real[:, None]

    def all_pairs(self, bias: LogPositionBias) -> Tensor:
        """(N * windows, heads, T, T): the MLP on every pair, key minus query."""
        place = self.positions[self.image, self.row, self.column]  # (N * windows, T, 2)
        difference = place[:, None, :, :] - place[:, :, None, :]  # (.., query, key, 2)
        spaced = difference.sign() * torch.log(1 + difference.abs())
        hidden = F.relu(spaced @ bias.fc1.weight.t() + bias.fc1.bias)
        value = (hidden @ bias.fc2.weight.t() + bias.fc2.bias).permute(0, 3, 1, 2)
        return torch.where(self.visible()[:, None], value, HIDDEN)

    def looked_up(self, bias: LogPositionBias) -> Tensor:
        """The package's bias, repeated to one for each window of each image."""
        positions = self.grid.positions
        value = self.grid.spread(positions.expand_bias(bias(positions.points)))
        windows = len(self.real) // self.n
        assert len(value) in (1, windows, self.n * windows)
        return value.repeat(len(self.real) // len(value), 1, 1, 1)


def check_bias(case: Case) -> None:
    bias = made_bias()
    with torch.no_grad():
        looked_up, expected = case.looked_up(bias), case.all_pairs(bias)
    pairs = case.pairs()[:, None].expand_as(expected)
    assert (looked_up[pairs] - expected[pairs]).abs().max() < 1e-6
    hidden = (case.pairs() & ~case.visible())[:, None].expand_as(expected)
    assert (looked_up[hidden] == HIDDEN).all()


# Partition


@both_images
@pytest.mark.parametrize(
    ('size', 'stride', 'window', 'shift'),
    [
        ((128, 128), 4, 8, 4),  # whole windows
        ((96, 160), 4, 8, 4),  # padded rows and columns
        ((224, 96), 8, 7, 3),  # tiles of one token
        ((160, 96), 16, 4, 0),
        ((64, 64), 32, 4, 2),  # one window, larger than the map
    ],
)
def test_partition(masked: bool, size: tuple[int, int], stride: int, window: int, shift: int) -> None:
    """Each window holds the right tokens, each token is in one window, and merge is the inverse."""
    case = Case(size, stride, window, shift, drawn(2, size) if masked else None)
    height, width = case.size
    rows, columns = case.grid.counts()
    assert (rows, columns) == (-(-height // window), -(-width // window))
    assert case.real.shape == (2 * rows * columns, window**2)
    assert case.real.sum() == 2 * height * width  # nothing twice, nothing lost
    number = torch.arange(2 * rows * columns)[:, None].expand(case.real.shape)
    row_window = ((case.row - shift) % (rows * window)) // window
    column_window = ((case.column - shift) % (columns * window)) // window
    expected = (case.image * rows + row_window) * columns + column_window
    assert torch.equal(number[case.real], expected[case.real])

    x = seeded(2, height, width, 3).requires_grad_()
    windows = case.grid.partition(x)
    merged = case.grid.merge(windows)
    assert torch.equal(merged, x)
    assert torch.equal(windows[case.real], x[case.image, case.row, case.column][case.real])
    assert not windows[~case.real].any()  # padding is zero
    merged.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


# Bias


@both_images
@all_strides
@pytest.mark.parametrize('size', [(96, 160), (224, 224), (64, 128)], ids=str)
def test_lookup_equals_all_pairs(masked: bool, stride: int, size: tuple[int, int]) -> None:
    """The central property: no pair of real tokens gets another bias than the MLP at its own difference.

    Two compact images of 64x128 px have four windows of 8x8 tokens, which are not the four kinds of a whole image.
    """
    for window, shift in ((8, 0), (8, 4), (8, 3), (7, 3), (6, 2), (2, 1), (9, 6), (12, 6), (16, 8)):
        check_bias(Case(size, stride, window, shift, drawn(2, size) if masked else None))


@all_strides
@pytest.mark.parametrize('offset', range(4))
def test_lookup_with_regular_offsets(offset: int, stride: int) -> None:
    """Extreme masks: where neighbouring cells keep the nearest and the farthest units."""
    offsets = torch.full((1, 4, 4), offset)
    offsets[:, 1::2, 1::2] = 3 - offset
    check_bias(Case((128, 128), stride, 4, 2, UniformMask(offsets, torch.zeros_like(offsets).bool())))


@both_images
@pytest.mark.parametrize(('stride', 'window', 'shift'), [(4, 8, 4), (8, 7, 0), (32, 4, 2)])
def test_gradient_equals_all_pairs(masked: bool, stride: int, window: int, shift: int) -> None:
    """The lookup's backward sums over pairs as the all-pairs MLP's does; nothing is counted twice or lost."""
    case = Case((96, 160), stride, window, shift, drawn(2, (96, 160)) if masked else None)
    weights = seeded(len(case.real), 2, window**2, window**2)
    weights = torch.where((case.pairs() & case.visible())[:, None], weights, 0)
    gradients = []
    for function in (case.looked_up, case.all_pairs):
        bias = made_bias()
        (function(bias) * weights).sum().backward()
        gradients.append([parameter.grad for parameter in bias.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).abs().max() < 1e-4 * max(expected.abs().max(), 1)


def test_bias_is_computed_in_float32_under_autocast() -> None:
    bias, points = made_bias(), torch.tensor([[300.0, -301.0], [0.0, 2.5]])
    with torch.autocast('cpu', torch.bfloat16):  # PyTorch 2.1 has no other precision on a CPU
        ours = bias(points)
    assert ours.dtype == torch.float32 and torch.equal(ours, bias(points))


@torch.no_grad()
def test_constants_of_whole_images_follow_the_module() -> None:
    """They are no part of a checkpoint, and indices stay integers in half and double precision."""
    module = WholeImagePositions(4, 2)
    assert not module.state_dict() and not list(module.parameters())
    moved = WholeImagePositions(4, 2).to('meta')()
    assert {value.device.type for value in (moved.index, moved.tile_to_point, moved.points)} == {'meta'}
    bias = made_bias()
    expected = module().expand_bias(bias(module().points))
    assert (expected == HIDDEN).any()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        positions = WholeImagePositions(4, 2).to(dtype)()
        assert positions.index.dtype == positions.tile_to_point.dtype == torch.int64
        assert torch.equal(positions.expand_bias(bias(positions.points)), expected), 'differences are exact'


@pytest.mark.parametrize('gpu', [False, True], ids=['cpu', 'gpu'])
def test_look_up_is_a_one_hot_product(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are looked up often, once and never; on a CPU by index, on a GPU by an embedding."""
    table, grad = seeded(6, 4).requires_grad_(), seeded(3, 4, 5, 4, seed=1)
    index = torch.randint(5, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as context:
        context.setattr(Tensor, 'is_cuda', gpu)
        rows = look_up(table, index)
    assert torch.equal(rows, table[index])
    ours = torch.autograd.grad(rows, table, grad)[0]
    torch.testing.assert_close(ours, F.one_hot(index.flatten(), 6).float().t() @ grad.view(-1, 4))
    assert not ours[5].any()
