"""Windows and their masks as tensor functions, each against a slow loop that is easy to read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_ummae.masking import PAIRINGS, WindowMask, check_pairing, check_window_mask, check_windows, draw_window_mask, make_window_mask

from .test_um_mae import Recorder

GRIDS = [(14, 14), (9, 13), (16, 8)]
both_pairings = pytest.mark.parametrize('pairing', PAIRINGS)
all_grids = pytest.mark.parametrize('grid', GRIDS, ids=str)


def draw_windows(n: int, grid: tuple[int, int], *args: float, seed: int = 0, **kwargs: str) -> WindowMask:
    """(window_size, num_windows, mask_ratio) may follow."""
    generator = torch.Generator().manual_seed(seed)
    return draw_window_mask(n, grid, *(args or (4, 3)), generator=generator, **kwargs)


def place(mask: WindowMask, sequence: int, inside: int) -> tuple[int, int, int]:
    """Image, row and column of a patch of a window."""
    row, column = divmod(inside, mask.window_size)
    top, left = mask.corner[sequence].tolist()
    return mask.image[sequence].item(), top + row, left + column


def places(mask: WindowMask, inside: Tensor) -> list[list[tuple[int, int, int]]]:
    return [[place(mask, k, i) for i in row] for k, row in enumerate(inside.tolist())]


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Drawing


@both_pairings
@all_grids
def test_windows_lie_inside_and_start_nowhere_twice(grid: tuple[int, int], pairing: str) -> None:
    """Rows and columns are each without repetition, in as many windows as fit."""
    size, windows = 4, min(grid) - 4 + 1
    for seed in range(5):
        mask = draw_windows(3, grid, size, windows, seed=seed, pairing=pairing)
        for axis in (0, 1):
            starts = mask.corner[:windows, axis].tolist()
            assert len(set(starts)) == windows and set(starts) <= set(range(grid[axis] - size + 1))
        # Shared by the batch: the same windows again and again
        assert torch.equal(mask.corner, mask.corner[:windows].repeat(3, 1))


def test_every_place_is_reached_and_rows_do_not_tell_columns() -> None:
    corners = torch.cat([draw_windows(1, (6, 8), 4, 1, seed=seed).corner for seed in range(400)])
    assert {tuple(corner) for corner in corners.tolist()} == {(row, column) for row in range(3) for column in range(5)}
    counts = (5 * corners[:, 0] + corners[:, 1]).bincount()
    assert counts.min() > 400 / 15 / 2.5 and counts.max() < 2 * 400 / 15


@pytest.mark.parametrize(
    ('size', 'windows', 'ratio', 'masked'),
    [
        (7, 4, 0.8, 39),  # the published recipe
        (5, 8, 0.8, 20),
        (9, 3, 0.8, 64),
        (11, 2, 0.8, 96),
        (14, 1, 0.8, 156),
        *((7, 4, tenths / 10, 49 * tenths // 10) for tenths in (3, 4, 5, 6, 7, 9)),
        (2, 3, 0.25, 1),
    ],
)
def test_draw_is_exact(size: int, windows: int, ratio: float, masked: int) -> None:
    """The windows and ratios of the paper's ablations: exact numbers, in ascending order, all patches named once."""
    mask = draw_windows(2, (14, 14), size, windows, ratio)
    assert check_windows((14, 14), size, windows, ratio) == masked
    assert mask.masked.shape == (2 * windows, masked) and mask.visible.shape == (2 * windows, size**2 - masked)
    for row in torch.cat((mask.visible, mask.masked), 1):
        assert sorted(row.tolist()) == list(range(size**2))
    for part in (mask.visible, mask.masked):
        assert (part.diff(dim=1) > 0).all()
    assert (mask.window_size, mask.grid, mask.batch_size) == (size, (14, 14), 2)
    check_window_mask(mask, 2, (14, 14))


def test_every_patch_is_masked_equally_often() -> None:
    mask = draw_windows(500, (14, 14), 7, 4)
    counts = mask.masked.flatten().bincount(minlength=49)
    expected = 2000 * 39 / 49  # binomial, standard deviation 18
    assert (counts - expected).abs().max() < 4 * (expected * 10 / 49) ** 0.5


def test_every_sequence_has_its_own_mask() -> None:
    mask = draw_windows(3, (14, 14), 7, 4)
    assert len({tuple(row) for row in mask.masked.tolist()}) == 12


def test_draw_follows_its_generator() -> None:
    first, same, other = (draw_windows(2, (14, 14), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], same[:4], strict=True))
    assert not torch.equal(first.masked, other.masked) and not torch.equal(first.corner, other.corner)
    torch.manual_seed(0)
    assert torch.equal(draw_window_mask(2, (14, 14), 4, 3).masked, first.masked)


