"""Uniform Masking as tensor functions, each against a slow loop that is easy to read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_ummae.masking import (
    UniformMask,
    cells_to_raster,
    check_mask,
    check_secondary_ratio,
    compact,
    draw_uniform_mask,
    grid_shape,
    images_to_units,
    raster_to_cells,
    sampled_positions,
    scatter,
    take_sampled,
    take_unsampled,
    units_to_images,
)

SIZES = [(64, 64), (96, 160), (160, 32), (224, 224), (256, 256)]


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    return draw_uniform_mask(n, size, ratio, generator=torch.Generator().manual_seed(seed))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_unit(offset: int, row: int, column: int) -> tuple[int, int]:
    """Unit (row, column) in the image that cell (row, column) keeps."""
    return 2 * row + (offset >= 2), 2 * column + (offset in (1, 3))


# Drawing


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('ratio', [0, 0.1, 0.25, 0.5, 0.75, 0.99])
def test_draw_is_exact(size: tuple[int, int], ratio: float) -> None:
    """Every image keeps one unit of each cell and hides exactly V - int(V (1 - ratio)) of them."""
    mask = draw(3, size, ratio)
    height, width = size[0] // 16, size[1] // 16
    cells = height * width // 4
    assert mask.offsets.shape == mask.secondary.shape == (3, height // 2, width // 2)
    assert mask.offsets.dtype == torch.int64 and mask.secondary.dtype == torch.bool
    assert mask.offsets.min() >= 0 and mask.offsets.max() <= 3

    sampled = ~mask.unsampled().view(3, height, width)
    for image in sampled:
        for row in range(0, height, 2):
            for column in range(0, width, 2):
                assert image[row : row + 2, column : column + 2].sum() == 1
    assert (mask.unsampled().sum(1) == 3 * cells).all()
    assert mask.secondary.flatten(1).sum(1).tolist() == [cells - int(cells * (1 - ratio))] * 3
    check_mask(mask, 3, size)  # what is drawn is what may be passed in


def test_draw_hides_as_the_paper_does() -> None:
    """Numbers written out: 256 px has 64 sampled units and hides 16; 224 px has 49 and hides 13."""
    assert draw(1, (256, 256)).secondary.sum() == 16
    assert draw(1, (224, 224)).secondary.sum() == 49 - 36
    assert draw(1, (256, 256), 0).secondary.sum() == 0


def test_draw_follows_its_generator() -> None:
    """The same seed draws the same mask; the next draw and another seed draw another one."""
    first, again, other = draw(2, (128, 128)), draw(2, (128, 128)), draw(2, (128, 128), seed=1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    generator = torch.Generator().manual_seed(0)
    draws = [draw_uniform_mask(2, (128, 128), generator=generator) for _ in range(2)]
    assert all(map(torch.equal, first, draws[0]))
    assert not any(map(torch.equal, *draws))

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    draw(2, (128, 128))
    assert torch.equal(before, torch.random.get_rng_state())  # a given generator spares the global one
    drawn = draw_uniform_mask(2, (128, 128))
    torch.manual_seed(5)
    assert all(map(torch.equal, drawn, draw_uniform_mask(2, (128, 128))))


def test_images_of_a_batch_differ() -> None:
    """A mask shared by a batch would still be exact, but it is not what the paper does."""
    mask = draw(8, (128, 128))
    for field in mask:
        assert len({tuple(image.flatten().tolist()) for image in field}) == 8


def test_draw_is_uniform() -> None:
    """All offsets, and hiding, are equally likely in every cell (4000 images, 5 standard deviations)."""
    n = 4000
    mask = draw(n, (64, 96), 0.5)
    for offset in range(4):
        share = (mask.offsets == offset).double().mean(0)
        assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / n) ** 0.5
    assert (mask.secondary.double().mean(0) - 0.5).abs().max() < 5 * (0.25 / n) ** 0.5
    # and hiding does not look at the offset
    hidden_offsets = mask.offsets[mask.secondary]
    assert (hidden_offsets.double().mean() - 1.5).abs() < 5 * (1.25 / len(hidden_offsets)) ** 0.5


# Layout


@pytest.mark.parametrize('size', SIZES)
def test_unsampled_and_hidden(size: tuple[int, int]) -> None:
    """Over units in raster order, True = removed: hidden are the unsampled and the secondary units."""
    mask = draw(2, size)
    height, width = size[0] // 16, size[1] // 16
    unsampled = torch.ones(2, height, width, dtype=torch.bool)
    hidden = torch.ones(2, height, width, dtype=torch.bool)
    for n, row, column in torch.cartesian_prod(*map(torch.arange, mask.offsets.shape)).tolist():
        unit = slow_unit(int(mask.offsets[n, row, column]), row, column)
        unsampled[n][unit] = False
        hidden[n][unit] = mask.secondary[n, row, column]
    assert torch.equal(mask.unsampled(), unsampled.flatten(1))
    assert torch.equal(mask.hidden(), hidden.flatten(1))


def test_cells_and_raster() -> None:
    """Unit o of a cell lies at row o // 2 and column o % 2 in it, and the two layouts are inverse."""
    cells = seeded(2, 3, 5, 4, 7)
    raster = cells_to_raster(cells)
    assert raster.shape == (2, 6, 10, 7)
    for n, row, column, offset in torch.cartesian_prod(*map(torch.arange, cells.shape[:4])).tolist():
        unit = slow_unit(offset, row, column)
        assert torch.equal(raster[n][unit], cells[n, row, column, offset])
    assert torch.equal(raster_to_cells(raster), cells)
    plain = seeded(2, 4, 6)  # also without trailing axes
    assert torch.equal(cells_to_raster(raster_to_cells(plain)), plain)


