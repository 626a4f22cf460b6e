"""Masks over units: Uniform Sampling, Random Sampling, Secondary Masking (arXiv 2205.10063, section 3; 2111.06377).

Two kinds: :class:`UniformMask` (one unit of each cell, which a pyramid needs) and :class:`UnitMask` (any units, drawn
by Random Sampling for plain MAE and SimMIM). :class:`Mask` is the protocol they share with the masks of LoMaR. A
*secondary mask* hides the content of kept units again: they stay in the encoder and are never in the loss.

Shapes: ``N`` images, ``gh x gw`` cells, ``h x w`` units, ``L = h * w`` of them, ``V`` kept. Masks are bool with
True = removed.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .units import cells_to_raster, grid_shape, take_units, unit_shape


class Mask(Protocol):
    """Protocol of all kinds of masks. In LoMaR a unit is a patch."""

    def unsampled(self) -> Tensor:
        """(N, L) bool in raster order, True = the encoder was not given the unit."""

    def hidden(self) -> Tensor:
        """(N, L) bool in raster order, True = the encoder saw no pixel of the unit: unsampled, or hidden again."""

    def select_targets(self, units: Tensor) -> Tensor:
        """The units in the loss: (N, h, w, ...) -> one row per predicted unit, in the order of the predictions."""

    def to(self, device: torch.device | str) -> Mask:
        """The mask on another device."""


class UniformMask(NamedTuple):
    """The units that Uniform Sampling kept and those that Secondary Masking hid, for a batch.

    Attributes:
        offsets (Tensor): (N, gh, gw) int64 in 0..3, the kept unit of each cell.
        secondary (Tensor): (N, gh, gw) bool, True = the kept unit's content is hidden.
    """

    offsets: Tensor
    secondary: Tensor

    def unsampled(self) -> Tensor:
        """(N, L) bool over units in raster order, True = not sampled (always 75 %)."""
        one_hot = torch.arange(4, device=self.offsets.device) == self.offsets[..., None]
        return ~cells_to_raster(one_hot).flatten(1)  # (N, gh, gw, 4) -> (N, 2gh, 2gw) -> (N, L)

    def hidden(self) -> Tensor:
        """(N, L) bool in raster order, True = the encoder saw no pixel of the unit."""
        one_hot = torch.arange(4, device=self.offsets.device) == self.offsets[..., None]
        return ~cells_to_raster(one_hot & ~self.secondary[..., None]).flatten(1)

    def kept(self) -> Tensor:
        """(N, gh * gw) int64, raster index of the kept unit of each cell, in the order of the cells."""
        return _raster_index(self.offsets[..., None]).flatten(1)

    def select_targets(self, units: Tensor) -> Tensor:
        """The units that were not sampled, in offset order: (N, h, w, ...) -> (N, gh, gw, 3, ...).

        Example: offset 1 leaves units 0, 2, 3. No shape depends on values, so nothing synchronises.
        """
        index = _raster_index(_unsampled_of_cells(self.offsets))
        return take_units(units.flatten(1, 2), index.flatten(1)).view(*index.shape, *units.shape[3:])

    def by_index(self) -> UnitMask:
        """The same mask with units named by their raster index."""
        _, gh, gw = self.offsets.shape
        unsampled = self.unsampled()
        order = unsampled.byte().argsort(dim=1, stable=True)  # kept units first, both in raster order
        kept, removed = order.split((gh * gw, 3 * gh * gw), dim=1)
        return UnitMask(kept, removed, (self.hidden() & ~unsampled).gather(1, kept), (2 * gh, 2 * gw))

    def to(self, device: torch.device | str) -> UniformMask:
        """The mask on another device."""
        return UniformMask(*(value.to(device) for value in self))


class UnitMask(NamedTuple):
    """The units that were kept, and those of them that were hidden again, by raster index.

    Attributes:
        kept (Tensor): (N, V) int64, raster indices of the kept units, ascending.
        removed (Tensor): (N, L - V) int64, those of the others, ascending.
        secondary (Tensor): (N, V) bool, True = the kept unit's content is hidden.
        grid (tuple[int, int]): Rows and columns of units.
    """

    kept: Tensor
    removed: Tensor
    secondary: Tensor
    grid: tuple[int, int]

    def unsampled(self) -> Tensor:
        """(N, L) bool over units in raster order, True = not kept."""
        return self._raster(torch.zeros_like(self.secondary))

    def hidden(self) -> Tensor:
        """(N, L) bool in raster order, True = the encoder saw no pixel of the unit."""
        return self._raster(self.secondary)

    def _raster(self, kept: Tensor) -> Tensor:
        hidden = torch.ones(len(kept), self.grid[0] * self.grid[1], dtype=torch.bool, device=kept.device)
        return hidden.scatter(1, self.kept, kept)

    def select_targets(self, units: Tensor) -> Tensor:
        """The units that were not kept: (N, h, w, ...) -> (N, L - V, ...)."""
        return take_units(units.flatten(1, 2), self.removed)

    def by_index(self) -> UnitMask:
        """The mask itself, so that code can take both kinds."""
        return self

    def to(self, device: torch.device | str) -> UnitMask:
        """The mask on another device."""
        return UnitMask(*(value.to(device) for value in self[:3]), self.grid)


def check_secondary_ratio(ratio: float) -> float:
    """Return ``ratio`` if it is a legal share of units for Secondary Masking.

    Raises:
        ValueError: If it lies outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f'secondary_ratio is {ratio}, but it must be in [0, 1): 0 turns Secondary Masking off')
    return ratio


