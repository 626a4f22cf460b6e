"""Units and cells of images as pure tensor functions (UM-MAE, arXiv 2205.10063, section 3).

Terms (the glossary of the README has them all):

* *unit*: a square of 16x16 px, the smallest area that is masked.
* *cell*: 2x2 units, 32x32 px. Uniform Sampling keeps one unit of each cell.
* *offset*: which unit of a cell is kept, ``0..3``; its row in the cell is ``offset // 2``, its column ``offset % 2``.
* *compact image*: the kept units with the gaps closed, an ordinary image of half the side.

Shapes: ``N`` images, ``gh x gw`` cells, ``h x w`` units, ``L = h * w`` of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = 16  # side of a unit in pixels
CELL = 2 * UNIT


def image_size_pair(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        ValueError: If a side is not positive.
    """
    pair = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(pair) != 2 or min(pair) <= 0:
        raise ValueError(f'img_size is {img_size}, but sides must be positive: one number, or height and width')
    return pair


def grid_shape(image_size: tuple[int, int]) -> tuple[int, int]:
    """Number of cells (rows, columns) of an image.

    Args:
        image_size (tuple[int, int]): Height and width in pixels.
    Raises:
        ValueError: If a side is not a positive multiple of 32.
    """
    rule = f'Uniform Sampling needs a positive multiple of {CELL} px (one cell of 2x2 units of {UNIT} px)'
    return _divide(image_size, CELL, rule)


def unit_shape(image_size: tuple[int, int], unit: int = UNIT) -> tuple[int, int]:
    """Number of units (rows, columns) of an image.

    Args:
        image_size (tuple[int, int]): Height and width in pixels.
        unit (int): Side of a unit in pixels. Default 16.
    Raises:
        ValueError: If a side is not a positive multiple of a unit.
    """
    return _divide(image_size, unit, f'masking needs a positive multiple of {unit} px (one unit or patch)')


def _divide(image_size: tuple[int, int], size: int, rule: str) -> tuple[int, int]:
    for name, side in (('height', image_size[0]), ('width', image_size[1])):
        if side <= 0 or side % size:
            raise ValueError(f'image {name} is {side} px, but {rule}: resize, crop or pad the image')
    return image_size[0] // size, image_size[1] // size


def images_to_units(images: Tensor, unit: int = UNIT) -> Tensor:
    """Cut images into units: (N, C, H, W) -> (N, H / 16, W / 16, 16 * 16 * C), pixels ordered (row, column, channel).

    Args:
        images (Tensor): (N, C, H, W).
        unit (int): Side of a unit in pixels. Default 16.
    Raises:
        ValueError: If a side is not a multiple of a unit.
    """
    n, c, height, width = images.shape
    h, w = unit_shape((height, width), unit)
    units = images.view(n, c, h, unit, w, unit)
    units = units.permute(0, 2, 4, 3, 5, 1)  # (N, C, h, 16, w, 16) -> (N, h, w, 16, 16, C)
    return units.reshape(n, h, w, unit * unit * c)


def units_to_images(units: Tensor, unit: int = UNIT) -> Tensor:
    """Inverse of :func:`images_to_units`: (N, h, w, 16 * 16 * C) -> (N, C, 16 h, 16 w)."""
    n, h, w, _ = units.shape
    units = units.view(n, h, w, unit, unit, -1).permute(0, 5, 1, 3, 2, 4)  # -> (N, C, h, 16, w, 16)
    return units.reshape(n, -1, h * unit, w * unit)


def cells_to_raster(cells: Tensor) -> Tensor:
    """Lay the four units of each cell out on the unit grid.

    Args:
        cells (Tensor): (N, gh, gw, 4, ...), units of a cell in the order of the offsets.
    Returns:
        Tensor: (N, 2 gh, 2 gw, ...), units in raster order.
    """
    n, gh, gw, _, *rest = cells.shape
    cells = cells.view(n, gh, gw, 2, 2, *rest).transpose(2, 3)  # (N, gh, gw, 2, 2) -> (N, gh, 2, gw, 2)
    return cells.reshape(n, 2 * gh, 2 * gw, *rest)


def take_units(units: Tensor, index: Tensor) -> Tensor:
    """Units by raster index: (N, L, ...), (N, K) int64 -> (N, K, ...)."""
    n, length, *rest = units.shape
    # Whole rows of one table, which is faster than to gather number by number
    return units.reshape(n * length, -1).index_select(0, _rows(index, length)).view(*index.shape, *rest)


def put_units(units: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Units with others in the place of some, by raster index: (N, L, D), (N, K) int64, (N, K, D) -> (N, L, D)."""
    n, length, dims = units.shape
    rows = _rows(index, length)
    return units.reshape(n * length, dims).index_copy(0, rows, values.reshape(-1, dims)).view(n, length, dims)


def _rows(index: Tensor, length: int) -> Tensor:
    """Index in each image -> index in all images' units, one after the other: (N, K) -> (N * K)."""
    return (index + length * torch.arange(len(index), device=index.device)[:, None]).flatten()


def enlarge(values: Tensor, times: int) -> Tensor:
    """Repeat each value of a map along both sides: (N, h, w) -> (N, h * times, w * times)."""
    return values.repeat_interleave(times, 1).repeat_interleave(times, 2)


def compact(images: Tensor, offsets: Tensor) -> Tensor:
    """Keep the sampled unit of each cell and close the gaps.

    Patch embedding is local to a unit, so embedding this image equals embedding the full image and then
    gathering, at a quarter of the work.

    Args:
        images (Tensor): (N, C, H, W), sides multiples of 32.
        offsets (Tensor): (N, H / 32, W / 32) int64 in 0..3.
    Returns:
        Tensor: (N, C, H / 2, W / 2).
    Raises:
        ValueError: If a side is not a multiple of 32.
    """
    grid_shape(tuple(images.shape[2:]))
    return compact_map(images, offsets, UNIT)


def compact_map(x: Tensor, offsets: Tensor, unit: int) -> Tensor:
    """:func:`compact` for any map with ``unit`` values along a unit's side, such as 4 for stride-4 tokens.

    Args:
        x (Tensor): (N, C, 2 * gh * unit, 2 * gw * unit); N may be expanded.
        offsets (Tensor): (N, gh, gw) int64 in 0..3.
        unit (int): Values along a unit's side.
    Returns:
        Tensor: (N, C, gh * unit, gw * unit).
    """
    n, c, height, width = x.shape
    gh, gw = height // (2 * unit), width // (2 * unit)
    # (N, C, gh, 2, u, gw, 2, u) -> (N, gh, gw, 2, 2, C, u, u), a view: only kept units are copied below
    units = x.view(n, c, gh, 2, unit, gw, 2, unit).permute(0, 2, 5, 3, 6, 1, 4, 7)
    image = torch.arange(n, device=x.device).view(n, 1, 1)
    row = torch.arange(gh, device=x.device).view(1, gh, 1)
    column = torch.arange(gw, device=x.device).view(1, 1, gw)
    kept = units[image, row, column, offsets // 2, offsets % 2]  # (N, gh, gw, C, u, u)
    return kept.permute(0, 3, 1, 4, 2, 5).reshape(n, c, height // 2, width // 2)
