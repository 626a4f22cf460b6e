"""Masking in local windows as pure tensor functions (LoMaR, arXiv 2206.00790, section 3).

Terms (the glossary of the README has them all):

* *patch*: what the network embeds as one token, 16x16 or 8x8 px; an image is a *grid* of patches.
* *local window*, here *window*: a square of ``w x w`` patches. Its *corner* is the row and column of its first patch.
* *sequence*: one image seen through one window, the input of the encoder. All images of a step are seen through the
  same windows.

Shapes: ``N`` images, ``W`` windows, ``B = N * W`` sequences, of ``w * w`` patches each, ``V`` of them visible and ``M``
masked.
"""

from __future__ import annotations

from math import isqrt, prod
from typing import NamedTuple

import torch
from torch import Tensor

PAIRINGS = ('all', 'published')


class WindowMask(NamedTuple):
    """The image, window and masked patches of each sequence.

    Attributes:
        image (Tensor): (B,) int64, index of the image.
        corner (Tensor): (B, 2) int64, row and column of the window's first patch.
        visible (Tensor): (B, V) int64 in 0..w*w-1, visible patches by their raster index in the window, ascending.
        masked (Tensor): (B, M) int64, the others, ascending.
        window_size (int): Side w of a window in patches.
        grid (tuple[int, int]): Rows and columns of patches of an image.
        batch_size (int): Number of images N.
    """

    image: Tensor
    corner: Tensor
    visible: Tensor
    masked: Tensor
    window_size: int
    grid: tuple[int, int]
    batch_size: int

    def patches(self, inside: Tensor | None = None) -> Tensor:
        """Raster indices on the image's grid: (B, K) int64, raster indices in the window -> (B, K); None: all w * w."""
        side = torch.arange(self.window_size, device=self.corner.device)
        rows, columns = (self.corner[:, :, None] + side).unbind(1)  # (B, w) each
        patches = (rows[:, :, None] * self.grid[1] + columns[:, None]).flatten(1)
        return patches if inside is None else patches.gather(1, inside)

    def select(self, units: Tensor, inside: Tensor | None = None) -> Tensor:
        """Patches of each window: (N, h, w, ...) -> (B, K, ...).

        Args:
            units (Tensor): Anything by patch of the images.
            inside (Tensor, optional): (B, K) int64, raster indices in the window. Default: all w * w patches.
        """
        return units.flatten(0, 2)[self._places(inside)]

    def select_visible(self, units: Tensor) -> Tensor:
        """The visible patches of each window: (N, h, w, ...) -> (B, V, ...)."""
        return self.select(units, self.visible)

    def select_targets(self, units: Tensor) -> Tensor:
        """The masked patches of each window: (N, h, w, ...) -> (B, M, ...)."""
        return self.select(units, self.masked)

    def is_masked(self) -> Tensor:
        """(B, w * w) bool, True = masked."""
        shape = len(self.masked), self.window_size**2
        return torch.zeros(shape, dtype=torch.bool, device=self.masked.device).scatter(1, self.masked, True)

    def complete(self, visible: Tensor, token: Tensor) -> Tensor:
        """Put a token in the place of each masked patch: (B, V, C), (1, 1, C) -> (B, w * w, C) in the token's dtype."""
        tokens = token.repeat(len(visible), self.window_size**2, 1)
        return tokens.scatter(1, self.visible[..., None].expand_as(visible), visible.to(token.dtype))

    def _places(self, inside: Tensor | None = None) -> Tensor:
        """Raster indices in the window -> indices into all patches of the batch, (B, K) int64."""
        return self.image[:, None] * prod(self.grid) + self.patches(inside)

    def unsampled(self) -> Tensor:
        """(N, L) bool in raster order, True = the patch is visible in none of the image's windows."""
        return ~self._marked(self.visible)

    hidden = unsampled  # there is no secondary mask

    def predicted(self) -> Tensor:
        """(N, L) bool in raster order, True = masked in at least one window of the image, so that it is predicted."""
        return self._marked(self.masked)

    def _marked(self, inside: Tensor) -> Tensor:
        marked = torch.zeros(self.batch_size * prod(self.grid), dtype=torch.bool, device=inside.device)
        return marked.index_fill(0, self._places(inside).flatten(), True).view(self.batch_size, -1)

    def merge(self, predicted: Tensor) -> Tensor:
        """Mean over the windows that mask a patch, zero where none does: (B, M, D) -> (N, h, w, D)."""
        values = predicted.new_zeros(self.batch_size * prod(self.grid), predicted.shape[-1] + 1)
        counted = torch.cat((predicted, torch.ones_like(predicted[..., :1])), -1).flatten(0, 1)
        values = values.index_add(0, self._places(self.masked).flatten(), counted)
        return (values[:, :-1] / values[:, -1:].clamp(min=1)).view(self.batch_size, *self.grid, -1)

    def by_image(self) -> Tensor:
        """(N, W) int64: the sequences of each image."""
        return self.image.argsort(stable=True).view(self.batch_size, -1)

    def to(self, device: torch.device | str) -> WindowMask:
        """The mask on another device."""
        return WindowMask(*(value.to(device) for value in self[:4]), *self[4:])


