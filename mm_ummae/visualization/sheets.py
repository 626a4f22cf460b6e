"""Sheets of images as arrays and files: reconstructions, comparisons of checkpoints, loss curves.

A *panel* is one image of a sheet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmpretrain.structures import DataSample
from PIL import Image
from torch import Tensor

COLUMNS = ('original', 'sampled', 'secondary-masked', 'prediction', 'pasted')
ROWS = ('encoder sees', 'reconstruction')
GREY = 128  # of pixels that the encoder does not see
DIM = 4  # pixels outside a local window are divided by this
# With `norm_pix`: where the mean and the contrast of hidden units come from, in the title of a sheet and of a column
NOTES = dict(
    original='norm_pix: mean and contrast of each hidden unit are those of the original',
    visible='norm_pix: mean and contrast of hidden units are the average of the visible ones',
)
SHORT_NOTES = dict(original="units' mean: the original's", visible="units' mean: visible average")
# Borders of LoMaR's local windows, RGB; a sheet shows at most as many windows as there are colours
WINDOW_COLOURS = ((255, 70, 70), (70, 220, 90), (90, 130, 255), (255, 190, 40))
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')  # of the files sheets are written to

# Layout of a sheet in pixels
PANEL = 224  # target width of a panel; images are enlarged by whole factors only
GAP = 6
LINE = 18  # height of a line of text
LETTER = 7  # average width of a letter
DPI = 100


def reconstruction_panels(sample: DataSample) -> list[np.ndarray]:
    """The five panels of one reconstruction.

    Args:
        sample (DataSample): Result of :meth:`UMMAE.predict`, :meth:`UMSimMIM.predict` or :meth:`LoMaR.predict`, RGB.
    Returns:
        list[np.ndarray]: (H, W, 3) uint8 each, in the order of ``COLUMNS``: the original; the sampled units; the
        units still visible after secondary masking; the prediction of all units; the prediction with the visible units
        pasted in. For LoMaR a unit is a patch, and a patch visible in any window counts as sampled and visible.
    """
    image, prediction = _to_array(sample.image), _to_array(sample.reconstruction)
    unsampled, hidden = (_to_pixels(mask, len(image)) for mask in (sample.unsampled, sample.hidden))
    return [
        image,
        np.where(unsampled, np.uint8(GREY), image),
        np.where(hidden, np.uint8(GREY), image),
        prediction,
        np.where(hidden, prediction, image),
    ]


def window_panels(sample: DataSample) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The panels of one LoMaR reconstruction, window by window.

    Args:
        sample (DataSample): Result of :meth:`LoMaR.predict`, RGB.
    Returns:
        tuple[list[np.ndarray], list[np.ndarray]]: Two rows of (H, W, 3) uint8. Upper row: the original with a border
        around each window, then for each window the input of the encoder, with masked patches grey and the outside of
        the window dark. Lower row: the mean prediction of all windows with the visible patches pasted in, then the
        prediction of each window. At most ``len(WINDOW_COLOURS)`` windows are shown.
    """
    image, *_, pasted = reconstruction_panels(sample)
    outlined, above, below = image, [], []
    windows = zip(
        WINDOW_COLOURS, sample.window_corner.tolist(), sample.window_masked, sample.window_reconstruction, strict=False
    )
    for colour, corner, masked, reconstruction in windows:
        prediction = _to_array(reconstruction)
        size = len(prediction)
        top, left = (place * size // len(masked) for place in corner)
        inside = np.s_[top : top + size, left : left + size]
        seen = np.where(_to_pixels(masked, size), np.uint8(GREY), image[inside])
        above.append(_in_window(image // DIM, inside, seen, colour))
        below.append(_in_window(image // DIM, inside, prediction, colour))
        outlined = _in_window(outlined, inside, outlined[inside], colour)
    return [outlined, *above], [pasted, *below]


def reconstruction_sheet(samples: Sequence[DataSample], title: str = '') -> np.ndarray:
    """Draw one row of five panels per sample, or two rows of local windows for LoMaR.

    Args:
        samples (Sequence[DataSample]): See :func:`reconstruction_panels` and, for LoMaR, :func:`window_panels`.
        title (str): Title above the sheet. With ``norm_pix`` a note is added, where the mean and the contrast of hidden
            units come from. Default ''.
    Returns:
        np.ndarray: (height, width, 3) uint8.
    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError('samples is empty, but a sheet needs at least one reconstruction')
    if 'window_corner' in samples[0]:
        rows = [row for sample in samples for row in window_panels(sample)]
        shown, drawn = len(rows[0]) - 1, len(samples[0].window_corner)
        if shown < drawn:
            title = _joined(title, f'{shown} of {drawn} windows')
        title = _joined(title, NOTES.get(samples[0].get('statistics'), ''))
        return image_sheet(rows, ['image', *(f'window {i + 1}' for i in range(shown))], ROWS * len(samples), title)
    title = _joined(title, NOTES.get(samples[0].get('statistics'), ''))
    return image_sheet([reconstruction_panels(sample) for sample in samples], COLUMNS, title=title)


def comparison_sheet(columns: Mapping[str, Sequence[DataSample]], title: str = '') -> np.ndarray:
    """Draw reconstructions of the same images side by side, one column per checkpoint and mask seed.

    Each image takes two rows: the input of the encoder, and below it the prediction with this input pasted in.

    Args:
        columns (Mapping[str, Sequence[DataSample]]): From the title of a column, which may have several lines, to its
            samples.
        title (str): Title above the sheet. Default ''.
    Returns:
        np.ndarray: (height, width, 3) uint8.
    Raises:
        ValueError: If there is no column, a column is empty, or the columns differ in length.
    """
    if not columns or not all(columns.values()):
        raise ValueError('columns is empty or has an empty column, but a sheet needs at least one reconstruction')
    counts = {name: len(samples) for name, samples in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f'columns have the lengths {counts}, but each must hold the same images')
    rows = []
    for samples in zip(*columns.values(), strict=True):
        panels = [reconstruction_panels(sample) for sample in samples]
        rows.append([panels[0][0], *(panel[2] for panel in panels)])
        rows.append([None, *(panel[4] for panel in panels)])
    notes = [SHORT_NOTES.get(samples[0].get('statistics'), '') for samples in columns.values()]
    titles = [f'{name}\n{note}' if note else name for name, note in zip(columns, notes, strict=True)]
    return image_sheet(rows, ['original', *titles], ROWS * (len(rows) // 2), title)


def image_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    title: str = '',
) -> np.ndarray:
    """Arrange images in a grid without interpolation, unless their sizes differ.

    Args:
        rows (Sequence[Sequence[np.ndarray | None]]): Rows of equal length of (H, W, 3) uint8 images; None leaves
            a cell of the grid empty. All are drawn at the size of the first one.
        column_titles (Sequence[str]): Titles above the columns. Lines wider than an image are shortened in the middle.
        row_titles (Sequence[str]): Titles to the left of the rows, rotated.
        title (str): Title above the sheet. Default ''.
    Returns:
        np.ndarray: (height, width, 3) uint8.
    """
    first = next(panel for row in rows for panel in row if panel is not None)
    factor = max(1, round(PANEL / first.shape[1]))
    height, width = (side * factor for side in first.shape[:2])
    titles = [[_shorten(line, width // LETTER) for line in text.split('\n')] for text in column_titles]
    left = (LINE if row_titles else 0) + GAP
    lines = max(map(len, titles), default=0)
    top = bool(title) * (LINE + GAP) + lines * LINE + GAP
    columns = max(map(len, rows))
    size = (left + columns * (width + GAP), top + len(rows) * (height + GAP))

    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, **style: object) -> None:
        figure.text(x / size[0], 1 - y / size[1], text, parse_math=False, **style)

    if title:
        write(size[0] / 2, GAP, _shorten(title, size[0] // LETTER), fontsize=10, ha='center', va='top')
    for i, text in enumerate(titles):
        x = left + i * (width + GAP) + width / 2
        write(x, top - GAP / 2, '\n'.join(text), fontsize=9, ha='center', va='bottom', linespacing=1.3)
    for i, text in enumerate(row_titles):
        y = top + i * (height + GAP) + height / 2
        write(GAP, y, text, fontsize=9, ha='left', va='center', rotation=90)
    sheet = _render(figure)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            if panel is not None:
                y, x = top + i * (height + GAP), left + j * (width + GAP)
                sheet[y : y + height, x : x + width] = _resize(panel, height, width)
    return sheet


def save_reconstruction_sheet(samples: Sequence[DataSample], path: str | Path, title: str = '') -> Path:
    """Write the sheet of :func:`reconstruction_sheet`.

    Args:
        samples (Sequence[DataSample]): See :func:`reconstruction_panels`.
        path (str | Path): File to write.
        title (str): Title above the sheet. Default ''.
    Returns:
        Path: The file.
    Raises:
        ValueError: If there is no sample, or the suffix of the file is not one of ``SUFFIXES``.
    """
    return save_sheet(reconstruction_sheet(samples, title), path)


def save_loss_curve(scalars: str | Path, path: str | Path) -> Path:
    """Draw the training loss that MMEngine logged.

    Args:
        scalars (str | Path): ``vis_data/scalars.json`` of a run, one JSON object per line.
        path (str | Path): File to write.
    Returns:
        Path: The file.
    Raises:
        ValueError: If no line has a loss, or the suffix of the file is not one of ``SUFFIXES``.
    """
    records = [json.loads(line) for line in Path(scalars).read_text().splitlines()]
    points = [(record['step'], record['loss']) for record in records if 'loss' in record]
    if not points:
        raise ValueError(f'{scalars} has no line with a loss')
    figure = Figure(figsize=(6, 3.5), dpi=DPI, layout='tight')
    axis = figure.subplots()
    axis.plot(*zip(*points, strict=True))
    axis.set(xlabel='iteration', ylabel='reconstruction loss', title=f'{points[0][1]:.3f} → {points[-1][1]:.3f}')
    axis.grid(alpha=0.3)
    return save_sheet(_render(figure), path)


def check_sheet_path(path: str | Path) -> Path:
    """Return the path if its suffix is that of a format in which sheets are written.

    Raises:
        ValueError: If the suffix is not one of ``SUFFIXES``.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f'{path} has the suffix {path.suffix!r}, but a sheet is written as {", ".join(SUFFIXES)}')
    return path


def save_sheet(sheet: np.ndarray, path: str | Path) -> Path:
    """Write a sheet atomically: the file is either complete or absent.

    Args:
        sheet (np.ndarray): (height, width, 3) uint8.
        path (str | Path): File to write; its folder is created.
    Returns:
        Path: The file.
    Raises:
        ValueError: If the suffix is not one of ``SUFFIXES``.
    """
    path = check_sheet_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.stem}-{os.getpid()}{path.suffix}')
    try:
        Image.fromarray(sheet).save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _render(figure: Figure) -> np.ndarray:
    """Render to (height, width, 3) uint8 without pyplot, which would change the backend of a notebook."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if height % image.shape[0] or width % image.shape[1]:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return image.repeat(height // image.shape[0], 0).repeat(width // image.shape[1], 1)


def _joined(*texts: str) -> str:
    return ', '.join(filter(None, texts))


def _shorten(text: str, letters: int) -> str:
    if len(text) <= letters:
        return text
    half = max(letters - 1, 2) // 2
    return f'{text[:half]}…{text[-half:]}'


def loaded_colours(images: Tensor) -> np.ndarray:
    """Images as a pipeline loads them, in colours: (N, C, H, W) uint8, BGR if C is 3 -> (N, H, W, 3) uint8 RGB."""
    return np.stack([_to_array(image.flip(0) if len(image) == 3 else image) for image in images])


def _to_array(values: Tensor) -> np.ndarray:
    """(C, H, W) in 0..255 -> (H, W, 3) uint8: of one or two channels the first as grey, of more the first three."""
    channels = [0, 1, 2] if len(values) >= 3 else [0, 0, 0]
    return values[channels].detach().round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _to_pixels(mask: Tensor, height: int) -> np.ndarray:
    """From square units or patches to pixels: (h, w) -> (H, W, 1)."""
    side = height // len(mask)
    return mask.cpu().numpy().repeat(side, 0).repeat(side, 1)[..., None]


def _in_window(
    image: np.ndarray, inside: tuple[slice, slice], content: np.ndarray, colour: tuple[int, int, int]
) -> np.ndarray:
    """Copy of an image with new content inside a window and a border just outside it."""
    image = image.copy()
    width = max(len(image) // 112, 1)  # two pixels of the sheet for images of 112 and of 224 px
    image[tuple(slice(max(side.start - width, 0), side.stop + width) for side in inside)] = colour
    image[inside] = content
    return image
