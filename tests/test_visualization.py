"""Images of pre-training: each panel and sheet pixel by pixel, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmpretrain.structures import DataSample
from PIL import Image

from mm_ummae.visualization import sheets as visualization
from mm_ummae.masking import draw_uniform_mask
from mm_ummae.visualization.sheets import COLUMNS, DIM, GAP, GREY, ROWS, WINDOW_COLOURS, comparison_sheet, image_sheet, reconstruction_panels, reconstruction_sheet, save_loss_curve, save_reconstruction_sheet, save_sheet, window_panels
from mm_ummae.masking import draw_window_mask

HEIGHT, WIDTH = 64, 96
FACTOR = 2  # 2 x 96 px is nearer to 224 px than 96 px or 3 x 96 px


def sample(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> DataSample:
    """A reconstruction as UMMAE.predict makes it; colours 0..100 in the image, 150..250 in the prediction."""
    generator = torch.Generator().manual_seed(seed)
    mask = draw_uniform_mask(1, (height, width), generator=generator)
    made = DataSample(metainfo=dict(img_path=f'{seed}.jpg'))
    made.set_field(100 * torch.rand(3, height, width, generator=generator), 'image')
    made.set_field(150 + 100 * torch.rand(3, height, width, generator=generator), 'reconstruction')
    made.set_field(mask.unsampled().view(height // 16, -1), 'unsampled')
    made.set_field(mask.hidden().view(height // 16, -1), 'hidden')
    return made


def window_sample(windows: int = 2, seed: int = 0, patch: int = 8, size: int = 3) -> DataSample:
    """A reconstruction as LoMaR.predict makes it, with windows that do not overlap if there are two."""
    made = sample(seed)
    generator = torch.Generator().manual_seed(seed)
    grid = (HEIGHT // patch, WIDTH // patch)
    mask = draw_window_mask(1, grid, size, windows, generator=generator)
    corner = torch.tensor([[0, 2], [5, 7]]) if windows == 2 else mask.corner
    mask = mask._replace(corner=corner)
    side = size * patch
    masked = torch.zeros(windows, size * size, dtype=torch.bool).scatter(1, mask.masked, True)
    fields = dict(
        unsampled=mask.unsampled().view(grid),
        hidden=mask.hidden().view(grid),
        window_corner=corner,
        window_masked=masked.view(windows, size, size),
        window_reconstruction=150 + 100 * torch.rand(windows, 3, side, side, generator=generator),
    )
    for name, values in fields.items():
        made.set_field(values, name)
    return made


def places(sheet: np.ndarray, picture: np.ndarray, factor: int = FACTOR) -> list[tuple[int, int]]:
    """Top left corners, (row, column) in pixels, where the sheet shows the image with each pixel as a square."""
    drawn = np.kron(picture, np.ones((factor, factor, 1), np.uint8))
    height, width = drawn.shape[:2]
    # The sum of a window tells where it may be; only there all pixels are compared.
    total = np.pad(sheet.sum(2, dtype=np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    corners = np.argwhere(sums == drawn.sum(dtype=np.int64)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], drawn)]


def place(sheet: np.ndarray, picture: np.ndarray, factor: int = FACTOR) -> tuple[int, int]:
    """The only such corner."""
    (corner,) = places(sheet, picture, factor)
    return corner


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are rendered."""
    seen: list[Figure] = []
    render = visualization._render
    monkeypatch.setattr(visualization, '_render', lambda figure: (seen.append(figure), render(figure))[1])
    return seen


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


# Panels


