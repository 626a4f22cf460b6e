"""How a token map is cut into attention windows, and where each token stands in the full image.

A :class:`WindowGrid` is built once per stage and step; every block of the stage reuses it.

The one hard idea is the *block*: a square of tokens whose relative positions are known without looking at the
mask. On a full image that is a whole window. On the compact image of Uniform Masking it is the part of a
window that belongs to one unit: units move against each other, tokens inside a unit do not. So a position
difference is ``scale * (difference of blocks) + (difference inside the blocks)``, the first looked up per pair
of blocks, the second the same everywhere. Worked example, stage 1 of a masked 256-px image: windows of 8x8
tokens hold 2x2 units of 4x4 tokens. A pair of units differs by -3..3 units in each direction (7 * 7 = 49
cases) and each case is a fixed 16x16 table, so the bias of a window is 4x4 such tables: one lookup moves 256
numbers, and its backward adds whole tables instead of scattering single numbers.

Names: ``N`` images, ``h x w`` tokens, ``T = window ** 2`` tokens a window, ``b`` side of a block in tokens,
``U = window / b`` blocks along a window's side.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from mm_ummae.masking import UniformMask, sampled_positions


def is_traced() -> bool:
    """Whether what runs is being compiled by ``torch.compile`` or traced by ``torch.jit.trace``."""
    # As torch.compiler.is_compiling, which PyTorch 2.1 has here only
    return torch._dynamo.is_compiling() or torch.jit.is_tracing()


class WindowGrid:
    """Windows over one token map: partition, its inverse, and the position difference of every pair of tokens.

    On a whole image all windows are alike, but for those of the last row and column if there is a shift: it brings
    tokens together there that are no neighbours. So there are at most four *kinds* of windows, whatever the size of
    the image, and their bias is all that blocks need. On a compact image every window is a kind of its own.

    Args:
        height (int): Token rows.
        width (int): Token columns.
        window (int): Side of a window in tokens.
        shift (int): Cyclic shift in tokens, 0 for plain windows.
        stride (int): Pixels per token in the full image, 4 at stage 1.
        mask (UniformMask, optional): Set if the tokens are those of the compact image.
        device (torch.device, optional): Where the index maps live.

    Attributes:
        index (Tensor): (K, U * U, U * U) int64, which block difference a (query, key) pair of blocks has, for each kind
            of window: 1; 4 of a shifted whole image, see :meth:`spread`; or every window of every image.
            The value ``differences`` marks pairs that the shift brought together and attention must not see.
        block_to_point (Tensor): (differences, b * b, b * b) int64, row of :attr:`points` for each pair of
            tokens in two blocks of a given difference.
        points (Tensor): (P, 2) float, distinct (row, column) differences, key minus query, in tokens.
        rows (int): Windows above each other.
        columns (int): Windows beside each other.
        key (tuple, optional): Grids with the same one have the same bias; None if it depends on a mask.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        window: int,
        shift: int,
        stride: int,
        mask: UniformMask | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.height, self.width, self.window, self.shift = height, width, window, shift
        self.rows, self.columns = -(-height // window), -(-width // window)
        self._orders: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

        if mask is None:
            self.key = (window, shift, device)
            self.block = gcd(window, shift)  # gcd(w, 0) = w: without a shift a window is one block
            scale, reach = float(self.block), window // self.block - 1
            # Four windows are all kinds that there are if there is a shift, else all windows are one
            side = (2 if shift else 1) * window
            padded = (side, side)
            rows = torch.arange(side // self.block, device=device).view(1, -1, 1)
            columns = torch.arange(side // self.block, device=device).view(1, 1, -1)
        else:
            self.key = None
            padded = (self.rows * window, self.columns * window)
            self.block, scale, reach = _compact_blocks(padded, window, shift, stride)
            rows, columns = _compact_positions(mask.offsets, padded, self.block, stride)
        self._index_blocks(rows, columns, padded, reach)
        self._index_points(scale, reach, device)

    def _index_blocks(self, rows: Tensor, columns: Tensor, padded: tuple[int, int], reach: int) -> None:
        side, shift = self.window // self.block, self.shift // self.block
        shape = (-1, padded[0] // self.block, padded[1] // self.block)
        span = 2 * reach + 1
        index = 0
        for position, size in ((rows, span), (columns, 1)):
            position = _split(position.expand(*shape).roll((-shift, -shift), (1, 2)), side)  # (N, windows, U * U)
            # key minus query: (N, windows, 1, UU) - (N, windows, UU, 1). Pairs apart by more than ``reach``
            # only meet through the cyclic shift and are hidden below.
            difference = (position[:, :, None] - position[..., None]).clamp(-reach, reach)
            index = index + (difference + reach) * size
        if shift:
            # The cyclic shift moved the first ``shift`` rows and columns to the far end: tokens that were
            # moved and tokens that were not are no neighbours.
            moved_rows = torch.arange(shape[1], device=rows.device).roll(-shift) < shift
            moved_columns = torch.arange(shape[2], device=rows.device).roll(-shift) < shift
            region = moved_rows[:, None] * 2 + moved_columns * 1
            region = _split(region[None], side)
            index = index.masked_fill(region[:, :, None] != region[..., None], span * span)
        self.differences = span * span
        self.index = index.flatten(0, 1)

    def _index_points(self, scale: float, reach: int, device: torch.device | None) -> None:
        # Distinct token differences are multiples of ``step``; half tokens only occur where a token covers
        # 2x2 units (stage 4 of a compact image).
        step = min(scale, 1.0)
        ratio, inside = int(scale / step), self.block - 1
        far = reach * ratio + inside
        axis = torch.arange(-far, far + 1, device=device)
        blocks = torch.arange(-reach, reach + 1, device=device) * ratio
        tokens = torch.arange(self.block, device=device)
        token_difference = tokens - tokens[:, None]  # (b query, b key), key minus query
        # (2 reach + 1, b, b): index along one axis of ``axis`` for each block difference and pair of tokens
        along = blocks[:, None, None] + token_difference + far
        row = along[:, None, :, None, :, None]  # (rows, 1, bq, 1, bk, 1)
        column = along[None, :, None, :, None, :]  # (1, columns, 1, bq, 1, bk)
        pairs = row * len(axis) + column  # (rows, columns, bq, bq, bk, bk)
        self.block_to_point = pairs.view(self.differences, self.block**2, self.block**2)
        self.points = torch.cartesian_prod(axis, axis) * step

    def partition(self, x: Tensor) -> Tensor:
        """Cut tokens into windows, padded with zeros to whole windows.

        Args:
            x (Tensor): (N, h, w, C).
        Returns:
            Tensor: (N * windows, T, C). Inside a window the tokens of a block are neighbours.
        """
        n, _, _, c = x.shape
        source, target, padding = self.order(n, x.device)
        return _Reorder.apply(x.reshape(-1, c), source, target, padding, None).view(-1, self.window**2, c)

    def merge(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`partition`: (N * windows, T, C) -> (N, h, w, C)."""
        c = x.shape[-1]
        source, target, padding = self.order(x.shape[0] // (self.rows * self.columns), x.device)
        x = _Reorder.apply(x.reshape(-1, c), target, source, None, padding)
        return x.view(-1, self.height, self.width, c)

    def order(self, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """How the tokens of n images lie in windows: made once.

        Shift, padding and cutting are all one gather of rows, where roll, pad and permute would each copy the map.

        Returns:
            tuple[Tensor, Tensor, Tensor | None]: (N * windows * T) int64, the token at each place of each window, any
            where it is padding; (N * h * w) int64, the place of each token; the places of padding.
        """
        if n not in self._orders:
            height, width, area = self.rows * self.window, self.columns * self.window, self.height * self.width
            padding = height * width - area
            tokens = torch.arange(n * area, device=device).view(n, self.height, self.width)
            tokens = F.pad(tokens, (0, width - self.width, 0, height - self.height), value=-1)
            tokens = tokens.roll((-self.shift, -self.shift), (1, 2))
            side, b = self.window // self.block, self.block
            # (N, rows, U, b, columns, U, b) -> (N, rows, columns, U, U, b, b)
            tokens = tokens.view(n, self.rows, side, b, self.columns, side, b).permute(0, 1, 4, 2, 5, 3, 6).flatten()
            places = tokens.argsort()  # padding first, then token by token
            padding, places = places.split((n * padding, n * area))
            self._orders[n] = (tokens.clamp(min=0), places, padding if len(padding) else None)
        return self._orders[n]

    def expand_bias(self, point_bias: Tensor, hidden: float = -100.0) -> Tensor:
        """Look the bias of every pair of tokens up, in every kind of window.

        Args:
            point_bias (Tensor): (P, heads), the bias at :attr:`points`.
            hidden (float): Bias of pairs that only the cyclic shift brought together.
        Returns:
            Tensor: (K, heads, T query, T key).
        """
        heads, area, units = point_bias.shape[1], self.block**2, self.index.shape[1]
        # (differences, bb, bb, heads) -> (differences, heads * bb * bb)
        blocks = look_up(point_bias, self.block_to_point).permute(0, 3, 1, 2).flatten(1)
        if self.shift:
            blocks = torch.cat((blocks, blocks.new_full((1, blocks.shape[1]), hidden)))
        # (K, UU query, UU key, heads, bb, bb) -> (K, heads, T, T)
        bias = look_up(blocks, self.index).view(-1, units, units, heads, area, area).permute(0, 3, 1, 4, 2, 5)
        return bias.reshape(-1, heads, units * area, units * area)

    def spread(self, bias: Tensor) -> Tensor:
        """From kinds of windows to windows.

        Args:
            bias (Tensor): (K, ...), of :meth:`expand_bias`. The four kinds of a shifted whole image are windows that
                are in neither the last row nor the last column, in the last column, in the last row, in both.
        Returns:
            Tensor: (G, ...). G is 1 (all windows alike), the number of windows of an image, or N times that.
        """
        if self.key is None or not self.shift:
            return bias
        last_row = torch.arange(self.rows, device=bias.device) == self.rows - 1
        last_column = torch.arange(self.columns, device=bias.device) == self.columns - 1
        return bias[(last_row[:, None] * 2 + last_column * 1).flatten()]


@lru_cache(maxsize=64)
def whole_image_grid(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowGrid:
    """The grid of a whole image, which depends on sizes alone: index maps are kept for later calls.

    Args:
        height (int): Token rows.
        width (int): Token columns.
        window (int): Side of a window in tokens.
        shift (int): Cyclic shift in tokens, 0 for plain windows.
        device (torch.device): Where the index maps live.
    """
    return WindowGrid(height, width, window=window, shift=shift, stride=1, device=device)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table, (R, C), (...) int64 -> (..., C), whose gradient is summed in a fixed order.

    Few rows are looked up by many pairs. On a GPU ``index_select`` would add their gradients one by one with atomic
    operations, waiting for each other; an embedding sorts the indices first. On a CPU plain sums are faster.
    """
    if table.is_cuda:
        return F.embedding(index, table)
    return table.index_select(0, index.flatten()).view(*index.shape, -1)


class _Reorder(torch.autograd.Function):
    """Rows in another order, (R, C) -> (S, C); backward is the inverse gather instead of a sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, there: Tensor, back: Tensor, empty_there: Tensor | None, empty_back: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(back, empty_back)
        return _take_rows(x, there, empty_there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _take_rows(grad, *ctx.saved_tensors), None, None, None, None


def _take_rows(x: Tensor, index: Tensor, empty: Tensor | None) -> Tensor:
    """(R, C), (S) -> (S, C), zeros in the rows ``empty``."""
    x = F.embedding(index, x)  # on a CPU faster than index_select
    return x if empty is None else x.index_fill_(0, empty, 0)


def _split(x: Tensor, side: int) -> Tensor:
    """(N, rows, columns) -> (N, windows, side * side)."""
    n, rows, columns = x.shape
    x = x.reshape(n, rows // side, side, columns // side, side).transpose(2, 3)
    return x.reshape(n, -1, side * side)


def _compact_blocks(padded: tuple[int, int], window: int, shift: int, stride: int) -> tuple[int, float, int]:
    """Side of a block in tokens, full-image tokens per step of block positions, farthest difference in steps."""
    tokens = max(16 // stride, 1)  # tokens along a unit's side
    block = gcd(gcd(tokens, window), shift)
    if stride > 16:
        # One token covers ``stride / 16`` units a side and stands where its top-left unit stands, so
        # positions are multiples of 16 / stride tokens.
        group = stride // 16
        return 1, 1 / group, 2 * group * (window - 1) + 1
    per_unit, side = tokens // block, window // block

    def position(i: int, offset: int) -> int:
        return (2 * (i // per_unit) + offset) * per_unit + i % per_unit

    starts = range(shift // block, max(padded) // block, side)
    return block, float(block), max(position(s + side - 1, 1) - position(s, 0) for s in starts)


def _compact_positions(offsets: Tensor, padded: tuple[int, int], block: int, stride: int) -> tuple[Tensor, Tensor]:
    """Full-image (rows, columns) of the blocks of a compact map, in steps, each (N, blocks, blocks)."""
    per_unit = max(16 // stride, 1) // block
    group = max(stride // 16, 1)
    blocks = [side // block for side in padded]
    # Padding continues the grid; a padded cell counts as sampled at its top left.
    cells = [-(-side * group // per_unit) for side in blocks]
    rows_missing, columns_missing = cells[0] - offsets.shape[1], cells[1] - offsets.shape[2]
    if rows_missing > 0 or columns_missing > 0:
        offsets = F.pad(offsets, (0, max(columns_missing, 0), 0, max(rows_missing, 0)))
    rows, columns = sampled_positions(offsets, per_unit)
    return tuple(x[:, ::group, ::group][:, : blocks[0], : blocks[1]] for x in (rows, columns))
