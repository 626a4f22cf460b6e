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
from pytest import MonkeyPatch

from mm_ummae.visualization import sheets
from mm_ummae.visualization.sheets import COLUMNS, DIM, GAP, GREY, ROWS, WINDOW_COLOURS

HEIGHT, WIDTH = 64, 96
FACTOR = 2  # 2 x 96 px is closer to 224 px than 96 px or 3 x 96 px


def sample(seed: int = 0, side: int = 16) -> DataSample:
    """A reconstruction like those of UMMAE.predict; values 0..100 in the image, 150..250 in the prediction."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(HEIGHT // side, WIDTH // side, generator=generator) < 0.7
    return DataSample(
        image=100 * torch.rand(3, HEIGHT, WIDTH, generator=generator),
        reconstruction=150 + 100 * torch.rand(3, HEIGHT, WIDTH, generator=generator),
        hidden=hidden,
        unsampled=hidden & (torch.arange(WIDTH // side) % 2 == 0),
    )


def window_sample(windows: int = 2, seed: int = 0) -> DataSample:
    """A reconstruction like those of LoMaR.predict, of windows of 3 x 3 patches of 8 px; two do not overlap."""
    made, generator = sample(seed, 8), torch.Generator().manual_seed(seed)
    made.window_corner = torch.tensor([[0, 2], [5, 7], [1, 1], [3, 5], [4, 0]])[:windows]
    made.window_masked = torch.rand(windows, 3, 3, generator=generator) < 0.5
    made.window_reconstruction = 150 + 100 * torch.rand(windows, 3, 24, 24, generator=generator)
    return made


def to_array(values: torch.Tensor) -> np.ndarray:
    return values.round().byte().permute(1, 2, 0).numpy()


def enlarged(mask: torch.Tensor, side: int) -> np.ndarray:
    """(h, w) bool over squares of ``side`` pixels -> (H, W, 1) over pixels."""
    return np.kron(mask.numpy(), np.ones((side, side), bool))[..., None]


@pytest.mark.parametrize('side', [16, 8, 32])
def test_panels_of_units_of_any_size(side: int) -> None:
    """Values are rounded and clipped."""
    made = sample(side=side)
    image, prediction = to_array(made.image), to_array(made.reconstruction)
    unsampled, hidden = enlarged(made.unsampled, side), enlarged(made.hidden, side)
    expected = [
        image,
        np.where(unsampled, GREY, image),
        np.where(hidden, GREY, image),
        prediction,
        np.where(hidden, prediction, image),
    ]
    for name, panel, pixels in zip(COLUMNS, sheets.reconstruction_panels(made), expected, strict=True):
        assert panel.dtype == np.uint8 and np.array_equal(panel, pixels), name
    made.reconstruction = torch.tensor([-5, 7.6, 300.0]).view(3, 1, 1).expand(3, HEIGHT, WIDTH)
    assert (sheets.reconstruction_panels(made)[3] == (0, 8, 255)).all()


def test_windows_pixel_by_pixel() -> None:
    """Masked patches grey above, the window's own prediction below, the rest of the image dark."""
    made = window_sample()
    above, below = sheets.window_panels(made)
    image, *_, pasted = sheets.reconstruction_panels(made)
    assert len(above) == len(below) == 3 and np.array_equal(below[0], pasted)
    outlined = image.copy()
    for i, (row, column) in enumerate(8 * made.window_corner.numpy()):
        window = np.s_[row : row + 24, column : column + 24]
        bordered = np.s_[max(row - 1, 0) : row + 25, max(column - 1, 0) : column + 25]  # each window is at an edge
        seen = np.where(enlarged(made.window_masked[i], 8), GREY, image[window])
        prediction = to_array(made.window_reconstruction[i])
        for panel, content in ((above[i + 1], seen), (below[i + 1], prediction)):
            expected = image // DIM
            expected[bordered] = WINDOW_COLOURS[i]
            expected[window] = content
            assert np.array_equal(panel, expected)
        outlined[bordered] = WINDOW_COLOURS[i]
        outlined[window] = image[window]
    assert np.array_equal(above[0], outlined)


