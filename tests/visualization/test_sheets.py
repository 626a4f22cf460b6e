"""Sheets of reconstructions, pixel by pixel, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmpretrain.structures import DataSample
from PIL import Image

from mm_ummae.masking import draw_uniform_mask, draw_window_mask
from mm_ummae.visualization import (
    comparison_sheet,
    image_sheet,
    reconstruction_panels,
    reconstruction_sheet,
    save_loss_curve,
    save_reconstruction_sheet,
    save_sheet,
    sheets,
    window_panels,
)
from mm_ummae.visualization.sheets import COLUMNS, DIM, GAP, GREY, ROWS, WINDOW_COLOURS

HEIGHT, WIDTH = 64, 96
FACTOR = 2  # 2 x 96 px is closer to 224 px than 96 px or 3 x 96 px


def sample(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> DataSample:
    """A reconstruction like those of UMMAE.predict; values 0..100 in the image, 150..250 in the prediction."""
    generator = torch.Generator().manual_seed(seed)
    mask = draw_uniform_mask(1, (height, width), generator=generator)
    fields = dict(
        image=100 * torch.rand(3, height, width, generator=generator),
        reconstruction=150 + 100 * torch.rand(3, height, width, generator=generator),
        unsampled=mask.unsampled().view(height // 16, -1),
        hidden=mask.hidden().view(height // 16, -1),
    )
    made = DataSample()
    for name, values in fields.items():
        made.set_field(values, name)
    return made


def window_sample(windows: int = 2, seed: int = 0, patch: int = 8, size: int = 3) -> DataSample:
    """A reconstruction like those of LoMaR.predict; two windows do not overlap."""
    made = sample(seed)
    generator = torch.Generator().manual_seed(seed)
    grid = (HEIGHT // patch, WIDTH // patch)
    mask = draw_window_mask(1, grid, size, windows, generator=generator)
    if windows == 2:
        mask = mask._replace(corner=torch.tensor([[0, 2], [5, 7]]))
    fields = dict(
        unsampled=mask.unsampled().view(grid),
        hidden=mask.hidden().view(grid),
        window_corner=mask.corner,
        window_masked=mask.is_masked().view(windows, size, size),
        window_reconstruction=150 + 100 * torch.rand(windows, 3, size * patch, size * patch, generator=generator),
    )
    for name, values in fields.items():
        made.set_field(values, name)
    return made


def to_array(values: torch.Tensor) -> np.ndarray:
    return values.round().byte().permute(1, 2, 0).numpy()


def places(sheet: np.ndarray, panel: np.ndarray, factor: int = FACTOR) -> list[tuple[int, int]]:
    """Upper left corners, (row, column) in pixels, at which the sheet shows the enlarged panel."""
    drawn = np.kron(panel, np.ones((factor, factor, 1), np.uint8))
    height, width = drawn.shape[:2]
    # Candidates are the corners where the sum of the pixels is right; only there all pixels are compared
    total = np.pad(sheet.sum(2, dtype=np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    corners = np.argwhere(sums == drawn.sum(dtype=np.int64)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], drawn)]


def corners_of(sheet: np.ndarray, rows: list[list[np.ndarray]]) -> np.ndarray:
    """(rows, columns, 2): the only place of each panel; checks that the panels form a grid without overlap."""
    found = [[places(sheet, panel) for panel in row] for row in rows]
    assert all(len(corners) == 1 for row in found for corners in row)
    corners = np.array(found)[:, :, 0]
    assert (corners[..., 0] == corners[:, :1, 0]).all() and (corners[..., 1] == corners[:1, :, 1]).all()
    assert (np.diff(corners[:, 0, 0]) > FACTOR * HEIGHT).all() and (np.diff(corners[0, :, 1]) > FACTOR * WIDTH).all()
    return corners


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the order in which they are rendered."""
    seen: list[Figure] = []
    render = sheets._render
    monkeypatch.setattr(sheets, '_render', lambda figure: (seen.append(figure), render(figure))[1])
    return seen


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


# Panels


