"""Masks over units as tensor functions, each against a slow loop that is easy to read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mm_ummae.masking import Mask, UniformMask, UnitMask, check_mask, draw_random_mask, draw_uniform_mask
from tests.builders import SAMPLINGS, all_indices, draw, draw_mask, draw_windows, slow_unit

both_samplings = pytest.mark.parametrize('sampling', SAMPLINGS)


# Drawing


@pytest.mark.parametrize(
    ('size', 'ratio', 'hidden'),
    [((224, 224), 0.25, 13), ((256, 256), 0.25, 16), ((64, 64), 0, 0), ((96, 160), 0.99, 15), ((160, 32), 0.99, 5)],
)
def test_uniform_draw_is_exact(size: tuple[int, int], ratio: float, hidden: int) -> None:
    """Every image keeps one unit of each cell and hides V - int(V (1 - ratio)) of them, by default as the paper."""
    mask = draw_uniform_mask(3, size, **({} if ratio == 0.25 else dict(secondary_ratio=ratio)))
    check_mask(mask, 3, size)  # one offset in 0..3 a cell
    assert mask.secondary.flatten(1).sum(1).tolist() == [hidden] * 3


@pytest.mark.parametrize(
    ('size', 'ratios', 'kept', 'hidden'),
    [
        ((224, 224), {}, 49, 0),  # MAE
        ((48, 80), dict(secondary_ratio=0.25), 3, 1),
        ((64, 64), dict(mask_ratio=0.9, secondary_ratio=0.1), 1, 1),
        ((224, 224), dict(mask_ratio=0.9, secondary_ratio=0.1), 19, 2),
    ],
)
def test_random_draw_is_exact(size: tuple[int, int], ratios: dict, kept: int, hidden: int) -> None:
    """Every image keeps V = int(L (1 - mask_ratio)) units, in order, and hides V - int(V (1 - ratio)) of them."""
    mask = draw_random_mask(3, size, **ratios)
    assert mask.grid == (size[0] // 16, size[1] // 16) and mask.kept.shape == (3, kept)
    assert (mask.kept.diff() > 0).all() and (mask.removed.diff() > 0).all()
    assert mask.secondary.sum(1).tolist() == [hidden] * 3
    check_mask(mask, 3, size)  # each unit is named once


@both_samplings
def test_draw_follows_its_generator(sampling: str) -> None:
    """The same seed draws the same mask, and a given generator leaves the global one alone."""

    def fields(**kwargs: torch.Generator) -> list[Tensor]:
        mask = SAMPLINGS[sampling](8, (128, 128), secondary_ratio=0.25, **kwargs)
        return [field for field in mask if isinstance(field, Tensor)]

    torch.manual_seed(5)
    before, generator = torch.random.get_rng_state(), torch.Generator().manual_seed(0)
    first, second = fields(generator=generator), fields(generator=generator)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(map(torch.equal, first, fields(generator=torch.Generator().manual_seed(0))))
    assert not any(map(torch.equal, first, second))
    for field in first:  # each image of a batch has its own mask
        assert len({tuple(image.flatten().tolist()) for image in field}) == 8
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
    mask = draw_mask('random', n, (48, 64), 1 / 3)  # 12 units, 3 kept, 1 hidden
    kept, seen = (~mask.unsampled()).double(), (~mask.hidden()).double()
    for sample, share in ((kept, 3 / 12), (seen, 2 / 12), (kept[:, 1:] * kept[:, :-1], 3 / 12 * 2 / 11)):
        assert (sample.mean(0) - share).abs().max() < 5 * (share * (1 - share) / n) ** 0.5


# Methods of a mask


@pytest.mark.parametrize('size', [(96, 160), (160, 32)], ids=str)
def test_uniform_mask_equals_loop(size: tuple[int, int]) -> None:
    """Over units in raster order, True = removed; by raster index the mask has the same meaning, in ascending order."""
    mask = draw(2, size)
    unsampled = torch.ones(2, size[0] // 16, size[1] // 16, dtype=torch.bool)
    hidden, kept = unsampled.clone(), [[], []]
    for n, row, column in all_indices(mask.offsets.shape):
        unit = slow_unit(int(mask.offsets[n, row, column]), row, column)
        unsampled[n][unit] = False
        hidden[n][unit] = mask.secondary[n, row, column]
        kept[n].append(unit[0] * (size[1] // 16) + unit[1])
    units = mask.by_index()
    for either in (mask, units):
        assert torch.equal(either.unsampled(), unsampled.flatten(1))
        assert torch.equal(either.hidden(), hidden.flatten(1))
    assert mask.kept().tolist() == kept and units.kept.tolist() == [sorted(row) for row in kept]
    check_mask(units, 2, size)
    assert units.by_index() is units


@both_samplings
def test_targets_are_the_unsampled_units_in_order(sampling: str) -> None:
    """All values of a unit; uniform masks by cell and in it by offset, others in raster order."""
    mask = draw_mask(sampling, 2, (64, 96))
    chosen = mask.select_targets(10 * torch.arange(24).view(1, 4, 6, 1).expand(2, 4, 6, 5) + torch.arange(5))
    expected = [row.nonzero().flatten().tolist() for row in mask.unsampled()]
    if sampling == 'uniform':
        assert chosen.shape == (2, 2, 3, 3, 5)
        expected = [sorted(row, key=lambda unit: (unit // 12, unit % 6 // 2, unit)) for row in expected]
    assert torch.equal(chosen.flatten(1, -2), 10 * torch.tensor(expected)[..., None] + torch.arange(5))


@pytest.mark.parametrize('mask', [draw(2, (64, 96)), draw_mask('random', 2, (48, 80)), draw_windows(2, (9, 13))])
def test_to_moves_every_tensor(mask: Mask) -> None:
    moved, same = mask.to('meta'), mask.to('cpu')
    assert type(moved) is type(same) is type(mask)
    for field, there, here in zip(mask, moved, same, strict=True):
        if isinstance(field, Tensor):
            assert there.device.type == 'meta' and torch.equal(here, field)
        else:
            assert field == there == here


# Errors


@pytest.mark.parametrize('ratio', [-0.1, 1.0, float('nan')])
@pytest.mark.parametrize('function', [draw_uniform_mask, draw_random_mask])
def test_illegal_secondary_ratio(function: Callable, ratio: float) -> None:
    with pytest.raises(ValueError, match=rf'secondary_ratio is {ratio}.*\[0, 1\)'):
        function(1, (64, 64), secondary_ratio=ratio)


@pytest.mark.parametrize('ratio', [0, 1, -0.5, float('nan'), 0.95])
def test_illegal_mask_ratio(ratio: float) -> None:
    message = rf'mask_ratio is {ratio}, but it must be in \(0, 1\) and keep at least one of 16 units'
    with pytest.raises(ValueError, match=message):
        draw_random_mask(1, (64, 64), ratio)


UNIFORM = draw(2, (64, 96))
UNITS = draw_mask('random', 2, (64, 96))._replace(
    kept=torch.arange(18, 24).expand(2, 6), removed=torch.arange(18).expand(2, 18)
)


@pytest.mark.parametrize(
    ('mask', 'change', 'message'),
    [
        (UNIFORM, dict(offsets=torch.zeros(2, 3, 4).long()), r'mask\.offsets has shape \(2, 3, 4\).*\(2, 2, 3\)'),
        (UNIFORM, dict(secondary=torch.zeros(2, 3, 2).bool()), r'mask\.secondary has shape \(2, 3, 2\)'),
        (draw(3, (64, 96)), {}, r'mask\.offsets has shape \(3, 2, 3\), but 2 images'),
        (UNIFORM, dict(offsets=torch.full((2, 2, 3), 4)), r'mask\.offsets spans 4\.\.4.*0\.\.3'),
        (UNIFORM, dict(offsets=UNIFORM.offsets - 1), r'mask\.offsets spans -1\.\.2'),
        (UNIFORM, dict(offsets=UNIFORM.offsets.int()), r'mask\.offsets is torch\.int32.*torch\.int64'),
        (UNIFORM, dict(secondary=torch.zeros(2, 2, 3)), r'mask\.secondary is torch\.float32.*torch\.bool'),
        (UNITS, dict(grid=(6, 4)), r'mask\.grid is \(6, 4\), but images of 64x96 px have \(4, 6\)'),
        (draw_mask('random', 3, (64, 96)), {}, r"'kept': \(3, 6\).*2 images of 24 units need \(2, V\)"),
        (UNITS, dict(kept=torch.zeros(1, 6).long()), r"'kept': \(1, 6\)"),
        (UNITS, dict(kept=torch.zeros(12).long()), r"'kept': \(12,\).*need \(2, V\)"),
        (UNITS, dict(secondary=torch.zeros(2, 5).bool()), r"'secondary': \(2, 5\)"),
        (UNITS, dict(removed=torch.zeros(2, 17).long()), r"'removed': \(2, 17\).*the other units in removed"),
        (UNITS, dict(kept=torch.zeros(2, 6)), r'mask\.kept is torch\.float32.*torch\.int64'),
        (UNITS, dict(removed=torch.zeros(2, 18).int()), r'mask\.removed torch\.int32'),
        (UNITS, dict(secondary=torch.zeros(2, 6)), r'mask\.secondary torch\.float32.*torch\.bool'),
        (UNITS, dict(kept=torch.zeros(2, 6).long()), 'must name each unit of the image once'),
        (UNITS, dict(kept=torch.arange(19, 25).expand(2, 6)), 'must name each unit of the image once'),
    ],
)
def test_check_mask(mask: UniformMask | UnitMask, change: dict, message: str) -> None:
    """A mask from outside is checked before it can index wrong memory, and the message names the field."""
    check_mask(mask, len(mask.secondary), (64, 96))
    with pytest.raises(ValueError, match=message):
        check_mask(mask._replace(**change), 2, (64, 96))
    with pytest.raises(ValueError, match='image height is 40 px'):
        check_mask(mask, 2, (40, 96))
