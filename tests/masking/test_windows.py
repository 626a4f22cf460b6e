"""Local windows and their masks as tensor functions, each against a slow loop that is easy to read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mm_ummae.masking import (
    PAIRINGS,
    WindowMask,
    WindowSampler,
    check_pairing,
    check_window_mask,
    check_windows,
    draw_window_mask,
    make_window_mask,
)
from tests.builders import draw, draw_windows, seeded

both_pairings = pytest.mark.parametrize('pairing', PAIRINGS)


def places(mask: WindowMask, inside: Tensor) -> list[list[tuple[int, int, int]]]:
    """Image, row and column of patches of each window: (B, K) raster indices in the window."""
    found = []
    for image, (top, left), row in zip(mask.image.tolist(), mask.corner.tolist(), inside.tolist(), strict=True):
        found.append([(image, top + i // mask.window_size, left + i % mask.window_size) for i in row])
    return found


# Drawing


@both_pairings
@pytest.mark.parametrize('grid', [(14, 14), (9, 13)], ids=str)
def test_windows_lie_inside_and_start_nowhere_twice(grid: tuple[int, int], pairing: str) -> None:
    """Rows and columns are each without repetition, in as many windows as fit; the batch shares the windows."""
    size, windows = 4, min(grid) - 4 + 1
    for seed in range(5):
        mask = draw_windows(3, grid, size, windows, seed=seed, pairing=pairing)
        for axis in (0, 1):
            starts = mask.corner[:windows, axis].tolist()
            assert len(set(starts)) == windows and set(starts) <= set(range(grid[axis] - size + 1))
        assert torch.equal(mask.corner, mask.corner[:windows].repeat(3, 1))


def test_corners_are_uniform() -> None:
    """Every place is reached about equally often, so rows and columns are independent."""
    corners = torch.cat([draw_windows(1, (6, 8), 4, 1, seed=seed).corner for seed in range(400)])
    counts = (5 * corners[:, 0] + corners[:, 1]).bincount(minlength=15)
    assert counts.min() > 400 / 15 / 2.5 and counts.max() < 2 * 400 / 15


@pytest.mark.parametrize(
    ('size', 'windows', 'ratio', 'masked'),
    [(7, 4, 0.8, 39), (14, 1, 0.8, 156), (7, 4, 0.3, 14), (2, 3, 0.25, 1), (7, 8, 0.021, 1), (7, 8, 0.999, 48)],
)
def test_draw_is_exact(size: int, windows: int, ratio: float, masked: int) -> None:
    """Exactly int(w ** 2 * ratio) patches of each window, in ascending order, all patches named once."""
    mask = draw_windows(2, (14, 14), size, windows, ratio)
    assert check_windows((14, 14), size, windows, ratio) == masked
    assert mask.masked.shape == (2 * windows, masked)
    assert (mask.visible.diff() > 0).all() and (mask.masked.diff() > 0).all()
    assert torch.equal(mask.is_masked().nonzero()[:, 1], mask.masked.flatten())
    check_window_mask(mask, 2, (14, 14))


def test_patches_are_masked_uniformly_and_independently() -> None:
    mask = draw_windows(500, (14, 14), 7, 4)
    counts = mask.masked.flatten().bincount(minlength=49)
    expected = 2000 * 39 / 49  # binomial, standard deviation 18
    assert (counts - expected).abs().max() < 4 * (expected * 10 / 49) ** 0.5
    assert len({tuple(row) for row in mask.masked[:12].tolist()}) == 12  # every sequence has its own mask


def test_sampler_draws_with_its_settings_and_generator() -> None:
    sampler = WindowSampler(5, 2, 0.4, 'published')
    drawn, other = (sampler.draw(3, (9, 13), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    torch.manual_seed(0)
    expected = draw_window_mask(3, (9, 13), 5, 2, 0.4, pairing='published')
    assert all(map(torch.equal, drawn[:4], expected[:4])) and drawn[4:] == expected[4:]
    assert not torch.equal(drawn.masked, other.masked) and not torch.equal(drawn.corner, other.corner)
    assert sampler.draw(3, (9, 13), device='meta').corner.device.type == 'meta'
    assert WindowSampler() == (7, 4, 0.8, 'all')  # the published recipe, without the published pairing


@pytest.mark.parametrize(('n', 'windows'), [(1, 4), (4, 1), (2, 2), (3, 4), (8, 4)])
def test_pairing(n: int, windows: int) -> None:
    """Ours: every image once through every window. Published: sequence k has image k mod N and window k mod W."""
    ours, published = (draw_windows(n, (9, 9), 4, windows, pairing=pairing) for pairing in ('all', 'published'))
    assert torch.equal(ours.masked, published.masked) and torch.equal(ours.corner, published.corner)
    assert torch.equal(ours.corner, ours.corner[:windows].repeat(n, 1))
    assert ours.image.tolist() == [image for image in range(n) for _ in range(windows)]
    assert published.image.tolist() == [k % n for k in range(n * windows)]
    for mask in (ours, published):
        sequences = mask.by_image()
        assert mask.image[sequences].tolist() == [[image] * windows for image in range(n)]
        assert (sequences.diff() > 0).all()


# Methods of a mask


@both_pairings
def test_select_equals_loop(pairing: str) -> None:
    mask, units = draw_windows(3, (9, 13), 4, 2, 0.7, pairing=pairing), seeded(3, 9, 13, 5)
    everything = torch.arange(16).expand(6, -1)
    for selected, inside in (
        (mask.select(units), everything),
        (mask.select_visible(units), mask.visible),
        (mask.select_targets(units), mask.masked),
    ):
        expected = torch.stack([torch.stack([units[place] for place in row]) for row in places(mask, inside)])
        assert torch.equal(selected, expected)
    assert mask.patches().tolist() == [[r * 13 + c for _, r, c in row] for row in places(mask, everything)]


@both_pairings
def test_merge_and_marks_equal_loop(pairing: str) -> None:
    """Where windows overlap: the mean of those that mask a patch; a patch visible in one of them is seen."""
    mask, predicted = draw_windows(3, (9, 13), 5, 3, 0.5, pairing=pairing), seeded(9, 12, 2)
    values: dict[tuple[int, int, int], list[Tensor]] = {}
    for row, tokens in zip(places(mask, mask.masked), predicted, strict=True):
        for key, token in zip(row, tokens, strict=True):
            values.setdefault(key, []).append(token)
    seen = {key for row in places(mask, mask.visible) for key in row}
    assert max(map(len, values.values())) > 1 and seen & values.keys()  # windows do overlap
    merged = mask.merge(predicted)
    marked, unsampled = mask.predicted().view(3, 9, 13), mask.unsampled().view(3, 9, 13)
    for key in ((n, row, column) for n in range(3) for row in range(9) for column in range(13)):
        expected = torch.stack(values[key]).mean(0) if key in values else torch.zeros(2)
        torch.testing.assert_close(merged[key], expected)
        assert (marked[key].item(), unsampled[key].item()) == (key in values, key not in seen)
    assert torch.equal(mask.hidden(), mask.unsampled())


def test_complete_puts_tokens_in_the_gaps() -> None:
    mask, token = draw_windows(2, (9, 13), 4, 3, 0.5), torch.full((1, 1, 5), 7.0)
    units = seeded(2, 9, 13, 5)
    whole = mask.complete(mask.select_visible(units).half(), token)
    assert whole.dtype == torch.float32  # that of the token
    assert torch.equal(whole, torch.where(mask.is_masked()[..., None], token, mask.select(units).half().float()))


# Errors


@pytest.mark.parametrize(
    ('grid', 'size', 'windows', 'ratio', 'message'),
    [
        ((14, 14), 15, 1, 0.8, r'window_size is 15, but it must be in 1\.\.14: the image is a grid of 14x14 patches'),
        ((14, 6), 7, 1, 0.8, r'window_size is 7, but it must be in 1\.\.6: the image is a grid of 14x6'),
        ((14, 14), 0, 1, 0.8, r'window_size is 0, but'),
        ((14, 14), 7, 9, 0.8, r'num_windows is 9, but it must be in 1\.\.8: a window of 7x7 patches on a grid'),
        ((14, 9), 7, 4, 0.8, r'num_windows is 4, but it must be in 1\.\.3'),
        ((9, 14), 7, 0, 0.8, r'num_windows is 0, but it must be in 1\.\.3'),
        ((14, 14), 7.0, 4, 0.8, r'window_size is 7\.0, but it must be an integer'),
        ((14, 14), 7, '4', 0.8, r"num_windows is '4', but it must be an integer"),
        ((14, 14), 7, 4, '0.8', r"mask_ratio is '0\.8', but it must be a number"),
        *(
            ((14, 14), 7, 4, ratio, rf'mask_ratio is {ratio}, but it must be in \(0, 1\), .* all of the 49 patches')
            for ratio in (0, 1, -0.1, 0.02, float('nan'), float('inf'))
        ),
        ((14, 14), 1, 4, 0.8, r'mask_ratio is 0\.8, .* all of the 1 patches'),
    ],
)
def test_windows_that_cannot_be_drawn(
    grid: tuple[int, int], size: int, windows: int, ratio: float, message: str
) -> None:
    for function in (check_windows, lambda *args: draw_window_mask(2, *args)):
        with pytest.raises(ValueError, match=message):
            function(grid, size, windows, ratio)


CORNERS, NOISE = torch.zeros(2, 2).long(), torch.zeros(1, 2, 4)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: check_pairing('each'), "pairing is 'each', but it must be one of all, published"),
        (lambda: make_window_mask(CORNERS, NOISE, (9, 9), pairing='each'), "pairing is 'each'"),
        (
            lambda: make_window_mask(CORNERS, torch.zeros(1, 2, 5), (9, 9)),
            'noise has 5 values a window, but a window is a square of patches',
        ),
        (
            lambda: make_window_mask(torch.zeros(3, 2).long(), NOISE, (9, 9)),
            r'corners has shape \(3, 2\), but noise is for 2 windows: \(2, 2\)',
        ),
        (
            lambda: check_window_mask(draw(2, (64, 64)), 2, (4, 4)),
            'mask is a UniformMask, but LoMaR takes a WindowMask',
        ),
    ],
)
def test_illegal_arguments(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


MASK = draw_windows(2, (9, 13), 4, 3, 0.5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(batch_size=3), r'mask is for 3 images of \(9, 13\) patches, but 2 images of \(9, 13\) patches came'),
        (dict(grid=(13, 9)), r'mask is for 2 images of \(13, 9\) patches, but 2 images of \(9, 13\)'),
        (dict(image=MASK.image[:5]), r"mask has the shapes .*'corner': \(6, 2\).* B sequences of 16 patches need"),
        (dict(corner=MASK.corner[:, :1]), r"'corner': \(6, 1\)"),
        (dict(visible=MASK.visible[:, :7]), r"'visible': \(6, 7\)"),
        (dict(masked=MASK.masked[0]), r"'masked': \(8,\)"),
        (dict(window_size=5), 'B sequences of 25 patches'),
        (dict(masked=MASK.masked.int()), r'all torch\.int64'),
        (dict(image=MASK.image * 0), r'names the 2 images \[6, 0\] times, but it must name each equally'),
        (dict(image=MASK.image + 1), r'names the 2 images \[0, 3\] times, but it must name each equally'),
        (dict(corner=MASK.corner - 9), r'mask\.corner must be in 0\.\.\(5, 9\), so that windows of 4x4 patches lie'),
        (dict(corner=torch.tensor([5, 10]).expand(6, 2)), r'mask\.corner must be in 0\.\.\(5, 9\)'),
        (dict(visible=MASK.masked), r'mask\.visible and mask\.masked must name each patch of a window once'),
        (dict(masked=MASK.masked + 1), r'must name each patch of a window once'),
    ],
)
def test_check_window_mask(change: dict, message: str) -> None:
    check_window_mask(MASK, 2, (9, 13))
    with pytest.raises(ValueError, match=message):
        check_window_mask(MASK._replace(**change), 2, (9, 13))
