"""Search for image files, and batches prepared as in a test pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mm_ummae.datasets.image_files import find_images, load_batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of 40x60 px in two folders, and a text file."""
    (tmp_path / 'b').mkdir()
    for i, name in enumerate(('b/0.png', '2.PNG', '1.jpeg', '3.webp')):
        pixels = np.random.default_rng(i).integers(256, size=(40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def test_images_are_found_below_a_folder_in_order(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in find_images(folder, 9)]
    assert names == ['1.jpeg', '2.PNG', '3.webp', 'b/0.png']
    assert find_images(folder, 2) == [folder / '1.jpeg', folder / '2.PNG']
    assert find_images(str(folder / 'notes.txt'), 1) == [folder / 'notes.txt'], 'a named file is taken as it is'


def test_a_batch_is_resized_by_the_short_side_and_cropped_in_the_centre(folder: Path) -> None:
    batch = load_batch([folder / 'b' / '0.png', str(folder / '2.PNG')], 20)
    assert batch['inputs'].shape == (2, 3, 20, 20) and batch['inputs'].dtype == torch.uint8
    small = Image.open(folder / 'b' / '0.png').resize((30, 20), Image.Resampling.BICUBIC).crop((5, 0, 25, 20))
    assert np.array_equal(batch['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1], np.asarray(small))  # BGR
    assert [Path(sample.img_path).name for sample in batch['data_samples']] == ['0.png', '2.PNG']


def test_wrong_arguments(folder: Path) -> None:
    (folder / 'empty').mkdir()
    image, text = folder / '2.PNG', folder / 'notes.txt'
    for function, arguments, error, message in (
        (find_images, (folder / 'empty', 1), FileNotFoundError, 'empty is neither an image nor a folder with im'),
        (find_images, (folder / 'nowhere', 1), FileNotFoundError, 'nowhere is neither an image nor a folder with'),
        (find_images, (folder, 0), ValueError, 'limit is 0, but at least one image is needed'),
        (load_batch, ([], 20), ValueError, 'images is empty, but it must name at least one image file'),
        (load_batch, ([image], 0), ValueError, 'image_size is 0, but a side must be positive'),
        (load_batch, ([image, text], 20), ValueError, r'the image .*notes\.txt cannot be read: \w+: '),
    ):
        with pytest.raises(error, match=message):
            function(*arguments)
