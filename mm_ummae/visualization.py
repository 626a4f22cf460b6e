"""Pictures of pre-training: what was masked, what was predicted, and the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.masking import UNIT

matplotlib.use('Agg')  # files only: works without a screen
import matplotlib.pyplot as plt

COLUMNS = ('original', 'sampled', 'secondary-masked', 'prediction', 'pasted')
GREY = 128  # colour of what the encoder does not see


def reconstruction_panels(sample: DataSample) -> list[np.ndarray]:
    """The five pictures of one reconstruction.

    Args:
        sample (DataSample): From :meth:`UMMAE.predict`, RGB.
    Returns:
        list[np.ndarray]: (H, W, 3) uint8 each, named by ``COLUMNS``: the original; the sampled units; those that
        stay visible after Secondary Masking; the prediction of every unit; the prediction with visible units pasted in.
    """
    image, prediction = _to_picture(sample.image), _to_picture(sample.reconstruction)
    unsampled, hidden = (_to_pixels(mask) for mask in (sample.unsampled, sample.hidden))
    return [
        image,
        np.where(unsampled, np.uint8(GREY), image),
        np.where(hidden, np.uint8(GREY), image),
        prediction,
        np.where(hidden, prediction, image),
    ]


def save_reconstruction_sheet(samples: Sequence[DataSample], path: str | Path, title: str = '') -> Path:
    """Write one row of five pictures for each sample.

    Args:
        samples (Sequence[DataSample]): From :meth:`UMMAE.predict`.
        path (str | Path): PNG file to write.
        title (str): Shown above the sheet. Default ''.
    Returns:
        Path: The file.
    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError('samples is empty, but a sheet needs at least one reconstruction')
    rows = len(samples)
    figure, axes = plt.subplots(rows, len(COLUMNS), figsize=(2 * len(COLUMNS), 2 * rows + 0.6), squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        for axis, panel in zip(row, reconstruction_panels(sample), strict=True):
            axis.imshow(panel, interpolation='nearest')
            axis.set_axis_off()
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def save_loss_curve(scalars: str | Path, path: str | Path) -> Path:
    """Draw the training loss that MMEngine logged.

    Args:
        scalars (str | Path): ``vis_data/scalars.json`` of a run, one JSON object a line.
        path (str | Path): PNG file to write.
    Returns:
        Path: The file.
    Raises:
        ValueError: If no line has a loss.
    """
    records = [json.loads(line) for line in Path(scalars).read_text().splitlines()]
    points = [(record['step'], record['loss']) for record in records if 'loss' in record]
    if not points:
        raise ValueError(f'{scalars} has no line with a loss')
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(*zip(*points, strict=True))
    axis.set(xlabel='iteration', ylabel='reconstruction loss', title=f'{points[0][1]:.3f} → {points[-1][1]:.3f}')
    axis.grid(alpha=0.3)
    return _save(figure, path)


def _save(figure: plt.Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _to_picture(values: Tensor) -> np.ndarray:
    """(3, H, W) in 0..255 -> (H, W, 3) uint8."""
    return values.detach().round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _to_pixels(mask: Tensor) -> np.ndarray:
    """(H / 16, W / 16) -> (H, W, 1)."""
    return mask.cpu().numpy().repeat(UNIT, 0).repeat(UNIT, 1)[..., None]
