"""Search for image files, and batches prepared as in a test pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mm_ummae.datasets import PretrainImages, image_files
from mm_ummae.datasets.image_files import SUFFIXES, find_images, list_images, load_batch
from tests.datasets.dicoms import dicom


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


def test_links_are_followed_but_not_in_circles(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Files and folders elsewhere are found, once for each link; a folder that leads back to one above it is not."""
    other = tmp_path_factory.mktemp('other')
    (other / 'deep').mkdir()
    (other / 'deep' / '9.png').write_bytes(b'')
    names = ['1.jpeg', '2.PNG', '3.webp', 'b/0.png']
    assert list_images(folder, SUFFIXES) == names
    (folder / 'linked').symlink_to(other)
    (folder / 'linked again').symlink_to(other)
    (folder / 'file.png').symlink_to(other / 'deep' / '9.png')
    names += ['file.png', 'linked/deep/9.png', 'linked again/deep/9.png']
    assert list_images(folder, SUFFIXES) == sorted(names)
    for link, target in {
        folder / 'b' / 'self': folder / 'b',
        folder / 'b' / 'up': folder.parent,
        other / 'deep' / 'over there': folder / 'b',  # b is not above it, but leads to folders that are
        other / 'back': folder,
    }.items():
        link.symlink_to(target)
    # By way of linked/deep, b is reached a second and a third time, and its links lead back
    names += ['linked/deep/over there/0.png', 'linked again/deep/over there/0.png']
    assert list_images(folder, SUFFIXES) == sorted(names)
    assert [str(file.relative_to(folder)) for file in find_images(folder, 99)] == [
        str(file) for file in sorted(map(Path, names))
    ]


def test_links_that_are_left_out_are_logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(image_files, 'print_log', lambda text, logger, level=0: log.append(text))
    list_images(folder, SUFFIXES)
    assert log == [f'4 images below {folder}; 1 other files are left out (1 .txt)']
    log.clear()
    (folder / 'b' / 'loop').symlink_to(folder)
    assert list_images(str(folder), SUFFIXES) == ['1.jpeg', '2.PNG', '3.webp', 'b/0.png']
    assert log[:-1] == [
        f'1 links below {folder} are left out ({folder}/b/loop leads back to {folder.resolve()}, in which it lies)'
    ]
    log.clear()
    for name in ('gone', 'gone.png', 'round.png'):
        (folder / name).symlink_to(folder / name.replace('gone', 'nowhere'))
    list_images(folder, SUFFIXES)
    assert log[0].startswith(f'4 links below {folder} are left out (') and log[0].endswith('; ...)')
    assert f'{folder}/gone' in log[0] and 'leads nowhere' in log[0]


def test_every_kind_of_image_has_its_ending_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One list for training and drawing (field case 06); what is left out is counted by its ending."""
    log: list[str] = []
    monkeypatch.setattr(image_files, 'print_log', lambda text, logger: log.append(text))
    for index, suffix in enumerate(SUFFIXES):
        image = Image.new('RGB', (8, 8), (index, 0, 0))
        if suffix in ('.dcm', '.dicom'):
            (tmp_path / f'{index}{suffix}').write_bytes(dicom(np.asarray(image)))
        else:
            image.save(tmp_path / f'{index}{suffix}')
        shutil.copy(tmp_path / f'{index}{suffix}', tmp_path / f'{index}_upper{suffix.upper()}')
    for name in ('a.txt', 'b.TXT', 'c.mp4', 'README', '.hidden.png'):
        (tmp_path / name).write_bytes(b'')
    dataset = PretrainImages(data_root=str(tmp_path), pipeline=[dict(type='mm_ummae.LoadCompleteImage')])
    assert len(dataset) == len(find_images(tmp_path, 99)) == 2 * len(SUFFIXES)
    assert all(dataset[index]['img'].shape == (8, 8, 3) for index in range(len(dataset)))
    assert f'{2 * len(SUFFIXES)} images below {tmp_path}; 5 other files are left out (2 .txt, ' in log[-1]
    assert '1 .mp4' in log[-1] and '1 README' in log[-1] and '1 .png' in log[-1]


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