def test_smallest_noise_is_masked() -> None:
    """By hand: windows of 2 x 2 at (0, 1) and (2, 0), three quarters masked."""
    noise = torch.tensor([[[0.4, 0.1, 0.2, 0.3], [0.0, 0.9, 0.1, 0.2]]])
    mask = make_window_mask(torch.tensor([[0, 1], [2, 0]]), noise, (4, 3), 0.75)
    assert mask.visible.tolist() == [[0], [1]] and mask.masked.tolist() == [[1, 2, 3], [0, 2, 3]]
    assert mask.patches().tolist() == [[1, 2, 4, 5], [6, 7, 9, 10]]
    check_window_mask(mask, 1, (4, 3))


# Which image is seen through which window


@pytest.mark.parametrize(('n', 'windows'), [(1, 4), (4, 1), (2, 2), (3, 4), (8, 4), (4, 8)])
def test_each_image_is_seen_once_through_each_window(n: int, windows: int) -> None:
    mask = draw_windows(n, (14, 14), 7, windows)
    pairs = [(image, *corner) for image, corner in zip(mask.image.tolist(), mask.corner.tolist(), strict=True)]
    corners = mask.corner[:windows].tolist()
    assert sorted(pairs) == sorted((image, *corner) for image in range(n) for corner in corners)


def paired(n: int, windows: int) -> list[tuple[int, int]]:
    """Image and window of each sequence of the published pairing; windows are told by their row."""
    corners = torch.arange(windows)[:, None].expand(-1, 2)
    mask = make_window_mask(corners, torch.rand(n, windows, 4), (9, 9), 0.5, 'published')
    return list(zip(mask.image.tolist(), mask.corner[:, 0].tolist(), strict=True))


def test_published_pairing() -> None:
    """Sequence k holds image k mod N and window k mod W."""
    assert paired(2, 2) == [(0, 0), (1, 1), (0, 0), (1, 1)]
    for n, windows in ((8, 4), (4, 4), (4, 2)):  # wherever W divides N an image sees a single window
        pairs = paired(n, windows)
        assert len(pairs) == n * windows and set(pairs) == {(image, image % windows) for image in range(n)}
    assert set(paired(3, 2)) == {(image, window) for image in range(3) for window in range(2)}


def test_pairing_changes_nothing_else() -> None:
    """Noise row k is that of sequence k, whatever it shows."""
    ours, published = (draw_windows(2, (9, 9), 4, 2, pairing=pairing) for pairing in PAIRINGS)
    assert torch.equal(ours.masked, published.masked) and torch.equal(ours.corner, published.corner)
    assert ours.image.tolist() == [0, 0, 1, 1] and published.image.tolist() == [0, 1, 0, 1]


# What is made of a mask


@both_pairings
@all_grids
def test_select_equals_loop(grid: tuple[int, int], pairing: str) -> None:
    mask, units = draw_windows(3, grid, 4, 2, 0.7, pairing=pairing), seeded(3, *grid, 5)
    everything = torch.arange(16).expand(6, -1)
    for selected, inside in (
        (mask.select(units), everything),
        (mask.select(units, mask.masked), mask.masked),
        (mask.select_visible(units), mask.visible),
        (mask.select_targets(units), mask.masked),
    ):
        expected = torch.stack([torch.stack([units[p] for p in row]) for row in places(mask, inside)])
        assert torch.equal(selected, expected)
    assert mask.patches().tolist() == [[r * grid[1] + c for _, r, c in row] for row in places(mask, everything)]


@both_pairings
@all_grids
def test_merge_and_marks_equal_loop(grid: tuple[int, int], pairing: str) -> None:
    """Where windows overlap: the mean of those that mask a patch; visible in one of them is seen."""
    mask = draw_windows(3, grid, 5, 3, 0.5, pairing=pairing)
    predicted = seeded(9, 12, 2)
    values: dict[tuple[int, int, int], list[Tensor]] = {}
    for row, tokens in zip(places(mask, mask.masked), predicted, strict=True):
        for key, token in zip(row, tokens, strict=True):
            values.setdefault(key, []).append(token)
    seen = {key for row in places(mask, mask.visible) for key in row}
    assert max(map(len, values.values())) > 1 and seen & values.keys()  # it is about overlaps
    merged, marked = mask.merge(predicted), mask.predicted().view(3, *grid)
    unsampled = mask.unsampled().view(3, *grid)
    for key in ((n, row, column) for n in range(3) for row in range(grid[0]) for column in range(grid[1])):
        expected = torch.stack(values[key]).mean(0) if key in values else torch.zeros(2)
        torch.testing.assert_close(merged[key], expected)
        assert (marked[key].item(), unsampled[key].item()) == (key in values, key not in seen)
    assert torch.equal(mask.hidden(), mask.unsampled())