def test_sheets_of_reconstructions_and_of_windows() -> None:
    """A row of five panels for each sample, or two rows of windows; a title says if these are not all."""
    samples = [sample(0), sample(1), sample(2)]
    rows = [sheets.reconstruction_panels(made) for made in samples]
    assert np.array_equal(sheets.reconstruction_sheet(samples, 'a'), sheets.image_sheet(rows, COLUMNS, title='a'))
    for number, title, expected in ((4, 'a', 'a'), (5, 'a', 'a, 4 of 5 windows'), (5, '', '4 of 5 windows')):
        samples = [window_sample(number, seed=0), window_sample(number, seed=1)]
        rows = [row for made in samples for row in sheets.window_panels(made)]
        names = ['image', 'window 1', 'window 2', 'window 3', 'window 4']
        sheet = sheets.reconstruction_sheet(samples, title)
        assert np.array_equal(sheet, sheets.image_sheet(rows, names, [*ROWS, *ROWS], expected))


def test_a_comparison_shows_what_each_encoder_sees_above_its_reconstruction() -> None:
    """LoMaR too: whole images, with the patches grey that no window shows. The original is shown once."""
    columns = {f'model {i}\nmask seed {i}': [sample(10 * i), sample(10 * i + 1)] for i in range(2)}
    columns['LoMaR'] = [window_sample(seed=20), window_sample(seed=21)]
    rows = []
    for samples in zip(*columns.values(), strict=True):
        panels = [sheets.reconstruction_panels(made) for made in samples]
        rows += [[panels[0][0], *(made[2] for made in panels)], [None, *(made[4] for made in panels)]]
    expected = sheets.image_sheet(rows, ['original', *columns], [*ROWS, *ROWS], 'title')
    assert np.array_equal(sheets.comparison_sheet(columns, 'title'), expected)


def test_titles_are_drawn_in_the_margins() -> None:
    """Above each column, left of each row and above the sheet, and outside the panels."""
    panel = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    bare = sheets.image_sheet([[panel] * 3] * 2)
    titled = sheets.image_sheet([[panel] * 3] * 2, ['one', 'two\nlines', 'three'], ['upper', 'lower'], 'title')
    top, left = (a - b for a, b in zip(titled.shape[:2], bare.shape[:2], strict=True))
    assert (bare >= 200).all() and np.array_equal(titled[top + GAP :, left + GAP :], bare[GAP:, GAP:])
    columns = np.array_split(titled[top - 20 : top, left:], 3, axis=1)
    rows = np.array_split(titled[top:, :left], 2)
    assert max(part.min() for part in (*columns, *rows, titled[: top - 36])) < 100, 'a title is missing'


def test_long_titles_are_shortened_in_the_middle(monkeypatch: MonkeyPatch) -> None:
    """Dollar signs of file names are no formula."""
    found: list[str] = []
    text = Figure.text
    monkeypatch.setattr(Figure, 'text', lambda *args, **style: found.append(args[-1]) or text(*args, **style))
    panel, long = np.zeros((HEIGHT, WIDTH, 3), np.uint8), f'a{"x" * 300}z'
    sheets.image_sheet([[panel, panel]], [f'{long}\nseed 0', '$\\frac$'], title=long)
    title, column, short = found
    first, second = column.split('\n')
    assert (second, short) == ('seed 0', '$\\frac$')
    assert all(line.startswith('ax') and line.endswith('xz') and '…' in line for line in (title, first))
    assert len(first) * 7 <= FACTOR * WIDTH < (len(first) + 3) * 7 and len(first) < len(title) < 70


@pytest.mark.parametrize(('width', 'factor'), [(64, 4), (96, 2), (128, 2), (512, 1)])
def test_panels_are_enlarged_by_whole_factors_to_about_224_px_in_a_grid(width: int, factor: int) -> None:
    panels = np.random.default_rng(0).integers(255, size=(2, 3, 32, width, 3), dtype=np.uint8)
    sheet = sheets.image_sheet(panels)
    grid = sheet[(sheet < 255).any((1, 2))][:, (sheet < 255).any((0, 2))]  # without the white gaps
    expected = np.concatenate([np.concatenate(row, axis=1) for row in panels])
    assert np.array_equal(grid, expected.repeat(factor, 0).repeat(factor, 1))
    assert sheet.shape == (grid.shape[0] + 3 * GAP, grid.shape[1] + 4 * GAP, 3)


def test_empty_cells_stay_white_and_other_sizes_are_resized() -> None:
    small, large = np.full((32, 48, 3), 50, np.uint8), np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    sheet = sheets.image_sheet([[large, None], [None, small]])
    colours, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    area = FACTOR**2 * HEIGHT * WIDTH
    assert colours[:, 0].tolist() == [50, 100, 255] and counts[:2].tolist() == [area, area]


