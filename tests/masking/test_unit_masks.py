"""Masks over units as tensor functions, each against a slow loop that is easy to read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mm_ummae.masking import (
    Mask,
    UnitMask,
    check_mask,
    check_secondary_ratio,
    draw_random_mask,
    draw_uniform_mask,
)
from tests.builders import SAMPLINGS, all_indices, draw, draw_mask, draw_windows, raster_to_cells, slow_unit

SIZES = [(64, 64), (96, 160), (160, 32), (224, 224)]
all_sizes = pytest.mark.parametrize('size', SIZES, ids=str)
both_samplings = pytest.mark.parametrize('sampling', SAMPLINGS)


def draw_units(n: int, size: tuple[int, int], ratio: float = 0.25, mask_ratio: float = 0.75) -> UnitMask:
    return draw_random_mask(n, size, mask_ratio, ratio, generator=torch.Generator().manual_seed(0))


# Drawing


@all_sizes
@pytest.mark.parametrize('ratio', [0, 0.25, 0.99])
def test_uniform_draw_is_exact(size: tuple[int, int], ratio: float) -> None:
    """Every image keeps one unit of each cell and hides exactly V - int(V (1 - ratio)) of them."""
    mask = draw(3, size, ratio)
    height, width = size[0] // 16, size[1] // 16
    cells = height * width // 4
    assert mask.offsets.shape == mask.secondary.shape == (3, height // 2, width // 2)
    assert mask.offsets.dtype == torch.int64 and mask.secondary.dtype == torch.bool
    kept = raster_to_cells(~mask.unsampled().view(3, height, width))
    assert (kept.sum(-1) == 1).all()
    assert mask.secondary.flatten(1).sum(1).tolist() == [cells - int(cells * (1 - ratio))] * 3
    check_mask(mask, 3, size)  # what is drawn is what may be passed in


@pytest.mark.parametrize('size', [(64, 64), (48, 80), (224, 224)], ids=str)
@pytest.mark.parametrize(('mask_ratio', 'ratio'), [(0.75, 0), (0.75, 0.25), (0.9, 0.1)])
def test_random_draw_is_exact(size: tuple[int, int], mask_ratio: float, ratio: float) -> None:
    """Every image keeps V = int(L (1 - mask_ratio)) units, in order, and hides V - int(V (1 - ratio)) of them."""
    mask = draw_units(3, size, ratio, mask_ratio)
    units = size[0] * size[1] // 256
    count = int(units * (1 - mask_ratio))
    assert mask.grid == (size[0] // 16, size[1] // 16)
    assert mask.kept.shape == mask.secondary.shape == (3, count) and mask.removed.shape == (3, units - count)
    for kept, removed in zip(mask.kept.tolist(), mask.removed.tolist(), strict=True):
        assert kept == sorted(kept) and removed == sorted(removed)
        assert sorted(kept + removed) == list(range(units))
    assert mask.secondary.sum(1).tolist() == [count - int(count * (1 - ratio))] * 3
    check_mask(mask, 3, size)


def test_draws_of_the_papers() -> None:
    """Numbers written out. UM-MAE hides 16 of 64 units at 256 px, 13 of 49 at 224 px; MAE keeps 49 of 196."""
    assert draw_uniform_mask(1, (256, 256)).secondary.sum() == 16
    assert draw_uniform_mask(1, (224, 224)).secondary.sum() == 49 - 36
    mask = draw_random_mask(2, (224, 224))
    assert mask.kept.shape == (2, 49) and mask.removed.shape == (2, 147) and not mask.secondary.any()


@both_samplings
def test_draw_follows_its_generator(sampling: str) -> None:
    """The same seed draws the same mask, and a given generator leaves the global one alone."""

    def fields(**kwargs: torch.Generator) -> list[Tensor]:
        mask = SAMPLINGS[sampling](8, (128, 128), secondary_ratio=0.25, **kwargs)
        return [field for field in mask if isinstance(field, Tensor)]

    generator = torch.Generator().manual_seed(0)
    first, second = fields(generator=generator), fields(generator=generator)
    assert all(map(torch.equal, first, fields(generator=torch.Generator().manual_seed(0))))
    assert not any(map(torch.equal, first, second))
    for field in first:  # each image of a batch has its own mask
        assert len({tuple(image.flatten().tolist()) for image in field}) == 8
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fields(generator=generator)
    assert torch.equal(before, torch.random.get_rng_state())
    unseeded = fields()
    torch.manual_seed(5)
    assert all(map(torch.equal, unseeded, fields()))


def test_uniform_draw_is_uniform() -> None:
    """All offsets, and hiding, are equally likely in every cell (4000 images, 5 standard deviations)."""
    n = 4000
    mask = draw(n, (64, 96), 0.5)
    for offset in range(4):
        share = (mask.offsets == offset).double().mean(0)
        assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / n) ** 0.5
    assert (mask.secondary.double().mean(0) - 0.5).abs().max() < 5 * (0.25 / n) ** 0.5
    hidden_offsets = mask.offsets[mask.secondary]  # hiding is independent of the offset
    assert (hidden_offsets.double().mean() - 1.5).abs() < 5 * (1.25 / len(hidden_offsets)) ** 0.5


def test_random_draw_is_uniform() -> None:
    """Each unit, and each pair of neighbours, is kept and hidden equally often (4000 images, 5 deviations)."""
    n = 4000
    mask = draw_units(n, (48, 64), 1 / 3)  # 12 units, 3 kept, 1 hidden
    kept, seen = (~mask.unsampled()).double(), (~mask.hidden()).double()
    for sample, share in ((kept, 3 / 12), (seen, 2 / 12), (kept[:, 1:] * kept[:, :-1], 3 / 12 * 2 / 11)):
        assert (sample.mean(0) - share).abs().max() < 5 * (share * (1 - share) / n) ** 0.5


# The protocol of masks

MASKS: dict[str, tuple[Callable[[], Mask], tuple[int, int]]] = {  # two images, and their grid of units
    'UniformMask': (lambda: draw(2, (64, 96)), (4, 6)),
    'UnitMask': (lambda: draw_units(2, (48, 80)), (3, 5)),
    'WindowMask': (lambda: draw_windows(2, (9, 13), 5, 3, 0.5), (9, 13)),
}
all_masks = pytest.mark.parametrize('kind', MASKS)


@all_masks
def test_targets_are_units_that_were_not_visible(kind: str) -> None:
    """Targets are exactly the unsampled units, or in LoMaR the patches that are masked in a window."""
    make, (height, width) = MASKS[kind]
    mask = make()
    unsampled, hidden = mask.unsampled(), mask.hidden()
    assert unsampled.shape == hidden.shape == (2, height * width)
    assert (hidden | ~unsampled).all() and not hidden.all()  # an unsampled unit is hidden
    indices = torch.arange(2 * height * width).view(2, height, width)
    targets = mask.select_targets(indices)
    if kind == 'WindowMask':
        assert torch.equal(mask.select_targets(indices), mask.select(indices, mask.masked))
        for seen, predicted in zip(mask.select_visible(indices), targets, strict=True):
            assert not set(seen.tolist()) & set(predicted.tolist())  # in the same window
        assert set(targets.flatten().tolist()) == set(indices.flatten()[mask.predicted().flatten()].tolist())
    else:
        assert targets.flatten().sort().values.tolist() == indices.flatten()[unsampled.flatten()].tolist()
        assert (hidden & ~unsampled).any()  # hidden again, so neither seen nor a target


@all_masks
def test_to_moves_every_tensor(kind: str) -> None:
    mask = MASKS[kind][0]()
    moved, same = mask.to('meta'), mask.to('cpu')
    assert type(moved) is type(same) is type(mask)
    for field, there, here in zip(mask, moved, same, strict=True):
        if isinstance(field, Tensor):
            assert there.device.type == 'meta' and there.shape == field.shape
            assert torch.equal(here, field)
        else:
            assert field == there == here


@all_sizes
def test_uniform_mask_equals_loop(size: tuple[int, int]) -> None:
    """Over units in raster order, True = removed: hidden are the unsampled and the secondary units."""
    mask = draw(2, size)
    unsampled = torch.ones(2, size[0] // 16, size[1] // 16, dtype=torch.bool)
    hidden, kept = unsampled.clone(), [[], []]
    for n, row, column in all_indices(mask.offsets.shape):
        unit = slow_unit(int(mask.offsets[n, row, column]), row, column)
        unsampled[n][unit] = False
        hidden[n][unit] = mask.secondary[n, row, column]
        kept[n].append(unit[0] * (size[1] // 16) + unit[1])
    assert torch.equal(mask.unsampled(), unsampled.flatten(1))
    assert torch.equal(mask.hidden(), hidden.flatten(1))
    assert mask.kept().tolist() == kept


def test_unit_mask_equals_loop() -> None:
    mask = draw_units(2, (80, 64))
    unsampled = torch.ones(2, 20, dtype=torch.bool)
    hidden = unsampled.clone()
    for n in range(2):
        for unit, secondary in zip(mask.kept[n].tolist(), mask.secondary[n].tolist(), strict=True):
            unsampled[n, unit], hidden[n, unit] = False, secondary
    assert torch.equal(mask.unsampled(), unsampled)
    assert torch.equal(mask.hidden(), hidden)
    assert mask.secondary.any() and mask.by_index() is mask


@all_sizes
def test_by_index(size: tuple[int, int]) -> None:
    """A uniform mask by raster index has the same meaning, in ascending order, and is a legal mask."""
    mask = draw(3, size)
    units = mask.by_index()
    assert torch.equal(units.unsampled(), mask.unsampled())
    assert torch.equal(units.hidden(), mask.hidden())
    assert torch.equal(units.kept, mask.kept().sort(1).values)
    check_mask(units, 3, size)


@both_samplings
def test_order_of_targets(sampling: str) -> None:
    """All values of a unit; uniform masks by cell and in it by offset, others in raster order."""
    mask = draw_mask(sampling, 2, (64, 96))
    chosen = mask.select_targets(10 * torch.arange(24).view(1, 4, 6, 1).expand(2, 4, 6, 5) + torch.arange(5))
    expected = [row.nonzero().flatten().tolist() for row in mask.unsampled()]
    if sampling == 'uniform':
        assert chosen.shape == (2, 2, 3, 3, 5)
        expected = [sorted(row, key=lambda unit: (unit // 12, unit % 6 // 2, unit)) for row in expected]
    else:
        assert chosen.shape == (2, 18, 5)
    assert torch.equal(chosen.flatten(1, -2), 10 * torch.tensor(expected)[..., None] + torch.arange(5))


# Errors


@pytest.mark.parametrize('ratio', [-0.1, 1.0, float('nan')])
def test_secondary_ratio_is_in_range(ratio: float) -> None:
    for call in (
        check_secondary_ratio,
        lambda ratio: draw_uniform_mask(1, (64, 64), ratio),
        lambda ratio: draw_random_mask(1, (64, 64), secondary_ratio=ratio),
    ):
        with pytest.raises(ValueError, match=rf'secondary_ratio is {ratio}.*\[0, 1\)'):
            call(ratio)


def test_mask_ratio_is_in_range() -> None:
    for ratio in (0, 1, -0.5, float('nan'), 0.95):
        message = rf'mask_ratio is {ratio}, but it must be in \(0, 1\) and keep at least one of 16 units'
        with pytest.raises(ValueError, match=message):
            draw_random_mask(1, (64, 64), ratio)
    assert draw_random_mask(1, (64, 64), 0.9).kept.shape == (1, 1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(offsets=torch.zeros(2, 3, 4).long()), r'mask\.offsets has shape \(2, 3, 4\).*\(2, 2, 3\)'),
        (dict(secondary=torch.zeros(2, 3, 2).bool()), r'mask\.secondary has shape \(2, 3, 2\)'),
        (dict(offsets=torch.full((2, 2, 3), 4)), r'mask\.offsets spans 4\.\.4.*0\.\.3'),
        (dict(offsets=torch.arange(-1, 11).view(2, 2, 3).clamp(max=3)), r'mask\.offsets spans -1\.\.3'),
        (dict(offsets=torch.zeros(2, 2, 3).int()), r'mask\.offsets is torch\.int32.*torch\.int64'),
        (dict(secondary=torch.zeros(2, 2, 3)), r'mask\.secondary is torch\.float32.*torch\.bool'),
    ],
)
def test_check_uniform_mask(change: dict[str, Tensor], message: str) -> None:
    """A mask from outside is checked before it can index wrong memory, and the message names the field."""
    mask = draw(2, (64, 96))
    check_mask(mask, 2, (64, 96))
    with pytest.raises(ValueError, match=message):
        check_mask(mask._replace(**change), 2, (64, 96))
    with pytest.raises(ValueError, match='image height is 65 px'):
        check_mask(mask, 2, (65, 96))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(grid=(6, 4)), r'mask\.grid is \(6, 4\), but images of 64x96 px have \(4, 6\)'),
        (dict(kept=torch.zeros(1, 6).long()), r"'kept': \(1, 6\).*2 images of 24 units need \(2, V\)"),
        (dict(kept=torch.zeros(12).long()), r"'kept': \(12,\).*need \(2, V\)"),
        (dict(secondary=torch.zeros(2, 5).bool()), r"'secondary': \(2, 5\)"),
        (dict(removed=torch.zeros(2, 17).long()), r"'removed': \(2, 17\).*the other units in removed"),
        (dict(kept=torch.zeros(2, 6)), r'mask\.kept is torch\.float32.*torch\.int64'),
        (dict(removed=torch.zeros(2, 18).int()), r'mask\.removed torch\.int32'),
        (dict(secondary=torch.zeros(2, 6)), r'mask\.secondary torch\.float32.*torch\.bool'),
        (dict(kept=torch.zeros(2, 6).long()), 'must name each unit of the image once'),
        (dict(kept=torch.arange(19, 25).expand(2, 6)), 'must name each unit of the image once'),
    ],
)
def test_check_unit_mask(change: dict, message: str) -> None:
    """The same for masks by index: kept and removed must be a partition of the units."""
    mask = draw_units(2, (64, 96))
    mask = mask._replace(kept=torch.arange(18, 24).expand(2, 6), removed=torch.arange(18).expand(2, 18))
    check_mask(mask, 2, (64, 96))
    with pytest.raises(ValueError, match=message):
        check_mask(mask._replace(**change), 2, (64, 96))
    with pytest.raises(ValueError, match=r'image height is 40 px.*multiple of 16'):
        check_mask(mask, 2, (40, 96))


def test_a_mask_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r'mask\.offsets has shape \(2, 2, 3\), but 3 images'):
        check_mask(draw(2, (64, 96)), 3, (64, 96))
    with pytest.raises(ValueError, match=r"'kept': \(2, 3\).*3 images of 15 units"):
        check_mask(draw_units(2, (48, 80)), 3, (48, 80))
