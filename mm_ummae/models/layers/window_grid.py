"""Partition of a token map into attention windows, with the relative positions of the tokens in the full image.

The one hard idea is the *tile*: a square of tokens whose relative positions are known without reading the mask. On a
full image a tile is a whole window. On the compact image of Uniform Masking it is the part of a window that belongs to
one unit: units move against each other, tokens inside a unit do not. So a position difference is ``scale * (difference
of tiles) + (difference inside the tiles)``, the first looked up per pair of tiles, the second the same everywhere.
Worked example, stage 1 of a masked 256-px image: windows of 8x8 tokens hold 2x2 units of 4x4 tokens. A pair of units
differs by -3..3 units in each direction (7 * 7 = 49 cases) and each case is a fixed 16x16 table, so the bias of a
window is 4x4 such tables: one lookup moves 256 numbers, and its backward adds whole tables instead of scattering single
numbers.

Names: ``N`` images, ``h x w`` tokens, ``T = window ** 2`` tokens per window, ``b`` side of a tile in tokens,
``U = window / b`` tiles along the side of a window, ``D`` distinct differences of tiles.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.masking import UNIT, UniformMask, sampled_positions

HIDDEN = -100.0  # bias of pairs that only the cyclic shift brought together


class RelativePositions(NamedTuple):
    """Relative positions of all pairs of tokens in windows.

    On a whole image all windows are alike, except those of the last row and column if there is a shift: it brings
    tokens together there that are no neighbours. So there are at most four *kinds* of windows, whatever the size of
    the image. On a compact image every window is a kind of its own.

    Attributes:
        tile (int): Side b of a tile in tokens.
        index (Tensor): (K, U * U, U * U) int64, difference of each (query, key) pair of tiles, for each of K kinds of
            windows. The value D marks pairs that the shift brought together and attention must not see.
        tile_to_point (Tensor): (D, b * b, b * b) int64, row of ``points`` for each pair of tokens in two tiles.
        points (Tensor): (P, 2) float, distinct (row, column) differences, key minus query, in tokens.
        by_kind (bool): The K kinds are those of a whole image; otherwise K = N * windows.
    """

    tile: int
    index: Tensor
    tile_to_point: Tensor
    points: Tensor
    by_kind: bool

    def expand_bias(self, point_bias: Tensor) -> Tensor:
        """Look up the bias of every pair of tokens in every kind of window.

        Args:
            point_bias (Tensor): (P, heads), the bias at ``points``.
        Returns:
            Tensor: (K, heads, T query, T key).
        """
        heads, area, tiles = point_bias.shape[1], self.tile**2, self.index.shape[1]
        # (D, bb, bb, heads) -> (D, heads * bb * bb), and a last row for the hidden pairs
        tables = look_up(point_bias, self.tile_to_point).permute(0, 3, 1, 2).flatten(1)
        tables = torch.cat((tables, tables.new_full((1, tables.shape[1]), HIDDEN)))
        # (K, UU query, UU key, heads, bb, bb) -> (K, heads, T, T)
        bias = look_up(tables, self.index).view(-1, tiles, tiles, heads, area, area).permute(0, 3, 1, 4, 2, 5)
        return bias.reshape(-1, heads, tiles * area, tiles * area)


class WholeImagePositions(nn.Module):
    """Relative positions in the windows of whole images: constants, kept as buffers that follow the module.

    Args:
        window (int): Side of a window in tokens.
        shift (int): Cyclic shift in tokens, 0 for plain windows.
    """

    def __init__(self, window: int, shift: int) -> None:
        super().__init__()
        self.tile = gcd(window, shift)  # gcd(w, 0) = w: without a shift a window is one tile
        # Four windows are all kinds that there are if there is a shift, otherwise all windows are one kind
        tiles = (2 if shift else 1) * window // self.tile
        place = torch.arange(tiles)
        reach = window // self.tile - 1
        index = _index_tiles(place.view(1, -1, 1), place.view(1, 1, -1), window // self.tile, shift // self.tile, reach)
        tile_to_point, points = _index_points(self.tile, float(self.tile), reach)
        for name, value in dict(index=index, tile_to_point=tile_to_point, points=points).items():
            self.register_buffer(name, value, persistent=False)

    def forward(self) -> RelativePositions:
        """The positions, on the device of the module."""
        return RelativePositions(self.tile, self.index, self.tile_to_point, self.points, by_kind=True)


def compact_image_positions(
    height: int, width: int, window: int, shift: int, stride: int, mask: UniformMask
) -> RelativePositions:
    """Relative positions in the windows of compact images.

    Args:
        height (int): Token rows of the compact image.
        width (int): Token columns of the compact image.
        window (int): Side of a window in tokens.
        shift (int): Cyclic shift in tokens, 0 for plain windows.
        stride (int): Pixels per token in the full image, 4 at stage 1.
        mask (UniformMask): The units that were sampled.
    Returns:
        RelativePositions: K = N * windows.
    """
    padded = (-(-height // window) * window, -(-width // window) * window)
    tile, scale, reach = _compact_tiles(padded, window, shift, stride)
    rows, columns = _compact_places(mask.offsets, padded, tile, stride)
    index = _index_tiles(rows, columns, window // tile, shift // tile, reach)
    tile_to_point, points = _index_points(tile, scale, reach, mask.offsets.device)
    return RelativePositions(tile, index, tile_to_point, points, by_kind=False)


class WindowGrid(NamedTuple):
    """Windows over one token map. Every block of a stage with the same shift uses the same grid.

    Attributes:
        height (int): Token rows.
        width (int): Token columns.
        window (int): Side of a window in tokens.
        shift (int): Cyclic shift in tokens, 0 for plain windows.
        positions (RelativePositions): Relative positions of the tokens inside the windows.
    """

    height: int
    width: int
    window: int
    shift: int
    positions: RelativePositions

    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows, of the padded map."""
        return -(-self.height // self.window), -(-self.width // self.window)

    def partition(self, x: Tensor) -> Tensor:
        """Cut tokens into windows, padded with zeros to whole windows.

        Args:
            x (Tensor): (N, h, w, C).
        Returns:
            Tensor: (N * windows, T, C). Inside a window the tokens of a tile are neighbours.
        """
        rows, columns = self.counts()
        c, tile = x.shape[-1], self.positions.tile
        tiles = self.window // tile
        bottom, right = rows * self.window - self.height, columns * self.window - self.width
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        # (N, rows, U, b, columns, U, b, C) -> (N, rows, columns, U, U, b, b, C)
        x = x.view(-1, rows, tiles, tile, columns, tiles, tile, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(-1, self.window**2, c)

    def merge(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`partition`: (N * windows, T, C) -> (N, h, w, C)."""
        rows, columns = self.counts()
        c, tile = x.shape[-1], self.positions.tile
        tiles = self.window // tile
        # (N, rows, columns, U, U, b, b, C) -> (N, rows, U, b, columns, U, b, C)
        x = x.view(-1, rows, columns, tiles, tiles, tile, tile, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
        x = x.reshape(-1, rows * self.window, columns * self.window, c)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, : self.height, : self.width]

    def spread(self, bias: Tensor) -> Tensor:
        """From kinds of windows to windows.

        Args:
            bias (Tensor): (K, ...), of :meth:`RelativePositions.expand_bias`. The four kinds of a shifted whole image
                are windows in neither the last row nor the last column, in the last column, in the last row, in both.
        Returns:
            Tensor: (G, ...). G is 1 (all windows alike), the number of windows of an image, or N times that.
        """
        if not self.shift or not self.positions.by_kind:
            return bias
        rows, columns = self.counts()
        last_row = torch.arange(rows, device=bias.device) == rows - 1
        last_column = torch.arange(columns, device=bias.device) == columns - 1
        return bias[(last_row[:, None] * 2 + last_column * 1).flatten()]


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table, (R, C), (...) int64 -> (..., C), whose gradient is summed in a fixed order.

    Few rows are looked up by many pairs. On a GPU ``index_select`` would add their gradients one by one with atomic
    operations; an embedding sorts the indices first. On a CPU plain sums are faster.
    """
    if table.is_cuda:
        return F.embedding(index, table)
    return table.index_select(0, index.flatten()).view(*index.shape, -1)


def _index_tiles(rows: Tensor, columns: Tensor, side: int, shift: int, reach: int) -> Tensor:
    """The ``index`` of :class:`RelativePositions`.

    Args:
        rows (Tensor): (N or 1, tile rows, tile columns or 1) int64, row of each tile of the padded map.
        columns (Tensor): (N or 1, tile rows or 1, tile columns) int64, its column.
        side (int): Tiles along the side of a window.
        shift (int): Cyclic shift in tiles.
        reach (int): Largest difference of two tiles in a window along one axis.
    """
    rows, columns = torch.broadcast_tensors(rows, columns)
    span = 2 * reach + 1
    index: Tensor | int = 0
    for place, size in ((rows, span), (columns, 1)):
        place = _split(place.roll((-shift, -shift), (1, 2)), side)  # (N, windows, U * U)
        # key minus query: (N, windows, 1, UU) - (N, windows, UU, 1). Pairs farther apart than ``reach`` only meet
        # through the cyclic shift and are hidden below.
        difference = (place[:, :, None] - place[..., None]).clamp(-reach, reach)
        index = index + (difference + reach) * size
    if shift:
        # The cyclic shift moved the first ``shift`` rows and columns to the far end: tokens that were moved and
        # tokens that were not are no neighbours.
        moved_rows, moved_columns = [
            torch.arange(length, device=rows.device).roll(-shift) < shift for length in rows.shape[1:]
        ]
        region = _split((moved_rows[:, None] * 2 + moved_columns * 1)[None], side)
        index = index.masked_fill(region[:, :, None] != region[..., None], span * span)
    return index.flatten(0, 1)


def _index_points(tile: int, scale: float, reach: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """``tile_to_point`` and ``points`` of :class:`RelativePositions`."""
    # Distinct token differences are multiples of ``step``; half tokens only occur where a token covers 2x2 units
    # (stage 4 of a compact image).
    step = min(scale, 1.0)
    ratio = int(scale / step)
    far = reach * ratio + tile - 1
    axis = torch.arange(-far, far + 1, device=device)
    tiles = torch.arange(-reach, reach + 1, device=device) * ratio
    tokens = torch.arange(tile, device=device)
    # (2 reach + 1, b query, b key): index along one axis for each difference of tiles and pair of tokens
    along = tiles[:, None, None] + (tokens - tokens[:, None]) + far
    row = along[:, None, :, None, :, None]  # (rows, 1, bq, 1, bk, 1)
    column = along[None, :, None, :, None, :]  # (1, columns, 1, bq, 1, bk)
    pairs = row * len(axis) + column  # (rows, columns, bq, bq, bk, bk)
    points = torch.cartesian_prod(axis, axis) * step
    return pairs.reshape((2 * reach + 1) ** 2, tile**2, tile**2), points.float()


def _split(x: Tensor, side: int) -> Tensor:
    """(N, rows, columns) -> (N, windows, side * side)."""
    n, rows, columns = x.shape
    x = x.reshape(n, rows // side, side, columns // side, side).transpose(2, 3)
    return x.reshape(n, -1, side * side)


def _compact_tiles(padded: tuple[int, int], window: int, shift: int, stride: int) -> tuple[int, float, int]:
    """Side of a tile in tokens, full-image tokens per step of tile places, largest difference in steps."""
    tokens = max(UNIT // stride, 1)  # tokens along the side of a unit
    tile = gcd(gcd(tokens, window), shift)
    if stride > UNIT:
        # One token covers a square of ``stride / 16`` units and has the position of the top-left one, so places are
        # multiples of 16 / stride tokens.
        group = stride // UNIT
        return 1, 1 / group, 2 * group * (window - 1) + 1
    per_unit, side = tokens // tile, window // tile

    def place(i: int, offset: int) -> int:
        return (2 * (i // per_unit) + offset) * per_unit + i % per_unit

    starts = range(shift // tile, max(padded) // tile, side)
    return tile, float(tile), max(place(s + side - 1, 1) - place(s, 0) for s in starts)


def _compact_places(offsets: Tensor, padded: tuple[int, int], tile: int, stride: int) -> tuple[Tensor, Tensor]:
    """Full-image (rows, columns) of the tiles of a compact map, in steps, each (N, tiles, tiles)."""
    per_unit = max(UNIT // stride, 1) // tile
    group = max(stride // UNIT, 1)
    tiles = [side // tile for side in padded]
    # Padding continues the grid; a padded cell counts as sampled at its top left.
    cells = [-(-side * group // per_unit) for side in tiles]
    rows_missing, columns_missing = [max(cells[i] - offsets.shape[i + 1], 0) for i in (0, 1)]
    if rows_missing or columns_missing:
        offsets = F.pad(offsets, (0, columns_missing, 0, rows_missing))
    rows, columns = sampled_positions(offsets, per_unit)
    return tuple(x[:, ::group, ::group][:, : tiles[0], : tiles[1]] for x in (rows, columns))