def test_panels_pixel_by_pixel() -> None:
    """Unit by unit: what is grey, what is original, what is predicted."""
    made = sample()
    panels = dict(zip(COLUMNS, reconstruction_panels(made), strict=True))
    image = made.image.round().byte().permute(1, 2, 0).numpy()
    prediction = made.reconstruction.round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(panels['original'], image)
    assert np.array_equal(panels['prediction'], prediction)
    kinds = set()
    for row in range(HEIGHT // 16):
        for column in range(WIDTH // 16):
            unit = np.s_[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            unsampled, hidden = bool(made.unsampled[row, column]), bool(made.hidden[row, column])
            kinds.add((unsampled, hidden))
            grey = np.full_like(image[unit], GREY)
            assert np.array_equal(panels['sampled'][unit], grey if unsampled else image[unit])
            assert np.array_equal(panels['secondary-masked'][unit], grey if hidden else image[unit])
            assert np.array_equal(panels['pasted'][unit], prediction[unit] if hidden else image[unit])
    assert kinds == {(True, True), (False, True), (False, False)}
    assert all(panel.shape == (HEIGHT, WIDTH, 3) and panel.dtype == np.uint8 for panel in panels.values())


@pytest.mark.parametrize('side', [4, 8, 32])
def test_masks_may_be_of_patches_of_any_size(side: int) -> None:
    made = sample()
    made.hidden = torch.rand(HEIGHT // side, WIDTH // side) < 0.5
    made.unsampled = made.hidden & (torch.rand(HEIGHT // side, WIDTH // side) < 0.5)
    panels = dict(zip(COLUMNS, reconstruction_panels(made), strict=True))
    for name, mask in (('sampled', made.unsampled), ('secondary-masked', made.hidden)):
        grey = (panels[name] == GREY).all(2)  # colours of the image stay below
        assert np.array_equal(grey, np.kron(mask.numpy(), np.ones((side, side), bool)))


def test_windows_pixel_by_pixel() -> None:
    """Patch by patch: grey or original above, the window's own prediction below, and darkness around both."""
    made = window_sample()
    above, below = window_panels(made)
    image, *_, pasted = reconstruction_panels(made)
    assert len(above) == len(below) == 3 and np.array_equal(below[0], pasted)
    dark = image // DIM
    for i, (row, column) in enumerate(made.window_corner.tolist()):
        seen, predicted = above[i + 1], below[i + 1]
        top, left = 8 * row, 8 * column
        window = np.s_[top : top + 24, left : left + 24]
        assert np.array_equal(predicted[window], made.window_reconstruction[i].round().byte().permute(1, 2, 0).numpy())
        for y, x in np.ndindex(3, 3):
            patch = np.s_[top + 8 * y : top + 8 * y + 8, left + 8 * x : left + 8 * x + 8]
            expected = np.full_like(image[patch], GREY) if made.window_masked[i, y, x] else image[patch]
            assert np.array_equal(seen[patch], expected)
        # A line of one pixel around the window, nothing else
        around = np.ones((HEIGHT, WIDTH), bool)
        around[max(top - 1, 0) : top + 25, max(left - 1, 0) : left + 25] = False
        line = ~around
        line[window] = False
        for panel in (seen, predicted):
            assert np.array_equal(panel[around], dark[around]) and (panel[line] == WINDOW_COLOURS[i]).all()
        assert (above[0][line] == WINDOW_COLOURS[i]).all() and np.array_equal(above[0][window], image[window])
    lines = (above[0] != image).any(2).sum()
    assert lines == 2 * (25 * 26 - 24 * 24), 'each window touches a border of the image: no line there'


def test_values_are_rounded_and_clipped() -> None:
    made = sample()
    made.reconstruction = torch.full((3, HEIGHT, WIDTH), 300.0)
    made.reconstruction[0] = -5
    made.reconstruction[1] = 7.6
    prediction = reconstruction_panels(made)[3]
    assert prediction.reshape(-1, 3).min(0).tolist() == prediction.reshape(-1, 3).max(0).tolist() == [0, 8, 255]


# Sheets


def test_a_sheet_has_a_row_of_five_panels_for_each_sample(figures: list[Figure]) -> None:
    samples = [sample(0), sample(1), sample(2)]
    sheet = reconstruction_sheet(samples, 'epoch_3.pth')
    corners = np.array([[place(sheet, panel) for panel in reconstruction_panels(made)] for made in samples])
    assert corners.shape == (3, 5, 2)
    assert (corners[..., 0] == corners[:, :1, 0]).all() and (corners[..., 1] == corners[:1, :, 1]).all()
    assert (np.diff(corners[:, 0, 0]) > FACTOR * HEIGHT).all() and (np.diff(corners[0, :, 1]) > FACTOR * WIDTH).all()
    assert sheet.dtype == np.uint8 and texts(figures[0]) == ['epoch_3.pth', *COLUMNS]


def test_a_sheet_of_windows_has_two_rows_of_each_picture(figures: list[Figure]) -> None:
    samples = [window_sample(seed=0), window_sample(seed=1)]
    sheet = reconstruction_sheet(samples, 'epoch 3')
    rows = [row for made in samples for row in window_panels(made)]
    corners = np.array([[place(sheet, panel) for panel in row] for row in rows])  # (row, column, 2)
    assert corners.shape == (4, 3, 2)
    assert (corners[..., 0] == corners[:, :1, 0]).all() and (corners[..., 1] == corners[:1, :, 1]).all()
    assert (np.diff(corners[:, 0, 0]) > FACTOR * HEIGHT).all() and (np.diff(corners[0, :, 1]) > FACTOR * WIDTH).all()
    assert texts(figures[0]) == ['epoch 3', 'picture', 'window 1', 'window 2', *ROWS, *ROWS]


@pytest.mark.parametrize(('title', 'shown'), [('', '4 of 5 windows'), ('epoch 3', 'epoch 3, 4 of 5 windows')])
def test_a_sheet_names_the_windows_it_has_no_room_for(title: str, shown: str, figures: list[Figure]) -> None:
    sheet = reconstruction_sheet([window_sample(5)], title)
    assert texts(figures[0])[:6] == [shown, 'picture', *(f'window {i}' for i in (1, 2, 3, 4))]
    all_fit = reconstruction_sheet([window_sample(4)], title)
    assert sheet.shape[1] == all_fit.shape[1] and not any('of 4' in text for text in texts(figures[1]))


def test_titles_stand_above_their_columns_and_outside_the_panels() -> None:
    """Of each column and of the sheet: there is something dark, in the margin above the first panel."""
    panels = [np.full((HEIGHT, WIDTH, 3), 200, np.uint8)] * 3
    bare, titled = image_sheet([panels]), image_sheet([panels], ['one', 'two\nlines', 'three'], title='title')
    top = titled.shape[0] - bare.shape[0]
    assert top > 0 and (bare >= 200).all()
    assert np.array_equal(titled[top + GAP :], bare[GAP:]), 'a title runs into a panel'
    width = titled.shape[1] // 3
    for i in range(3):
        assert titled[top - 20 : top, i * width : (i + 1) * width].min() < 100, f'no title above column {i}'
    assert titled[: top - 36].min() < 100, 'no title above the sheet'


def test_row_titles_stand_left() -> None:
    panel = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    bare, titled = image_sheet([[panel], [panel]]), image_sheet([[panel], [panel]], row_titles=['above', 'below'])
    left = titled.shape[1] - bare.shape[1]
    assert left > 0 and np.array_equal(titled[:, left:], bare)
    half = titled.shape[0] // 2
    assert titled[:half, :left].min() < 100 and titled[half:, :left].min() < 100


def test_titles_that_are_too_wide_are_cut_in_the_middle(figures: list[Figure]) -> None:
    panel = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    long = f'a{"x" * 300}z'
    image_sheet([[panel, panel]], [f'{long}\nseed 0', 'short'], title=long)
    title, column, short = texts(figures[0])
    first, second = column.split('\n')
    assert short == 'short' and second == 'seed 0'
    for text in (title, first):
        assert text.startswith('ax') and text.endswith('xz') and '…' in text
    assert len(first) * 7 <= FACTOR * WIDTH < (len(first) + 3) * 7
    assert len(first) < len(title) < 70


def test_dollar_signs_are_not_mathematics() -> None:
    """Titles are file names."""
    panel = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert image_sheet([[panel]], ['$\\frac$'], title='a$b_c$').shape[2] == 3


@pytest.mark.parametrize(('width', 'factor'), [(64, 4), (96, 2), (128, 2), (224, 1), (256, 1), (512, 1)])
def test_panels_grow_by_whole_factors_to_about_224_px(width: int, factor: int) -> None:
    """And never shrink: a pixel of the image is a square of the sheet."""
    picture = np.random.default_rng(0).integers(256, size=(32, width, 3), dtype=np.uint8)
    assert len(places(image_sheet([[picture]]), picture, factor)) == 1


def test_an_empty_place_stays_white_and_other_sizes_are_fitted() -> None:
    small, large = np.full((32, 48, 3), 50, np.uint8), np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    sheet = image_sheet([[large, None], [None, small]])
    colours, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    area = FACTOR**2 * HEIGHT * WIDTH
    assert colours[:, 0].tolist() == [50, 100, 255] and counts[:2].tolist() == [area, area]


# Comparisons


def test_a_comparison_shows_what_each_sees_above_its_reconstruction(figures: list[Figure]) -> None:
    """Three columns of two images; the original once for each image, at the left."""
    columns = {f'model {i}\nmask seed {i}': [sample(10 * i), sample(10 * i + 1)] for i in range(3)}
    for samples in columns.values():
        for made, same in zip(samples, columns['model 0\nmask seed 0'], strict=True):
            made.image = same.image
    sheet = comparison_sheet(columns, 'title')
    seen = [[reconstruction_panels(made) for made in samples] for samples in columns.values()]
    above = np.array([[place(sheet, panels[2]) for panels in column] for column in seen])  # (column, image, 2)
    below = np.array([[place(sheet, panels[4]) for panels in column] for column in seen])
    originals = np.array([place(sheet, panels[0]) for panels in seen[0]])
    assert (above[..., 1] == below[..., 1]).all() and (above[..., 1] == above[:, :1, 1]).all()
    assert (above[..., 0] < below[..., 0]).all() and (below[:, 0, 0] < above[:, 1, 0]).all()
    assert (np.diff(above[:, 0, 1]) > FACTOR * WIDTH).all()
    assert (originals[:, 0] == above[0, :, 0]).all() and (originals[:, 1] < above[0, :, 1]).all()
    assert texts(figures[0]) == ['title', 'original', *columns, *ROWS, *ROWS]


def test_a_comparison_of_other_sizes_is_drawn_in_the_first_one() -> None:
    sheet = comparison_sheet({'large': [sample(0)], 'small': [sample(1, 32, 64)]})
    assert sheet.shape == comparison_sheet({'large': [sample(0)], 'other': [sample(1)]}).shape
    assert len(places(sheet, reconstruction_panels(sample(0))[4])) == 1


def test_a_comparison_shows_all_windows_together() -> None:
    """LoMaR beside another method: whole images, patches grey that no window shows."""
    lomar = window_sample(seed=0)
    sheet = comparison_sheet({'LoMaR': [lomar], 'UM-MAE': [sample(0)]})
    panels = reconstruction_panels(lomar)
    (above, left), (below, left_again) = place(sheet, panels[2]), place(sheet, panels[4])
    assert above < below and left == left_again
    assert place(sheet, reconstruction_panels(sample(0))[2])[0] == above


@pytest.mark.parametrize('columns', [{}, {'a': [], 'b': []}], ids=['no column', 'no sample'])
def test_empty_comparison(columns: dict) -> None:
    with pytest.raises(ValueError, match=r'columns is empty or has an empty one'):
        comparison_sheet(columns)


def test_comparison_of_different_pictures() -> None:
    with pytest.raises(ValueError, match=r"columns have the lengths \{'a': 1, 'b': 2\}, but each must hold the same"):
        comparison_sheet({'a': [sample(0)], 'b': [sample(0), sample(1)]})


# Files


def test_sheet_is_written_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'sheet.png'
    assert save_reconstruction_sheet([sample(0), sample(1)], str(path), 'epoch_3.pth') == path
    picture = Image.open(path)
    assert picture.format == 'PNG'
    assert np.array_equal(np.asarray(picture), reconstruction_sheet([sample(0), sample(1)], 'epoch_3.pth'))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('suffix', ['.jpg', '.PNG', '.webp'])
def test_other_formats(suffix: str, tmp_path: Path) -> None:
    sheet = np.full((20, 30, 3), 77, np.uint8)
    assert Image.open(save_sheet(sheet, tmp_path / f'sheet{suffix}')).size == (30, 20)


@pytest.mark.parametrize('name', ['sheet.txt', 'sheet'])
def test_unknown_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} has the suffix '.*', but a sheet is written as \.png, \.jpg"):
        save_sheet(np.zeros((2, 2, 3), np.uint8), tmp_path / 'new' / name)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_sheet(np.zeros((2, 2, 3), np.uint8), tmp_path / 'sheet.png')
    old = path.read_bytes()

    def write_half(_: Image.Image, target: Path) -> None:
        Path(target).write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(Image.Image, 'save', write_half)
    with pytest.raises(OSError, match=r'disk full'):
        save_sheet(np.ones((2, 2, 3), np.uint8), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_empty_sheet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'samples is empty, but a sheet needs at least one reconstruction'):
        save_reconstruction_sheet([], tmp_path / 'sheet.png')
    assert list(tmp_path.iterdir()) == []


def test_loss_curve(tmp_path: Path, figures: list[Figure]) -> None:
    """The points are those lines that have a loss, in order; evaluations have none."""
    records = [
        dict(loss=1.25, lr=0.1, step=5),
        {'accuracy/top1': 50.0, 'step': 1},
        dict(loss=0.75, lr=0.1, step=10),
        dict(loss=0.5, lr=0.1, step=15),
    ]
    scalars = tmp_path / 'scalars.json'
    scalars.write_text(''.join(json.dumps(record) + '\n' for record in records))
    path = save_loss_curve(scalars, tmp_path / 'loss.png')
    assert Image.open(path).size == (600, 350)
    (axis,) = figures[0].axes
    assert axis.lines[0].get_xydata().tolist() == [[5, 1.25], [10, 0.75], [15, 0.5]]
    assert axis.get_title() == '1.250 → 0.500'


@pytest.mark.parametrize('text', ['', '{"accuracy/top1": 50.0, "step": 1}\n'], ids=['empty', 'evaluation'])
def test_loss_curve_without_a_loss(text: str, tmp_path: Path) -> None:
    (tmp_path / 'scalars.json').write_text(text)
    with pytest.raises(ValueError, match=r'scalars\.json has no line with a loss'):
        save_loss_curve(tmp_path / 'scalars.json', tmp_path / 'loss.png')
    assert not (tmp_path / 'loss.png').exists()
