"""Masks as tensor functions, each against a slow loop that is easy to read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mm_ummae.masking import UniformMask, UnitMask, cells_to_raster, check_mask, check_secondary_ratio, compact, compact_map, draw_random_mask, draw_uniform_mask, grid_shape, images_to_units, raster_to_cells, sampled_positions, scatter, take_sampled, take_units, take_unsampled, unit_shape, units_to_images

SIZES = [(64, 64), (96, 160), (160, 32), (224, 224), (256, 256)]
both_draws = pytest.mark.parametrize('drawn', [draw_uniform_mask, draw_random_mask], ids=['uniform', 'random'])


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    return draw_uniform_mask(n, size, ratio, generator=torch.Generator().manual_seed(seed))


def draw_units(n: int, size: tuple[int, int], ratio: float = 0.25, mask_ratio: float = 0.75) -> UnitMask:
    return draw_random_mask(n, size, mask_ratio, ratio, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize('size', [(64, 64), (48, 80), (224, 224), (16, 400)], ids=str)
@pytest.mark.parametrize(('mask_ratio', 'ratio'), [(0.75, 0), (0.75, 0.25), (0.6, 0.5), (0.9, 0.1)])
def test_random_draw_is_exact(size: tuple[int, int], mask_ratio: float, ratio: float) -> None:
    """Every image keeps V = int(L (1 - mask_ratio)) units, in order, and hides V - int(V (1 - ratio)) of them."""
    mask = draw_units(3, size, ratio, mask_ratio)
    units = size[0] * size[1] // 256
    count = int(units * (1 - mask_ratio))
    assert mask.grid == (size[0] // 16, size[1] // 16)
    assert mask.kept.shape == mask.secondary.shape == (3, count) and mask.removed.shape == (3, units - count)
    for kept, removed in zip(mask.kept.tolist(), mask.removed.tolist(), strict=True):
        assert kept == sorted(kept) and removed == sorted(removed)
        assert set(kept) | set(removed) == set(range(units)) and len(kept) + len(removed) == units
    assert mask.secondary.sum(1).tolist() == [count - int(count * (1 - ratio))] * 3
    check_mask(mask, 3, size)


def test_random_draw_keeps_a_quarter() -> None:
    """Plain MAE, numbers written out: 49 of 196 units at 224 px, and nothing is hidden again."""
    mask = draw_random_mask(2, (224, 224))
    assert mask.kept.shape == (2, 49) and mask.removed.shape == (2, 147)
    assert not mask.secondary.any() and torch.equal(mask.hidden(), mask.unsampled())


@both_draws
def test_draw_follows_its_generator(drawn: Callable) -> None:
    """The same seed draws the same mask; the next draw and another seed draw another one."""

    def fields(seed: int | None = None, generator: torch.Generator | None = None) -> list[Tensor]:
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
        return [x for x in drawn(2, (128, 128), secondary_ratio=0.25, generator=generator) if isinstance(x, Tensor)]

    first, again, other = fields(0), fields(0), fields(1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    generator = torch.Generator().manual_seed(0)
    draws = [fields(generator=generator) for _ in range(2)]
    assert all(map(torch.equal, first, draws[0]))
    assert not any(map(torch.equal, *draws))

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fields(0)
    assert torch.equal(before, torch.random.get_rng_state())  # a given generator spares the global one
    unseeded = fields()
    torch.manual_seed(5)
    assert all(map(torch.equal, unseeded, fields()))


@both_draws
def test_images_of_a_batch_differ(drawn: Callable) -> None:
    """A mask shared by a batch would still be exact, but it is not what the paper does."""
    mask = drawn(8, (128, 128), secondary_ratio=0.25, generator=torch.Generator().manual_seed(0))
    for field in mask:
        if isinstance(field, Tensor):
            assert len({tuple(image.flatten().tolist()) for image in field}) == 8


def test_random_draw_is_uniform() -> None:
    """Each unit, and each pair of neighbours, is kept and hidden equally often (4000 images, 5 standard deviations)."""
    n = 4000
    mask = draw_units(n, (48, 64), 1 / 3)  # 12 units, 3 kept, 1 hidden
    kept = (~mask.unsampled()).double()
    seen = (~mask.hidden()).double()
    for sample, share in ((kept, 3 / 12), (seen, 2 / 12), (kept[:, 1:] * kept[:, :-1], 3 / 12 * 2 / 11)):
        assert (sample.mean(0) - share).abs().max() < 5 * (share * (1 - share) / n) ** 0.5


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


@pytest.mark.parametrize('size', [(64, 64), (48, 80), (80, 16)], ids=str)
def test_unsampled_and_hidden_of_units(size: tuple[int, int]) -> None:
    mask = draw_units(2, size)
    units = size[0] * size[1] // 256
    unsampled, hidden = torch.ones(2, units, dtype=torch.bool), torch.ones(2, units, dtype=torch.bool)
    for n in range(2):
        for unit, secondary in zip(mask.kept[n].tolist(), mask.secondary[n].tolist(), strict=True):
            unsampled[n, unit], hidden[n, unit] = False, secondary
    assert torch.equal(mask.unsampled(), unsampled)
    assert torch.equal(mask.hidden(), hidden)
    assert mask.secondary.any()
    assert mask.by_index() is mask


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_by_index(size: tuple[int, int]) -> None:
    """A uniform mask by raster index says the same, in ascending order, and is a legal mask."""
    mask = draw(3, size)
    units = mask.by_index()
    assert torch.equal(units.unsampled(), mask.unsampled())
    assert torch.equal(units.hidden(), mask.hidden())
    for index in (units.kept, units.removed):
        assert (index.diff(dim=1) > 0).all()
    check_mask(units, 3, size)


@both_draws
def test_select_targets(drawn: Callable) -> None:
    """Exactly the units that were not kept, with all that a unit holds, in the order the docstring states."""
    mask = drawn(2, (64, 96), generator=torch.Generator().manual_seed(0))
    units = 10 * torch.arange(24).view(1, 4, 6, 1).expand(2, 4, 6, 5) + torch.arange(5)
    chosen = mask.select_targets(units)
    expected = [row.nonzero().flatten().tolist() for row in mask.unsampled()]
    if isinstance(mask, UniformMask):  # by cell, in it by offset
        assert chosen.shape == (2, 2, 3, 3, 5)
        expected = [sorted(row, key=lambda unit: (unit // 12, unit % 6 // 2, unit)) for row in expected]
    else:  # in raster order
        assert chosen.shape == (2, 18, 5)
    assert torch.equal(chosen.flatten(1, -2), 10 * torch.tensor(expected)[..., None] + torch.arange(5))


@both_draws
def test_to(drawn: Callable) -> None:
    """Every tensor of a mask moves, and the mask stays what it is."""
    mask = drawn(2, (64, 96))
    moved = mask.to('meta')
    assert type(moved) is type(mask)
    for name, field in zip(mask._fields, mask, strict=True):
        if isinstance(field, Tensor):
            assert getattr(moved, name).device.type == 'meta' and getattr(moved, name).shape == field.shape
            assert torch.equal(getattr(mask.to('cpu'), name), field)
        else:
            assert getattr(moved, name) == field


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


@pytest.mark.parametrize('rest', [(), (3,), (2, 5)])
def test_take_units(rest: tuple[int, ...]) -> None:
    units, index = seeded(2, 7, *rest), torch.tensor([[6, 0, 3], [1, 1, 2]])
    taken = take_units(units, index)
    assert taken.shape == (2, 3, *rest)
    for n, k in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        assert torch.equal(taken[n, k], units[n, int(index[n, k])])


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
    # the same on the map of tokens, here shared by the batch
    tokens = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(40), indexing='ij'))
    kept = compact_map(tokens.expand(2, -1, -1, -1), offsets, 4)
    assert torch.equal(kept, torch.stack(sampled_positions(offsets, 4), 1))


# Errors


@pytest.mark.parametrize('side', [0, -32, 16, 48, 100])
def test_sides_are_multiples_of_a_cell(side: int) -> None:
    for name, size in (('height', (side, 64)), ('width', (64, side))):
        with pytest.raises(ValueError, match=f'image {name} is {side} px.*multiple of 32'):
            grid_shape(size)
        with pytest.raises(ValueError, match=f'image {name} is {side} px'):
            draw_uniform_mask(1, size)
    assert grid_shape((64, 160)) == (2, 5)


@pytest.mark.parametrize('side', [0, -16, 8, 40, 100])
def test_sides_are_multiples_of_a_unit(side: int) -> None:
    """Random sampling needs no cells."""
    for name, size in (('height', (side, 48)), ('width', (48, side))):
        for call in (unit_shape, lambda size: draw_random_mask(1, size)):
            with pytest.raises(ValueError, match=f'image {name} is {side} px.*multiple of 16 px'):
                call(size)
    assert unit_shape((48, 160)) == (3, 10)


def test_image_functions_check_sides() -> None:
    images, offsets = torch.zeros(1, 3, 64, 80), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert images_to_units(images).shape[1:3] == (4, 5)
    with pytest.raises(ValueError, match=r'image width is 72 px.*multiple of 16'):
        images_to_units(images[..., :72])
    with pytest.raises(ValueError, match='image width is 80 px'):
        compact(images, offsets)


@pytest.mark.parametrize('ratio', [-0.1, 1.0, 1.5, float('nan')])
def test_ratio_is_in_range(ratio: float) -> None:
    for call in (
        check_secondary_ratio,
        lambda ratio: draw_uniform_mask(1, (64, 64), ratio),
        lambda ratio: draw_random_mask(1, (64, 64), secondary_ratio=ratio),
    ):
        with pytest.raises(ValueError, match=rf'secondary_ratio is {ratio}.*\[0, 1\)'):
            call(ratio)


@pytest.mark.parametrize('ratio', [0, 1, -0.5, 1.5, float('nan')])
def test_mask_ratio_is_in_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf'mask_ratio is {ratio}, but it must be in \(0, 1\)'):
        draw_random_mask(1, (64, 64), ratio)


def test_a_unit_must_be_left() -> None:
    with pytest.raises(ValueError, match=r'mask_ratio is 0\.95.*keep at least one of 16 units'):
        draw_random_mask(1, (64, 64), 0.95)
    assert draw_random_mask(1, (64, 64), 0.9).kept.shape == (1, 1)


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


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(grid=(6, 4)), r'mask\.grid is \(6, 4\), but images of 64x96 px have \(4, 6\)'),
        (dict(kept=torch.zeros(1, 6).long()), r"'kept': \(1, 6\).*2 images of 24 units need \(2, V\)"),
        (dict(kept=torch.zeros(12).long()), r"'kept': \(12,\).*need \(2, V\)"),
        (dict(secondary=torch.zeros(2, 5).bool()), r"'secondary': \(2, 5\)"),
        (dict(removed=torch.zeros(2, 17).long()), r"'removed': \(2, 17\).*the other units in removed"),
        (dict(removed=torch.zeros(1, 18).long()), r"'removed': \(1, 18\)"),
        (dict(kept=torch.zeros(2, 6)), r'mask\.kept is torch\.float32.*torch\.int64'),
        (dict(removed=torch.zeros(2, 18).int()), r'mask\.removed torch\.int32'),
        (dict(secondary=torch.zeros(2, 6)), r'mask\.secondary torch\.float32.*torch\.bool'),
        (dict(kept=torch.zeros(2, 6).long()), 'must name each unit of the image once'),
        (dict(kept=torch.arange(18, 24).expand(2, 6) - 24), 'must name each unit of the image once'),
        (dict(kept=torch.arange(19, 25).expand(2, 6)), 'must name each unit of the image once'),
    ],
)
def test_check_unit_mask(change: dict, message: str) -> None:
    """The same for masks by index: what is no partition of the units is refused."""
    mask = draw_units(2, (64, 96))._replace(
        kept=torch.arange(18, 24).expand(2, 6), removed=torch.arange(18).expand(2, 18)
    )
    check_mask(mask, 2, (64, 96))
    with pytest.raises(ValueError, match=message):
        check_mask(mask._replace(**change), 2, (64, 96))


def test_check_unit_mask_checks_the_image() -> None:
    mask = draw_units(2, (48, 80))
    check_mask(mask, 2, (48, 80))  # no whole number of cells
    with pytest.raises(ValueError, match=r"'kept': \(2, 3\).*3 images of 15 units"):
        check_mask(mask, 3, (48, 80))
    with pytest.raises(ValueError, match=r'image height is 40 px.*multiple of 16'):
        check_mask(mask, 2, (40, 80))