@pytest.mark.parametrize('suffix', ['.png', '.JPG', '.webp'])
def test_sheets_are_written_into_a_new_folder_and_as_a_whole(
    suffix: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    path = tmp_path / 'new' / f'sheet{suffix}'
    assert sheets.save_reconstruction_sheet([sample(0)], str(path), 'title') == path
    expected, content = sheets.reconstruction_sheet([sample(0)], 'title'), path.read_bytes()
    written = np.asarray(Image.open(path))
    assert written.shape == expected.shape and (suffix != '.png' or np.array_equal(written, expected))
    monkeypatch.setattr(sheets.os, 'replace', None)  # fails when the new file is complete
    with pytest.raises(TypeError):
        sheets.save_sheet(np.ones((2, 2, 3), np.uint8), path)
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_the_loss_curve_has_the_points_of_the_log(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Evaluations have no loss and are left out."""
    records = [dict(loss=1.25, step=5), {'accuracy/top1': 50.0, 'step': 1}, dict(loss=0.75, step=10)]
    (tmp_path / 'scalars.json').write_text(''.join(json.dumps(record) + '\n' for record in records))
    figures, render = [], sheets._render
    monkeypatch.setattr(sheets, '_render', lambda figure: figures.append(figure) or render(figure))
    path = sheets.save_loss_curve(tmp_path / 'scalars.json', tmp_path / 'loss.png')
    assert Image.open(path).size == (600, 350)
    (axis,) = figures[0].axes
    assert axis.lines[0].get_xydata().tolist() == [[5, 1.25], [10, 0.75]] and axis.get_title() == '1.250 → 0.750'


def test_errors(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = Path('new/sheet.png')
    for text in ('', '{"accuracy/top1": 50.0, "step": 1}\n'):
        Path('scalars.json').write_text(text)
        with pytest.raises(ValueError, match=r'scalars\.json has no line with a loss'):
            sheets.save_loss_curve('scalars.json', new)
    one, pixels = sample(0), np.zeros((2, 2, 3), np.uint8)
    lengths = r"columns have the lengths \{'a': 1, 'b': 2\}, but each must hold the same images"
    empty = 'samples is empty, but a sheet needs at least one reconstruction'
    for function, arguments, message in (
        (sheets.comparison_sheet, [{}], 'columns is empty or has an empty column'),
        (sheets.comparison_sheet, [{'a': [], 'b': []}], 'columns is empty or has an empty column'),
        (sheets.comparison_sheet, [{'a': [one], 'b': [one, one]}], lengths),
        (sheets.save_reconstruction_sheet, [[], new], empty),
        (sheets.save_sheet, [pixels, 'new/a.txt'], r"a\.txt has the suffix '\.txt', but .* written as \.png, \.jpg"),
        (sheets.save_sheet, [pixels, 'new/sheet'], "sheet has the suffix '', but a sheet is written as"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    assert not new.parent.exists()


@pytest.mark.parametrize('statistics', ['original', 'visible', None])
def test_a_sheet_says_where_the_mean_of_hidden_units_comes_from(statistics: str | None) -> None:
    """With norm_pix, in the title of a sheet of any kind; in a comparison above each column."""
    for made in (sample(), window_sample(5)):
        made.set_metainfo(dict(statistics=statistics))
        rows = list(sheets.window_panels(made)) if 'window_corner' in made else None
        note = {None: '', 'original': ', norm_pix: mean and contrast of each hidden unit are those of the original'}
        note['visible'] = ', norm_pix: mean and contrast of hidden units are the average of the visible ones'
        if rows:
            columns, title = ['image', *(f'window {i}' for i in (1, 2, 3, 4))], f'a, 4 of 5 windows{note[statistics]}'
            expected = sheets.image_sheet(rows, columns, ROWS, title)
        else:
            title = f'a{note[statistics]}'
            expected = sheets.image_sheet([sheets.reconstruction_panels(made)], COLUMNS, title=title)
        assert np.array_equal(sheets.reconstruction_sheet([made], 'a'), expected)
    other, short = sample(), {'original': "\nunits' mean: the original's", 'visible': "\nunits' mean: visible average"}
    other.set_metainfo(dict(statistics=statistics))
    columns = {'one': [sample()], 'two': [other]}
    panels = [sheets.reconstruction_panels(made) for made in (columns['one'][0], other)]
    rows = [[panels[0][0], *(made[2] for made in panels)], [None, *(made[4] for made in panels)]]
    expected = sheets.image_sheet(rows, ['original', 'one', f'two{short.get(statistics, "")}'], ROWS)
    assert np.array_equal(sheets.comparison_sheet(columns), expected)
