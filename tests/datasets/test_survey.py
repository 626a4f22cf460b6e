"""A look at the images before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_ummae.datasets import LoadCompleteImage, TorchRandomResizedCrop
from mm_ummae.datasets.image_files import load_batch
from mm_ummae.datasets.sampling import evenly_spaced, random_sample
from mm_ummae.datasets.survey import look_at_images, pixel_statistics
from tests.mixed_images import KINDS, make_mixed_images


@pytest.fixture(scope='module')
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = make_mixed_images(tmp_path_factory.mktemp('mixed'), 12)
    return sorted(path for path in folder.rglob('*.*') if path.suffix != '.txt')


def test_sizes_channels_and_depth_are_counted(mixed: list[Path]) -> None:
    survey = look_at_images(mixed)
    assert (survey.images, survey.read, survey.unreadable) == (12, 12, [])
    assert survey.channels == {1: 4, 3: 4, 4: 4} and survey.depths == {'uint8': 10, 'uint16': 2}
    low, high = survey.value_range
    assert 0 <= low < 1500 and 2500 < high <= 4080, 'values of 12 bits'
    assert 96 <= survey.sizes[0] <= survey.sizes[1] <= survey.sizes[2] <= 144
    assert '12 images; of 12 that were looked at: short side' in survey.text() and '2 uint16' in survey.text()
    assert set(KINDS) == {path.name.split('-', 1)[1] for path in mixed}


def test_a_sample_is_spread_over_the_list(mixed: list[Path]) -> None:
    assert evenly_spaced(range(10), 4) == [0, 3, 6, 9] and evenly_spaced([1, 2], 9) == [1, 2]
    assert look_at_images(mixed, sample=3).read == 3
    sample = random_sample(range(2000), 200)
    assert sample == sorted(set(sample)) == random_sample(range(2000), 200) and len(sample) == 200
    assert 70 < sum(place % 2 for place in sample) < 130, 'not every second one'
    assert random_sample([1, 2], 9) == [1, 2]


def test_damaged_images_are_counted_and_all_damaged_is_an_error(mixed: list[Path], tmp_path: Path) -> None:
    (tmp_path / 'bad.png').write_bytes(b'no image')
    survey = look_at_images([tmp_path / 'bad.png', *mixed])
    assert survey.unreadable == [str(tmp_path / 'bad.png')] and '1 cannot be decoded' in survey.text()
    with pytest.raises(ValueError, match=r'none of 1 images that were looked at can be decoded: .*bad.png'):
        look_at_images([tmp_path / 'bad.png'])


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3, 20, 30, 3)).astype(np.uint8)
    pixels[..., 0] //= 2
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f'{index}.png')
    mean, std = pixel_statistics(sorted(tmp_path.glob('*.png')), 3, None)
    assert np.allclose(mean, pixels.mean((0, 1, 2)), atol=1e-3) and np.allclose(std, pixels.std((0, 1, 2)), atol=1e-3)
    (grey,), _ = pixel_statistics(sorted(tmp_path.glob('*.png')), 1, None)
    assert grey == pytest.approx(pixels.mean((0, 1, 2)) @ (0.299, 0.587, 0.114), abs=0.1)


def test_statistics_of_an_empty_channel_are_refused(tmp_path: Path) -> None:
    Image.new('RGB', (8, 8), (9, 9, 9)).save(tmp_path / 'a.png')
    with pytest.raises(
        ValueError, match=r'standard deviation of \[0.0, 0.0, 0.0\] of 255 .*one is empty, or value_range'
    ):
        pixel_statistics([tmp_path / 'a.png'], 3, None)
    with pytest.raises(ValueError, match=r'a.png has 3 channels, but channels is 5'):
        pixel_statistics([tmp_path / 'a.png'], 5, None)


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (200, 3), (8, 8), (200, 6000)])
def test_images_of_any_size_are_read_cropped_and_counted(size: tuple[int, int], tmp_path: Path) -> None:
    """Down to a pixel; those that are too long for random crops are mentioned."""
    pixels = np.random.default_rng(0).integers(256, size=(*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    survey = look_at_images([tmp_path / 'a.png'])
    assert survey.sizes == (min(size),) * 3 and survey.elongated == (max(size) > 6 * min(size))
    assert ('1 are longer than 6:1, of which crops see the centre alone' in survey.text()) == survey.elongated
    load = LoadCompleteImage()
    for scale, shape in ((64, (64, 64)), ((96, 160), (96, 160))):
        crop = TorchRandomResizedCrop(scale, flip_prob=0.5, crop_ratio_range=(0.2, 1.0))
        boxes = {crop.rand_crop_params(pixels) for _ in range(20)}
        assert crop(load(dict(img_path=str(tmp_path / 'a.png'))))['img'].shape == (*shape, 3)
        assert not survey.elongated or len(boxes) == 1, 'the centre each time'
    batch = load_batch([tmp_path / 'a.png'], 64)['inputs'][0]
    assert batch.shape == (3, 64, 64)
    if size == (1, 1):
        assert (batch == batch[:, :1, :1]).all()