def test_units_hold_pixels_by_row_column_channel() -> None:
    """The order of the published target, on which the released decoders' last linear layer depends."""
    images = seeded(2, 3, 64, 96)
    units = images_to_units(images)
    assert units.shape == (2, 4, 6, 768)
    for n, row, column in ((0, 0, 0), (1, 3, 5), (0, 2, 1), (1, 1, 4)):
        expected = [
            images[n, channel, 16 * row + y, 16 * column + x].item()
            for y in range(16)
            for x in range(16)
            for channel in range(3)
        ]
        assert units[n, row, column].tolist() == expected
    assert torch.equal(units_to_images(units), images)
    assert torch.equal(images_to_units(units_to_images(units)), units)
    grey = images[:, :1]  # any number of channels
    assert torch.equal(units_to_images(images_to_units(grey)), grey)


# Taking


@pytest.mark.parametrize('rest', [(), (3,), (2, 5)])
def test_take(rest: tuple[int, ...]) -> None:
    """One unit of a cell is sampled, the other three stay in the order of their offsets."""
    mask = draw(2, (96, 128))
    cells = seeded(*mask.offsets.shape, 4, *rest)
    sampled, unsampled = take_sampled(cells, mask.offsets), take_unsampled(cells, mask.offsets)
    assert sampled.shape == (*mask.offsets.shape, *rest)
    assert unsampled.shape == (*mask.offsets.shape, 3, *rest)
    for index in torch.cartesian_prod(*map(torch.arange, mask.offsets.shape)).tolist():
        cell, offset = cells[tuple(index)], int(mask.offsets[tuple(index)])
        assert torch.equal(sampled[tuple(index)], cell[offset])
        others = torch.stack([cell[i] for i in range(4) if i != offset])
        assert torch.equal(unsampled[tuple(index)], others)