class WindowSampler(NamedTuple):
    """Settings of the windows and masks of a pre-training run.

    Attributes:
        window_size (int): Side of a window in patches.
        num_windows (int): Windows per step, shared by all images.
        mask_ratio (float): Share of the patches of a window that is masked, in (0, 1).
        pairing (str): Which image is seen through which window, see :func:`make_window_mask`.
    """

    window_size: int = 7
    num_windows: int = 4
    mask_ratio: float = 0.8
    pairing: str = 'all'

    def draw(
        self,
        batch_size: int,
        grid: tuple[int, int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> WindowMask:
        """Draw windows and masks for a batch, see :func:`draw_window_mask`."""
        window_size, num_windows, mask_ratio, pairing = self
        return draw_window_mask(
            batch_size, grid, window_size, num_windows, mask_ratio, pairing, device=device, generator=generator
        )


def check_windows(grid: tuple[int, int], window_size: int, num_windows: int, mask_ratio: float) -> int:
    """Check that windows can be drawn.

    Args:
        grid (tuple[int, int]): Rows and columns of patches.
        window_size (int): Side of a window in patches.
        num_windows (int): Number of windows.
        mask_ratio (float): Share of a window's patches that is masked.
    Returns:
        int: Number of masked patches of a window, ``int(window_size ** 2 * mask_ratio)``.
    Raises:
        ValueError: If a window is larger than the grid, there are more windows than rows or columns to start at, or
            none or all of the patches would be masked.
    """
    for name, value in (('window_size', window_size), ('num_windows', num_windows)):
        if not isinstance(value, int):
            raise ValueError(f'{name} is {value!r}, but it must be an integer')
    if not isinstance(mask_ratio, (int, float)):
        raise ValueError(f'mask_ratio is {mask_ratio!r}, but it must be a number')
    if not 1 <= window_size <= min(grid):
        raise ValueError(
            f'window_size is {window_size}, but it must be in 1..{min(grid)}: the image is a grid of '
            f'{grid[0]}x{grid[1]} patches'
        )
    places = min(grid) - window_size + 1
    if not 1 <= num_windows <= places:
        raise ValueError(
            f'num_windows is {num_windows}, but it must be in 1..{places}: a window of {window_size}x{window_size} '
            f'patches on a grid of {grid[0]}x{grid[1]} starts at one of {places} rows or columns, none of them twice'
        )
    patches = window_size**2
    masked = int(patches * mask_ratio) if 0 < mask_ratio < 1 else 0
    if not 0 < masked < patches:
        raise ValueError(
            f'mask_ratio is {mask_ratio}, but it must be in (0, 1), and mask at least one and not all of the {patches} '
            'patches of a window'
        )
    return masked


def check_pairing(pairing: str) -> str:
    """Return ``pairing`` if it is one of :data:`PAIRINGS`.

    Raises:
        ValueError: If it is not.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f'pairing is {pairing!r}, but it must be one of {", ".join(PAIRINGS)}')
    return pairing


def draw_window_mask(
    batch_size: int,
    grid: tuple[int, int],
    window_size: int = 7,
    num_windows: int = 4,
    mask_ratio: float = 0.8,
    pairing: str = 'all',
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> WindowMask:
    """Draw windows and masks for a batch, on the device, without synchronising.

    Rows and columns of the corners are drawn independently, each without repetition, and are shared by the batch.
    Exactly ``int(window_size ** 2 * mask_ratio)`` patches of each sequence are masked.

    Args:
        batch_size (int): Number of images.
        grid (tuple[int, int]): Rows and columns of patches of an image.
        window_size (int): Side of a window in patches. Default 7.
        num_windows (int): Windows of a step. Default 4.
        mask_ratio (float): Share of a window's patches that is masked, in (0, 1). Default 0.8.
        pairing (str): ``all`` shows each image through every window; ``published`` pairs them as the authors' code
            does, see :func:`make_window_mask`. Default ``all``.
        device (torch.device | str, optional): Where the mask is drawn and lives.
        generator (torch.Generator, optional): Random generator of that device. Default: the global one.
    Returns:
        WindowMask: B = batch_size * num_windows sequences.
    Raises:
        ValueError: If the windows do not fit the grid, the ratio masks nothing or everything, or the pairing is
            unknown.
    """
    check_windows(grid, window_size, num_windows, mask_ratio)
    random = dict(device=device, generator=generator)
    # A rank in random numbers, because randperm of a GPU's stream may synchronise
    corners = [torch.rand(side - window_size + 1, **random).argsort()[:num_windows] for side in grid]
    noise = torch.rand(batch_size, num_windows, window_size**2, **random)
    return make_window_mask(torch.stack(corners, 1), noise, grid, mask_ratio, pairing)


def make_window_mask(
    corners: Tensor, noise: Tensor, grid: tuple[int, int], mask_ratio: float = 0.8, pairing: str = 'all'
) -> WindowMask:
    """The mask that belongs to given corners and noise.

    Args:
        corners (Tensor): (W, 2) int64, row and column of each window. Whether windows lie inside the grid is not
            looked up, which would wait for the device; :func:`check_window_mask` does.
        noise (Tensor): (N, W, w * w); the patches with the smallest values are masked.
        grid (tuple[int, int]): Rows and columns of patches of an image.
        mask_ratio (float): Share of a window's patches that is masked, in (0, 1). Default 0.8.
        pairing (str): ``all``: sequence k shows image ``k // W`` through window ``k % W``. ``published``: image
            ``k % N`` through window ``k % W``, so that each image sees one window W times wherever W divides N.
            Default ``all``.
    Returns:
        WindowMask: B = N * W sequences.
    Raises:
        ValueError: If the windows do not fit the grid or are no squares, the ratio masks nothing or everything, or the
            pairing is unknown.
    """
    n, windows, patches = noise.shape
    size = isqrt(patches)
    if size**2 != patches:
        raise ValueError(f'noise has {patches} values a window, but a window is a square of patches')
    if tuple(corners.shape) != (windows, 2):
        raise ValueError(
            f'corners has shape {tuple(corners.shape)}, but noise is for {windows} windows: ({windows}, 2)'
        )
    count = check_windows(grid, size, windows, mask_ratio)
    sequence = torch.arange(n * windows, device=noise.device)
    image = sequence % n if check_pairing(pairing) == 'published' else sequence // windows
    order = noise.flatten(0, 1).argsort(dim=1)
    masked, visible = order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values
    return WindowMask(image, corners[sequence % windows], visible, masked, size, tuple(grid), n)


def check_window_mask(mask: WindowMask, batch_size: int, grid: tuple[int, int]) -> None:
    """Check a mask that a user passed in (this reads values, so it synchronises with the device).

    Args:
        mask (WindowMask): The mask.
        batch_size (int): Number of images.
        grid (tuple[int, int]): Their rows and columns of patches.
    Raises:
        ValueError: If a shape, dtype or value does not fit.
    """
    if not isinstance(mask, WindowMask):
        raise ValueError(f'mask is a {type(mask).__name__}, but LoMaR takes a WindowMask')
    if (mask.batch_size, tuple(mask.grid)) != (batch_size, tuple(grid)):
        raise ValueError(
            f'mask is for {mask.batch_size} images of {tuple(mask.grid)} patches, but {batch_size} images of '
            f'{tuple(grid)} patches came'
        )
    names, tensors = mask._fields[:4], mask[:4]
    shapes = {name: tuple(value.shape) for name, value in zip(names, tensors, strict=True)}
    sequences, patches = mask.image.numel(), mask.window_size**2
    fit = (
        shapes['image'] == (sequences,)
        and shapes['corner'] == (sequences, 2)
        and all(len(shapes[name]) == 2 and shapes[name][0] == sequences for name in ('visible', 'masked'))
        and shapes['visible'][1] + shapes['masked'][1] == patches
        and min(sequences, shapes['visible'][1], shapes['masked'][1]) > 0
    )
    if not fit or any(value.dtype != torch.int64 for value in tensors):
        kinds = [str(value.dtype) for value in tensors]
        raise ValueError(
            f'mask has the shapes {shapes} and types {", ".join(kinds)}, but B sequences of {patches} patches '
            'need (B,) image, (B, 2) corner, '
            '(B, V) visible and the other patches in masked, none of them empty and all torch.int64'
        )
    counts = (mask.image[:, None] == torch.arange(batch_size, device=mask.image.device)).sum(0).tolist()
    if len(set(counts)) != 1 or sum(counts) != sequences:
        raise ValueError(
            f'mask.image names the {batch_size} images {counts} times, but it must name each equally often'
        )
    last = torch.tensor(grid, device=mask.corner.device) - mask.window_size
    if bool((mask.corner < 0).any()) or bool((mask.corner > last).any()):
        raise ValueError(
            f'mask.corner must be in 0..{tuple(last.tolist())}, so that windows of {mask.window_size}x'
            f'{mask.window_size} patches lie inside {tuple(grid)}'
        )
    both = torch.cat((mask.visible, mask.masked), 1).sort(1).values
    if not torch.equal(both, torch.arange(patches, device=both.device).expand_as(both)):
        raise ValueError('mask.visible and mask.masked must name each patch of a window once, by its raster index')