def check_mask(mask: UniformMask | UnitMask, batch_size: int, image_size: tuple[int, int]) -> None:
    """Check a mask that a user passed in (this reads values, so it synchronises with the device).

    Args:
        mask (UniformMask | UnitMask): The mask.
        batch_size (int): Number of images.
        image_size (tuple[int, int]): Height and width in pixels.
    Raises:
        ValueError: If a shape, dtype or value does not fit.
    """
    if isinstance(mask, UnitMask):
        _check_unit_mask(mask, batch_size, image_size)
        return
    shape = (batch_size, *grid_shape(image_size))
    for name, value in zip(mask._fields, mask, strict=True):
        if tuple(value.shape) != shape:
            raise ValueError(
                f'mask.{name} has shape {tuple(value.shape)}, but {batch_size} images of '
                f'{image_size[0]}x{image_size[1]} px have cells {shape}'
            )
    if mask.offsets.dtype != torch.int64 or mask.secondary.dtype != torch.bool:
        raise ValueError(
            f'mask.offsets is {mask.offsets.dtype} and mask.secondary is {mask.secondary.dtype}, '
            'but they must be torch.int64 and torch.bool'
        )
    low, high = int(mask.offsets.min()), int(mask.offsets.max())
    if low < 0 or high > 3:
        raise ValueError(f'mask.offsets spans {low}..{high}, but an offset names one unit of a 2x2 cell: 0..3')


def _check_unit_mask(mask: UnitMask, batch_size: int, image_size: tuple[int, int]) -> None:
    grid = unit_shape(image_size)
    if tuple(mask.grid) != grid:
        raise ValueError(
            f'mask.grid is {tuple(mask.grid)}, but images of {image_size[0]}x{image_size[1]} px have {grid}'
        )
    shapes = {name: tuple(getattr(mask, name).shape) for name in ('kept', 'removed', 'secondary')}
    rows_fit = all(len(shape) == 2 and shape[0] == batch_size for shape in shapes.values())
    if not rows_fit or shapes['kept'] != shapes['secondary'] or shapes['kept'][1] + shapes['removed'][1] != prod(grid):
        raise ValueError(
            f'mask has the shapes {shapes}, but {batch_size} images of {prod(grid)} units need ({batch_size}, V) kept '
            'and secondary, and the other units in removed'
        )
    if mask.kept.dtype != torch.int64 or mask.removed.dtype != torch.int64 or mask.secondary.dtype != torch.bool:
        raise ValueError(
            f'mask.kept is {mask.kept.dtype}, mask.removed {mask.removed.dtype} and mask.secondary '
            f'{mask.secondary.dtype}, but they must be torch.int64, torch.int64 and torch.bool'
        )
    units = torch.cat((mask.kept, mask.removed), 1).sort(1).values
    if not torch.equal(units, torch.arange(prod(grid), device=units.device).expand_as(units)):
        raise ValueError('mask.kept and mask.removed must name each unit of the image once, by its raster index')