@both_pairings
def test_by_image(pairing: str) -> None:
    mask = draw_windows(4, (9, 9), 4, 2, pairing=pairing)
    sequences = mask.by_image()
    assert sequences.shape == (4, 2) and sorted(sequences.flatten().tolist()) == list(range(8))
    assert mask.image[sequences].tolist() == [[n, n] for n in range(4)]
    assert (sequences.diff(dim=1) > 0).all()


def test_to() -> None:
    mask = draw_windows(2, (9, 9))
    moved = mask.to('meta')
    assert isinstance(moved, WindowMask) and {value.device.type for value in moved[:4]} == {'meta'}
    assert moved[4:] == mask[4:]
    assert draw_window_mask(2, (9, 9), 4, 3, device='meta').corner.device.type == 'meta'


@both_pairings
def test_a_draw_never_waits_for_the_device(pairing: str) -> None:
    with Recorder() as recorder:
        mask = draw_windows(2, (9, 13), 5, 3, pairing=pairing)
        mask.merge(mask.select_targets(seeded(2, 9, 13, 3)))
        mask.unsampled(), mask.predicted(), mask.by_image(), mask.select_visible(seeded(2, 9, 13, 3))
    assert {'argsort', 'sort'} & recorder.names and not recorder.waiting


# Bad input


@pytest.mark.parametrize(
    ('grid', 'size', 'windows', 'ratio', 'message'),
    [
        ((14, 14), 15, 1, 0.8, r'window_size is 15, but it must be in 1\.\.14: the image is a grid of 14x14 patches'),
        ((14, 6), 7, 1, 0.8, r'window_size is 7, but it must be in 1\.\.6: the image is a grid of 14x6'),
        ((14, 14), 0, 1, 0.8, r'window_size is 0, but'),
        ((14, 14), -7, 1, 0.8, r'window_size is -7, but'),
        ((14, 14), 7, 9, 0.8, r'num_windows is 9, but it must be in 1\.\.8: a window of 7x7 patches on a grid'),
        ((14, 9), 7, 4, 0.8, r'num_windows is 4, but it must be in 1\.\.3'),
        ((9, 14), 7, 4, 0.8, r'num_windows is 4, but it must be in 1\.\.3'),
        ((14, 14), 14, 2, 0.8, r'num_windows is 2, but it must be in 1\.\.1'),
        ((14, 14), 7, 0, 0.8, r'num_windows is 0, but'),
        ((14, 14), 7.0, 4, 0.8, r'window_size is 7\.0, but it must be an integer'),
        ((14, 14), (7, 7), 4, 0.8, r'window_size is \(7, 7\), but it must be an integer'),
        ((14, 14), 7, '4', 0.8, r"num_windows is '4', but it must be an integer"),
        ((14, 14), 7, 4, '0.8', r"mask_ratio is '0\.8', but it must be a number"),
        *(
            ((14, 14), 7, 4, ratio, rf'mask_ratio is {ratio}, but it must be in \(0, 1\), .* all of the 49 patches')
            for ratio in (0, 1, 1.5, -0.1, 0.02, float('nan'), float('inf'))
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


def test_extreme_ratios_mask_one_or_leave_one() -> None:
    """int(w² ratio) counts: 0.021 of 49 patches is one, 0.999 all but one."""
    assert check_windows((14, 14), 7, 8, 0.021) == 1
    assert check_windows((14, 14), 7, 8, 0.999) == 48
    with pytest.raises(ValueError, match=r'mask_ratio is 0\.01,'):
        check_windows((14, 14), 7, 4, 0.01)


def test_unknown_pairing() -> None:
    assert [check_pairing(pairing) for pairing in PAIRINGS] == list(PAIRINGS)
    for function in (check_pairing, lambda pairing: draw_windows(1, (9, 9), pairing=pairing)):
        with pytest.raises(ValueError, match="pairing is 'each', but it must be one of all, published"):
            function('each')


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
        (dict(corner=torch.tensor([6, 9]).expand(6, 2)), r'mask\.corner must be in 0\.\.\(5, 9\)'),
        (dict(visible=MASK.masked), r'mask\.visible and mask\.masked must name each patch of a window once'),
        (dict(masked=MASK.masked + 1), r'must name each patch of a window once'),
    ],
)
def test_check_window_mask(change: dict, message: str) -> None:
    check_window_mask(MASK, 2, (9, 13))
    with pytest.raises(ValueError, match=message):
        check_window_mask(MASK._replace(**change), 2, (9, 13))
