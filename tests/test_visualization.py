"""Pictures of pre-training: each panel pixel by pixel, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from PIL import Image

from mm_ummae.masking import draw_uniform_mask
from mm_ummae.visualization import (
    COLUMNS,
    GREY,
    reconstruction_panels,
    save_loss_curve,
    save_reconstruction_sheet,
)

HEIGHT, WIDTH = 64, 96


def sample(seed: int = 0) -> DataSample:
    """A reconstruction as UMMAE.predict makes it; colours 0..100 in the picture, 150..250 in the prediction."""
    generator = torch.Generator().manual_seed(seed)
    mask = draw_uniform_mask(1, (HEIGHT, WIDTH), generator=generator)
    made = DataSample(metainfo=dict(img_path=f'{seed}.jpg'))
    made.set_field(100 * torch.rand(3, HEIGHT, WIDTH, generator=generator), 'image')
    made.set_field(150 + 100 * torch.rand(3, HEIGHT, WIDTH, generator=generator), 'reconstruction')
    made.set_field(mask.unsampled().view(HEIGHT // 16, -1), 'unsampled')
    made.set_field(mask.hidden().view(HEIGHT // 16, -1), 'hidden')
    return made


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


def test_values_are_rounded_and_clipped() -> None:
    made = sample()
    made.reconstruction = torch.full((3, HEIGHT, WIDTH), 300.0)
    made.reconstruction[0] = -5
    made.reconstruction[1] = 7.6
    prediction = reconstruction_panels(made)[3]
    assert prediction.reshape(-1, 3).min(0).tolist() == prediction.reshape(-1, 3).max(0).tolist() == [0, 8, 255]


def test_sheet_is_written_into_a_new_folder(tmp_path: Path) -> None:
    """Ten inches wide, two for each row and a title's height, at 100 pixels per inch; no figure stays open."""
    figures = plt.get_fignums()
    path = tmp_path / 'new' / 'sheet.png'
    assert save_reconstruction_sheet([sample(0), sample(1), sample(2)], str(path), 'epoch_3.pth') == path
    picture = Image.open(path)
    assert (picture.format, picture.size) == ('PNG', (1000, 660))
    colours = np.asarray(picture.convert('RGB')).reshape(-1, 3)
    assert (colours == GREY).all(1).sum() > 10_000, 'no masked units to see'
    assert plt.get_fignums() == figures


def test_sheet_of_one(tmp_path: Path) -> None:
    assert Image.open(save_reconstruction_sheet([sample()], tmp_path / 'sheet.png')).size == (1000, 260)


def test_empty_sheet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'samples is empty, but a sheet needs at least one reconstruction'):
        save_reconstruction_sheet([], tmp_path / 'sheet.png')
    assert list(tmp_path.iterdir()) == []


def test_loss_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The points are those lines that have a loss, in order; evaluations have none."""
    records = [
        dict(loss=1.25, lr=0.1, step=5),
        {'accuracy/top1': 50.0, 'step': 1},
        dict(loss=0.75, lr=0.1, step=10),
        dict(loss=0.5, lr=0.1, step=15),
    ]
    scalars = tmp_path / 'scalars.json'
    scalars.write_text(''.join(json.dumps(record) + '\n' for record in records))
    drawn: list = []
    close = plt.close
    monkeypatch.setattr(plt, 'close', lambda figure: (drawn.append(figure), close(figure)))
    path = save_loss_curve(scalars, tmp_path / 'loss.png')
    assert Image.open(path).size == (600, 350)
    (axis,) = drawn[0].axes
    assert axis.lines[0].get_xydata().tolist() == [[5, 1.25], [10, 0.75], [15, 0.5]]
    assert axis.get_title() == '1.250 → 0.500'


@pytest.mark.parametrize('text', ['', '{"accuracy/top1": 50.0, "step": 1}\n'], ids=['empty', 'evaluation'])
def test_loss_curve_without_a_loss(text: str, tmp_path: Path) -> None:
    (tmp_path / 'scalars.json').write_text(text)
    with pytest.raises(ValueError, match=r'scalars\.json has no line with a loss'):
        save_loss_curve(tmp_path / 'scalars.json', tmp_path / 'loss.png')
    assert not (tmp_path / 'loss.png').exists()