def draw_uniform_mask(
    batch_size: int,
    image_size: tuple[int, int],
    secondary_ratio: float = 0.25,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> UniformMask:
    """Draw Uniform Sampling and Secondary Masking for a batch, on the device, without synchronising.

    Of the ``V`` kept units of an image exactly ``V - int(V * (1 - secondary_ratio))`` are hidden again.

    Args:
        batch_size (int): Number of images, each masked independently.
        image_size (tuple[int, int]): Height and width in pixels, multiples of 32.
        secondary_ratio (float): Share of the kept units that is hidden again, in [0, 1). Default 0.25.
        device (torch.device | str, optional): Where the mask is drawn and lives.
        generator (torch.Generator, optional): Random generator of that device. Default: the global one.
    Returns:
        UniformMask: (N, gh, gw) offsets and secondary.
    Raises:
        ValueError: If a side is not a multiple of 32 or the ratio is outside [0, 1).
    """
    gh, gw = grid_shape(image_size)
    check_secondary_ratio(secondary_ratio)
    offsets = torch.randint(4, (batch_size, gh, gw), device=device, generator=generator)
    secondary = _draw_secondary(batch_size, gh * gw, secondary_ratio, device, generator)
    return UniformMask(offsets, secondary.view(batch_size, gh, gw))


def draw_random_mask(
    batch_size: int,
    image_size: tuple[int, int],
    mask_ratio: float = 0.75,
    secondary_ratio: float = 0.0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> UnitMask:
    """Draw Random Sampling (MAE, arXiv 2111.06377) for a batch, on the device, without synchronising.

    Exactly ``int(L * (1 - mask_ratio))`` units of each image are kept.

    Args:
        batch_size (int): Number of images, each masked independently.
        image_size (tuple[int, int]): Height and width in pixels, multiples of 16.
        mask_ratio (float): Share of the units that is removed, in (0, 1). Default 0.75.
        secondary_ratio (float): Share of the kept units that is hidden again, in [0, 1). Default 0.
        device (torch.device | str, optional): Where the mask is drawn and lives.
        generator (torch.Generator, optional): Random generator of that device. Default: the global one.
    Returns:
        UnitMask: The kept units, by raster index.
    Raises:
        ValueError: If a side is not a multiple of 16, a ratio is outside its range, or no unit would be kept.
    """
    grid = unit_shape(image_size)
    check_secondary_ratio(secondary_ratio)
    units = prod(grid)
    if not 0 < mask_ratio < 1 or int(units * (1 - mask_ratio)) < 1:
        raise ValueError(f'mask_ratio is {mask_ratio}, but it must be in (0, 1) and keep at least one of {units} units')
    kept = int(units * (1 - mask_ratio))
    order = torch.rand(batch_size, units, device=device, generator=generator).argsort(dim=1)
    kept, removed = [part.sort(dim=1).values for part in order.split((kept, units - kept), dim=1)]
    secondary = _draw_secondary(batch_size, kept.shape[1], secondary_ratio, device, generator)
    return UnitMask(kept, removed, secondary, grid)


def _draw_secondary(
    batch_size: int, kept: int, ratio: float, device: torch.device | str | None, generator: torch.Generator | None
) -> Tensor:
    """(N, V) bool with exactly ``V - int(V * (1 - ratio))`` True in each row."""
    # The rank of independent noise is a random permutation: the first ranks are an exact draw.
    noise = torch.rand(batch_size, kept, device=device, generator=generator)
    return noise.argsort(dim=1).argsort(dim=1) < kept - int(kept * (1 - ratio))


def _unsampled_of_cells(offsets: Tensor) -> Tensor:
    """Offsets of the units that were not sampled, in order: (N, gh, gw) -> (N, gh, gw, 3)."""
    order = torch.arange(3, device=offsets.device)
    return order + (order >= offsets[..., None])


def _raster_index(offsets: Tensor) -> Tensor:
    """Raster index of some units of each cell: their offsets, (N, gh, gw, k) -> (N, gh, gw, k)."""
    _, gh, gw, _ = offsets.shape
    row = 2 * torch.arange(gh, device=offsets.device).view(gh, 1, 1) + offsets // 2
    column = 2 * torch.arange(gw, device=offsets.device).view(gw, 1) + offsets % 2
    return row * 2 * gw + column
