"""Units and cells of images, each against a slow loop that is easy to read."""

from __future__ import annotations

import pytest
import torch

from mm_ummae.masking import (
    cells_to_raster,
    compact,
    draw_random_mask,
    draw_uniform_mask,
    grid_shape,
    image_size_pair,
    images_to_units,
    put_units,
    take_units,
    unit_shape,
    units_to_images,
)
from tests.builders import all_indices, draw, seeded, slow_unit


def test_cells_and_raster() -> None:
    """Unit o of a cell lies at row o // 2 and column o % 2 in it."""
    cells = seeded(2, 3, 5, 4, 7)
    raster = cells_to_raster(cells)
    assert raster.shape == (2, 6, 10, 7)
    for n, row, column, offset in all_indices(cells.shape[:4]):
        assert torch.equal(raster[n][slow_unit(offset, row, column)], cells[n, row, column, offset])
    assert torch.equal(cells_to_raster(cells[..., 0]), raster[..., 0])  # also without trailing axes


def test_units_hold_pixels_by_row_column_channel() -> None:
    """The order of the published target, on which the last linear layer of released decoders depends."""
    images = seeded(2, 3, 64, 96)
    units = images_to_units(images)
    assert units.shape == (2, 4, 6, 768)
    for n, row, column in ((0, 0, 0), (1, 3, 5), (0, 2, 1)):
        unit = images[n, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        expected = [unit[channel, y, x].item() for y in range(16) for x in range(16) for channel in range(3)]
        assert units[n, row, column].tolist() == expected
    assert torch.equal(units_to_images(units), images)
    small = images_to_units(images[:, :1], 8)  # any number of channels and side
    assert small.shape == (2, 8, 12, 64) and torch.equal(units_to_images(small, 8), images[:, :1])


def test_take_and_put_units() -> None:
    """Put is the inverse of take; both have the gradient of indexing."""
    units, values = seeded(3, 8, 5).requires_grad_(), seeded(3, 4, 5, seed=1).requires_grad_()
    index = seeded(3, 8, seed=2).argsort(1)[:, :4]
    image = torch.arange(3)[:, None]
    taken, put = take_units(units, index), put_units(units, index, values)
    assert torch.equal(taken, units[image, index])
    assert torch.equal(take_units(units.unflatten(2, (5, 1)), index), taken[..., None])
    assert torch.equal(take_units(units[..., 0], index), taken[..., 0])
    assert torch.equal(put[image, index], values) and torch.equal(put_units(units, index, taken), units)
    others = torch.ones(3, 8).scatter(1, index, 0).bool()
    assert torch.equal(put[others], units[others])
    grad = seeded(3, 8, 5, seed=3)
    ours = torch.autograd.grad(put, (units, values), grad)
    assert torch.equal(ours[0], grad * others[..., None]) and torch.equal(ours[1], grad[image, index])
    token = torch.zeros(1, 1, 5).expand(3, 8, 5)  # as decoders have it: one row for all, which stays as it is
    assert torch.equal(put_units(token, index, values)[image, index], values) and not token.any()


def test_compact_equals_loop() -> None:
    """The compact image is the kept units side by side; every pixel of them gets a gradient of 1, others 0."""
    mask, images = draw(2, (96, 160)), seeded(2, 3, 96, 160).requires_grad_()
    expected, sampled = torch.empty(2, 3, 48, 80), torch.zeros(2, 3, 96, 160)
    for n, row, column in all_indices(mask.offsets.shape):
        y, x = (16 * i for i in slow_unit(int(mask.offsets[n, row, column]), row, column))
        expected[n, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = images[n, :, y : y + 16, x : x + 16]
        sampled[n, :, y : y + 16, x : x + 16] = 1
    ours = compact(images, mask.offsets)
    assert torch.equal(ours, expected)
    ours.sum().backward()
    assert torch.equal(images.grad, sampled)
    # The memory layout of the input plays no part
    assert torch.equal(compact(images.contiguous(memory_format=torch.channels_last), mask.offsets), expected)


@pytest.mark.parametrize(
    ('name', 'side', 'size'), [('height', 0, (0, 64)), ('height', 100, (100, 64)), ('width', 8, (64, 8))]
)
def test_sides_are_multiples(name: str, side: int, size: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, *size)
    for multiple, shape, *users in (
        (
            32,
            grid_shape,
            lambda size: draw_uniform_mask(1, size),
            lambda _: compact(images, torch.zeros(1, 1, 1).long()),
        ),
        (16, unit_shape, lambda size: draw_random_mask(1, size), lambda _: images_to_units(images)),
    ):
        assert shape((64, 160)) == (64 // multiple, 160 // multiple)
        for call in (shape, *users):
            with pytest.raises(ValueError, match=f'image {name} is {side} px.*multiple of {multiple} px'):
                call(size)


def test_image_size_pair() -> None:
    assert image_size_pair(64) == (64, 64) and image_size_pair([64, 96]) == (64, 96)
    for size in (0, (128, -32), (128, 128, 3)):
        with pytest.raises(ValueError, match='sides must be positive: one number, or height and width'):
            image_size_pair(size)