@pytest.mark.parametrize('size', [(64, 64), (96, 160)])
def test_compact(size: tuple[int, int]) -> None:
    """The compact image is the kept units side by side, for any number of channels."""
    offsets = draw(2, size).offsets
    for channels in (1, 3):
        images = seeded(2, channels, *size)
        expected = torch.empty(2, channels, size[0] // 2, size[1] // 2)
        for n, row, column in torch.cartesian_prod(*map(torch.arange, offsets.shape)).tolist():
            y, x = (16 * i for i in slow_unit(int(offsets[n, row, column]), row, column))
            target = expected[n, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            target[:] = images[n, :, y : y + 16, x : x + 16]
        assert torch.equal(compact(images, offsets), expected)
    # memory layout of the input plays no part
    assert torch.equal(compact(images.contiguous(memory_format=torch.channels_last), offsets), expected)


@pytest.mark.parametrize('fill', [0.0, -7.5])
def test_compact_then_scatter(fill: float) -> None:
    """Scatter brings sampled pixels back to their places and fills every other one."""
    images, mask = seeded(2, 3, 96, 128), draw(2, (96, 128))
    pixels = mask.unsampled().view(2, 1, 6, 8).repeat_interleave(16, 2).repeat_interleave(16, 3)
    back = scatter(compact(images, mask.offsets), mask.offsets, fill)
    assert torch.equal(back, images.masked_fill(pixels, fill))
    assert torch.equal(compact(back, mask.offsets), compact(images, mask.offsets))


def test_gradient_of_compact_reaches_sampled_pixels_once() -> None:
    """No pixel is used twice or lost: the gradient of the sum is 1 on sampled pixels and 0 elsewhere."""
    images, mask = seeded(2, 3, 64, 96).requires_grad_(), draw(2, (64, 96))
    compact(images, mask.offsets).sum().backward()
    ones = torch.ones(2, 3, 32, 48)
    assert torch.equal(images.grad, scatter(ones, mask.offsets))


@pytest.mark.parametrize('tokens', [1, 2, 4])
def test_sampled_positions(tokens: int) -> None:
    """Each token of the compact image knows where it stood in the full one."""
    offsets = draw(2, (96, 160)).offsets
    rows, columns = sampled_positions(offsets, tokens)
    assert rows.shape == columns.shape == (2, 3 * tokens, 5 * tokens)
    for n in range(2):
        for i in range(3 * tokens):
            for j in range(5 * tokens):
                cell = i // tokens, j // tokens
                unit = slow_unit(int(offsets[n][cell]), *cell)
                assert rows[n, i, j] == unit[0] * tokens + i % tokens
                assert columns[n, i, j] == unit[1] * tokens + j % tokens


def test_positions_agree_with_compact() -> None:
    """Positions and pixels are moved by different code and must tell the same story."""
    offsets = draw(2, (96, 160)).offsets
    coordinates = torch.stack(torch.meshgrid(torch.arange(96), torch.arange(160), indexing='ij')).float()
    kept = compact(coordinates.expand(2, 2, 96, 160), offsets)[:, :, ::4, ::4] / 4  # a token is 4 pixels wide
    assert torch.equal(kept, torch.stack(sampled_positions(offsets, 4), 1).float())


# Errors


@pytest.mark.parametrize('side', [0, -32, 16, 48, 100])
def test_sides_are_multiples_of_a_cell(side: int) -> None:
    for name, size in (('height', (side, 64)), ('width', (64, side))):
        with pytest.raises(ValueError, match=f'image {name} is {side} px.*multiple of 32'):
            grid_shape(size)
        with pytest.raises(ValueError, match=f'image {name} is {side} px'):
            draw_uniform_mask(1, size)
    assert grid_shape((64, 160)) == (2, 5)


def test_image_functions_check_sides() -> None:
    images, offsets = torch.zeros(1, 3, 64, 80), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert images_to_units(images).shape[1:3] == (4, 5)
    with pytest.raises(ValueError, match=r'image width is 72 px.*multiple of 16'):
        images_to_units(images[..., :72])
    with pytest.raises(ValueError, match='image width is 80 px'):
        compact(images, offsets)


@pytest.mark.parametrize('ratio', [-0.1, 1.0, 1.5, float('nan')])
def test_ratio_is_in_range(ratio: float) -> None:
    for call in (check_secondary_ratio, lambda ratio: draw_uniform_mask(1, (64, 64), ratio)):
        with pytest.raises(ValueError, match=rf'secondary_ratio is {ratio}.*\[0, 1\)'):
            call(ratio)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(offsets=torch.zeros(2, 3, 4).long()), r'mask\.offsets has shape \(2, 3, 4\).*\(2, 2, 3\)'),
        (dict(offsets=torch.zeros(1, 2, 3).long()), r'mask\.offsets has shape \(1, 2, 3\)'),
        (dict(offsets=torch.zeros(2, 6).long()), r'mask\.offsets has shape \(2, 6\)'),
        (dict(secondary=torch.zeros(2, 3, 2).bool()), r'mask\.secondary has shape \(2, 3, 2\)'),
        (dict(offsets=torch.full((2, 2, 3), 4)), r'mask\.offsets spans 4\.\.4.*0\.\.3'),
        (dict(offsets=torch.arange(-1, 11).view(2, 2, 3).clamp(max=3)), r'mask\.offsets spans -1\.\.3'),
        (dict(offsets=torch.zeros(2, 2, 3)), r'mask\.offsets is torch\.float32'),
        (dict(offsets=torch.zeros(2, 2, 3).int()), r'mask\.offsets is torch\.int32.*torch\.int64'),
        (dict(secondary=torch.zeros(2, 2, 3)), r'mask\.secondary is torch\.float32.*torch\.bool'),
    ],
)
def test_check_mask(change: dict[str, Tensor], message: str) -> None:
    """A mask from outside is checked before it can index wrong memory, and the message names the field."""
    mask = draw(2, (64, 96))
    check_mask(mask, 2, (64, 96))
    with pytest.raises(ValueError, match=message):
        check_mask(mask._replace(**change), 2, (64, 96))


def test_check_mask_checks_the_image() -> None:
    with pytest.raises(ValueError, match='image height is 65 px'):
        check_mask(draw(2, (64, 96)), 2, (65, 96))