@pytest.mark.parametrize('side', [16, 8, 32])
def test_panels_of_units_of_any_size(side: int) -> None:
    made = sample()
    if side != 16:
        made.hidden = torch.rand(HEIGHT // side, WIDTH // side, generator=torch.Generator().manual_seed(0)) < 0.7
        made.unsampled = made.hidden & (torch.arange(WIDTH // side) % 2 == 0)
    panels = dict(zip(COLUMNS, reconstruction_panels(made), strict=True))
    image, prediction = to_array(made.image), to_array(made.reconstruction)
    unsampled, hidden = (
        np.kron(mask.numpy(), np.ones((side, side), bool))[..., None] for mask in (made.unsampled, made.hidden)
    )
    assert len({*zip(unsampled.ravel().tolist(), hidden.ravel().tolist(), strict=True)}) == 3
    expected = dict(
        original=image,
        sampled=np.where(unsampled, GREY, image),
        prediction=prediction,
        pasted=np.where(hidden, prediction, image),
    )
    expected['secondary-masked'] = np.where(hidden, GREY, image)
    for name, panel in panels.items():
        assert panel.dtype == np.uint8 and np.array_equal(panel, expected[name]), name


def test_windows_pixel_by_pixel() -> None:
    """Masked patches grey above, the window's own prediction below, the rest of the image dark."""
    made = window_sample()
    above, below = window_panels(made)
    image, *_, pasted = reconstruction_panels(made)
    assert len(above) == len(below) == 3 and np.array_equal(below[0], pasted)
    dark = image // DIM
    for i, (row, column) in enumerate(made.window_corner.tolist()):
        top, left = 8 * row, 8 * column
        window = np.s_[top : top + 24, left : left + 24]
        masked = np.kron(made.window_masked[i].numpy(), np.ones((8, 8), bool))[..., None]
        assert np.array_equal(above[i + 1][window], np.where(masked, GREY, image[window]))
        assert np.array_equal(below[i + 1][window], to_array(made.window_reconstruction[i]))
        # A border of one pixel around the window
        border = np.zeros((HEIGHT, WIDTH), bool)
        border[max(top - 1, 0) : top + 25, max(left - 1, 0) : left + 25] = True
        outside = ~border
        border[window] = False
        for panel in (above[i + 1], below[i + 1]):
            assert np.array_equal(panel[outside], dark[outside]) and (panel[border] == WINDOW_COLOURS[i]).all()
        assert (above[0][border] == WINDOW_COLOURS[i]).all() and np.array_equal(above[0][window], image[window])
    changed = (above[0] != image).any(2).sum()
    assert changed == 2 * (25 * 26 - 24 * 24), 'each window touches an edge of the image, where it has no border'


def test_values_are_rounded_and_clipped() -> None:
    made = sample()
    made.reconstruction = torch.tensor([-5, 7.6, 300.0]).view(3, 1, 1).expand(3, HEIGHT, WIDTH)
    assert (reconstruction_panels(made)[3] == (0, 8, 255)).all()


# Sheets


def test_a_sheet_has_a_row_of_five_panels_per_sample(figures: list[Figure]) -> None:
    samples = [sample(0), sample(1), sample(2)]
    sheet = reconstruction_sheet(samples, 'epoch_3.pth')
    assert corners_of(sheet, [reconstruction_panels(made) for made in samples]).shape == (3, 5, 2)
    assert sheet.dtype == np.uint8 and texts(figures[0]) == ['epoch_3.pth', *COLUMNS]


def test_a_sheet_of_windows_has_two_rows_per_sample(figures: list[Figure]) -> None:
    samples = [window_sample(seed=0), window_sample(seed=1)]
    sheet = reconstruction_sheet(samples, 'epoch 3')
    assert corners_of(sheet, [row for made in samples for row in window_panels(made)]).shape == (4, 3, 2)
    assert texts(figures[0]) == ['epoch 3', 'image', 'window 1', 'window 2', *ROWS, *ROWS]


def test_a_sheet_says_how_many_windows_it_shows(figures: list[Figure]) -> None:
    widths = [reconstruction_sheet([window_sample(n)], title).shape[1] for n, title in ((5, ''), (5, 'a'), (4, 'a'))]
    titles = [texts(figure)[0] for figure in figures]
    assert titles == ['4 of 5 windows', 'a, 4 of 5 windows', 'a'] and len(set(widths)) == 1


def test_a_comparison_shows_what_each_encoder_sees_above_its_reconstruction(figures: list[Figure]) -> None:
    """LoMaR too: whole images, with the patches grey that no window shows. The original is shown once."""
    columns = {f'model {i}\nmask seed {i}': [sample(10 * i), sample(10 * i + 1)] for i in range(2)}
    columns['LoMaR'] = [window_sample(seed=20), window_sample(seed=21)]
    for samples in columns.values():
        for made, same in zip(samples, columns['model 0\nmask seed 0'], strict=True):
            made.image = same.image
    sheet = comparison_sheet(columns, 'title')
    panels = [[reconstruction_panels(made) for made in samples] for samples in zip(*columns.values(), strict=True)]
    corners = corners_of(sheet, [[made[which] for made in row] for row in panels for which in (2, 4)])
    for i, row in enumerate(panels):
        ((top, left),) = places(sheet, row[0][0])
        assert top == corners[2 * i, 0, 0] and left < corners[0, 0, 1]
    assert texts(figures[0]) == ['title', 'original', *columns, *ROWS, *ROWS]


def test_titles_are_drawn_in_the_margins() -> None:
    """Above each column, left of each row and above the sheet, and outside the panels."""
    panel = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    bare = image_sheet([[panel] * 3] * 2)
    titled = image_sheet([[panel] * 3] * 2, ['one', 'two\nlines', 'three'], ['upper', 'lower'], 'title')
    top, left = (a - b for a, b in zip(titled.shape[:2], bare.shape[:2], strict=True))
    assert (bare >= 200).all() and np.array_equal(titled[top + GAP :, left + GAP :], bare[GAP:, GAP:])
    width, height = (titled.shape[1] - left) // 3, (titled.shape[0] - top) // 2
    for i in range(3):
        assert titled[top - 20 : top, left + i * width : left + (i + 1) * width].min() < 100, f'column {i}'
    for i in range(2):
        assert titled[top + i * height : top + (i + 1) * height, :left].min() < 100, f'row {i}'
    assert titled[: top - 36].min() < 100, 'sheet'


def test_long_titles_are_shortened_in_the_middle(figures: list[Figure]) -> None:
    """Dollar signs of file names are no formula."""
    panel = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    long = f'a{"x" * 300}z'
    image_sheet([[panel, panel]], [f'{long}\nseed 0', '$\\frac$'], title=long)
    title, column, short = texts(figures[0])
    first, second = column.split('\n')
    assert (second, short) == ('seed 0', '$\\frac$')
    for text in (title, first):
        assert text.startswith('ax') and text.endswith('xz') and '…' in text
    assert len(first) * 7 <= FACTOR * WIDTH < (len(first) + 3) * 7
    assert len(first) < len(title) < 70


@pytest.mark.parametrize(('width', 'factor'), [(64, 4), (96, 2), (128, 2), (224, 1), (512, 1)])
def test_panels_are_enlarged_by_whole_factors_to_about_224_px(width: int, factor: int) -> None:
    panel = np.random.default_rng(0).integers(256, size=(32, width, 3), dtype=np.uint8)
    assert len(places(image_sheet([[panel]]), panel, factor)) == 1


def test_empty_cells_stay_white_and_other_sizes_are_resized() -> None:
    small, large = np.full((32, 48, 3), 50, np.uint8), np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    sheet = image_sheet([[large, None], [None, small]])
    colours, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    area = FACTOR**2 * HEIGHT * WIDTH
    assert colours[:, 0].tolist() == [50, 100, 255] and counts[:2].tolist() == [area, area]


# Files


@pytest.mark.parametrize('suffix', ['.png', '.JPG', '.webp'])
def test_sheets_are_written_into_a_new_folder(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / 'new' / f'sheet{suffix}'
    assert save_reconstruction_sheet([sample(0)], str(path), 'title') == path
    expected = reconstruction_sheet([sample(0)], 'title')
    written = np.asarray(Image.open(path))
    assert written.shape == expected.shape and (suffix != '.png' or np.array_equal(written, expected))
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_sheet(np.zeros((2, 2, 3), np.uint8), tmp_path / 'sheet.png')
    old = path.read_bytes()

    def write_half(_: Image.Image, target: Path) -> None:
        Path(target).write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(Image.Image, 'save', write_half)
    with pytest.raises(OSError, match='disk full'):
        save_sheet(np.ones((2, 2, 3), np.uint8), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_the_loss_curve_has_the_points_of_the_log(tmp_path: Path, figures: list[Figure]) -> None:
    """Evaluations have no loss and are left out."""
    records = [
        dict(loss=1.25, step=5),
        {'accuracy/top1': 50.0, 'step': 1},
        dict(loss=0.75, step=10),
        dict(loss=0.5, step=15),
    ]
    (tmp_path / 'scalars.json').write_text(''.join(json.dumps(record) + '\n' for record in records))
    path = save_loss_curve(tmp_path / 'scalars.json', tmp_path / 'loss.png')
    assert Image.open(path).size == (600, 350)
    (axis,) = figures[0].axes
    assert axis.lines[0].get_xydata().tolist() == [[5, 1.25], [10, 0.75], [15, 0.5]]
    assert axis.get_title() == '1.250 → 0.500'


def test_errors(tmp_path: Path) -> None:
    for columns in ({}, {'a': [], 'b': []}):
        with pytest.raises(ValueError, match='columns is empty or has an empty column'):
            comparison_sheet(columns)
    with pytest.raises(
        ValueError, match=r"columns have the lengths \{'a': 1, 'b': 2\}, but each must hold the same im"
    ):
        comparison_sheet({'a': [sample(0)], 'b': [sample(0), sample(1)]})
    with pytest.raises(ValueError, match='samples is empty, but a sheet needs at least one reconstruction'):
        save_reconstruction_sheet([], tmp_path / 'new' / 'sheet.png')
    for name in ('sheet.txt', 'sheet'):
        with pytest.raises(ValueError, match=rf"{name} has the suffix '.*', but a sheet is written as \.png, \.jpg"):
            save_sheet(np.zeros((2, 2, 3), np.uint8), tmp_path / 'new' / name)
    for text in ('', '{"accuracy/top1": 50.0, "step": 1}\n'):
        (tmp_path / 'scalars.json').write_text(text)
        with pytest.raises(ValueError, match=r'scalars\.json has no line with a loss'):
            save_loss_curve(tmp_path / 'scalars.json', tmp_path / 'new' / 'loss.png')
    assert not (tmp_path / 'new').exists()
