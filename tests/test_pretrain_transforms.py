"""Loading and cropping for pre-training: Pillow's pixels and verdict, MMPretrain's boxes and flips, in less time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmpretrain.datasets.transforms import PackInputs, RandomResizedCrop
from mmpretrain.utils import register_all_modules
from PIL import Image

from mm_ummae.datasets import transforms
from mm_ummae.datasets.transforms import LoadCompleteImage, TorchRandomResizedCrop

AREAS = (0.2, 1.0)
SIDE = 64


def photograph(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise of several scales with edges, (height, width, 3) uint8."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for cells in (3, 9, 27, 81):
        noise = generator.normal(scale=90 / cells**0.5, size=(cells, cells, 3))
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 5)
    return pixels.clip(0, 255).astype(np.uint8)


def encode(picture: Image.Image, form: str = 'JPEG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def load(content: bytes, folder: Path) -> dict:
    path = folder / 'picture'
    path.write_bytes(content)
    return LoadCompleteImage()(dict(img_path=str(path)))


def with_orientation(number: int) -> dict:
    exif = Image.Exif()
    exif[0x0112] = number
    return dict(exif=exif)


PICTURE = Image.fromarray(photograph(61, 45))
JPEGS = {
    '4:4:4': encode(PICTURE, subsampling='4:4:4'),
    '4:2:2': encode(PICTURE, subsampling='4:2:2'),
    '4:2:0': encode(PICTURE, subsampling='4:2:0'),
    'rough': encode(PICTURE, quality=10),
    'progressive': encode(PICTURE, progressive=True),
    'restart marks': encode(PICTURE, restart_marker_blocks=2),
    'grey': encode(PICTURE.convert('L')),
    **{f'orientation {number}': encode(PICTURE, **with_orientation(number)) for number in range(1, 9)},
}
OTHERS = {
    'CMYK': encode(PICTURE.convert('CMYK')),
    'PNG': encode(PICTURE, 'PNG'),
    'alpha': encode(PICTURE.convert('RGBA'), 'PNG'),
    'grey alpha': encode(PICTURE.convert('LA'), 'PNG'),
    'palette': encode(PICTURE.convert('P'), 'PNG'),
    'bits': encode(PICTURE.convert('1'), 'PNG'),
    '16 bits': encode(Image.fromarray(photograph(61, 45)[..., 0].astype(np.uint16)), 'PNG'),
    'turned PNG': encode(PICTURE, 'PNG', **with_orientation(6)),
    'WebP': encode(PICTURE, 'WEBP'),
    'BMP': encode(PICTURE, 'BMP'),
    'bytes behind the end': JPEGS['4:2:0'] + b'\0\0\n',
}


# Loading


@pytest.mark.parametrize('kind', [*JPEGS, *OTHERS])
def test_every_picture_has_the_pixels_that_pillow_reads(tmp_path: Path, kind: str) -> None:
    content = {**JPEGS, **OTHERS}[kind]
    results = load(content, tmp_path)
    assert np.array_equal(results['img'], mmcv.imfrombytes(content, backend='pillow'))
    assert results['img'].dtype == np.uint8 and results['img'].shape[2] == 3
    assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2]
    assert results['img_path'] == str(tmp_path / 'picture')


@pytest.mark.parametrize('kind', JPEGS)
def test_an_ordinary_jpeg_is_decoded_by_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.delattr(mmcv, 'imfrombytes')
    assert load(JPEGS[kind], tmp_path)['img'].flags.c_contiguous


def test_opencv_is_not_asked_where_it_reads_other_pixels() -> None:
    """Else the care for four inks would be for nothing."""
    opencv = cv2.imdecode(np.frombuffer(OTHERS['CMYK'], np.uint8), cv2.IMREAD_COLOR)
    assert not np.array_equal(opencv, mmcv.imfrombytes(OTHERS['CMYK'], backend='pillow'))


@pytest.mark.parametrize('kind', ['4:2:0', 'progressive', 'grey', 'CMYK'])
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    content = {**JPEGS, **OTHERS}[kind]
    with pytest.raises((OSError, SyntaxError)):
        load(content[: int(share * len(content))], tmp_path)


@pytest.mark.parametrize('missing', [1, 2, 200])
def test_a_file_without_its_end_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Whether OpenCV takes it depends on its version and on how it is asked."""
    monkeypatch.delattr(cv2, 'imdecode')
    with pytest.raises(OSError, match='truncated'):
        load(JPEGS['4:2:0'][:-missing], tmp_path)


def test_what_opencv_cannot_decode_is_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: None)
    assert np.array_equal(load(JPEGS['4:2:0'], tmp_path)['img'], mmcv.imfrombytes(JPEGS['4:2:0'], backend='pillow'))


def test_damage_before_the_end_mark_looks_as_to_pillow(tmp_path: Path) -> None:
    """What libjpeg takes for repairable, nobody above it hears of: neither worse nor better than before."""
    content = JPEGS['4:2:0'][: len(JPEGS['4:2:0']) * 3 // 4] + b'\xff\xd9'
    assert np.array_equal(load(content, tmp_path)['img'], mmcv.imfrombytes(content, backend='pillow'))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LoadCompleteImage()(dict(img_path=str(tmp_path / 'nothing.jpg')))


# Boxes and flips


def boxes_and_flips(crop: TorchRandomResizedCrop, image_shape: tuple[int, int], draws: int) -> tuple[list, list]:
    """Read from what reaches the resize and from what is written: top, left, height and width, and the flips."""
    height, width = image_shape  # at most 256: each pixel says where it is
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    boxes, flips, resize = [], [], transforms.interpolate

    def record(pixels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        top, left, _ = pixels[0, :, 0, 0].tolist()
        bottom, right, _ = pixels[0, :, -1, -1].tolist()
        assert tuple(pixels.shape[2:]) == (bottom - top + 1, right - left + 1)
        boxes.append((top, left, *pixels.shape[2:]))
        return resize(pixels, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, 'interpolate', record)
        for _ in range(draws):
            results = crop(dict(img=image))
            mirrored = results['img'][0, 0, 1] > results['img'][0, -1, 1]
            assert results['flip'] == mirrored and results['flip_direction'] == ('horizontal' if mirrored else None)
            flips.append(bool(mirrored))
    return boxes, flips


@pytest.mark.parametrize('shape', [(187, 250), (256, 90), (60, 256)], ids=str)
def test_the_same_seed_gives_the_boxes_and_flips_of_mmpretrain(shape: tuple[int, int]) -> None:
    np.random.seed(3)
    boxes, flips = boxes_and_flips(TorchRandomResizedCrop(8, crop_ratio_range=AREAS, flip_prob=0.5), shape, 50)
    np.random.seed(3)
    register_all_modules(init_default_scope=False)
    crop = RandomResizedCrop(8, crop_ratio_range=AREAS)
    flip = MMENGINE_TRANSFORMS.build(dict(type='mmpretrain.RandomFlip', prob=0.5))
    image, expected, expected_flips = np.zeros((*shape, 3), np.uint8), [], []
    for _ in range(50):
        expected.append(crop.rand_crop_params(image))
        expected_flips.append(flip(dict(img=image))['flip'])
    assert boxes == expected
    assert flips == expected_flips and len(set(flips)) == 2


def test_areas_ratios_and_places_are_distributed_as_those_of_mmpretrain() -> None:
    """Kolmogorov-Smirnov, other seeds, 1500 draws each: equal distributions differ by more once in a thousand."""
    draws, shape = 1500, (187, 250)
    np.random.seed(0)
    ours = np.array(boxes_and_flips(TorchRandomResizedCrop(4, crop_ratio_range=AREAS), shape, draws)[0], float)
    np.random.seed(1)
    crop, image = RandomResizedCrop(4, crop_ratio_range=AREAS), np.zeros((*shape, 3), np.uint8)
    theirs = np.array([crop.rand_crop_params(image) for _ in range(draws)], float)

    def largest_gap(of: Any) -> float:
        first, second = np.sort(of(*ours.T)), np.sort(of(*theirs.T))
        values = np.concatenate([first, second])
        counts = [np.searchsorted(each, values, side='right') for each in (first, second)]
        return np.abs(counts[0] - counts[1]).max() / draws

    limit = 1.95 * (2 / draws) ** 0.5
    assert largest_gap(lambda top, left, height, width: height * width) < limit
    assert largest_gap(lambda top, left, height, width: width / height) < limit
    assert largest_gap(lambda top, left, height, width: top + height / 2) < limit
    assert largest_gap(lambda top, left, height, width: left + width / 2) < limit
    # The test can tell: a range of areas that is a little narrower is found
    assert largest_gap(lambda top, left, height, width: np.maximum(height * width, 0.3 * 187 * 250)) < limit < 0.1


@pytest.mark.parametrize(('prob', 'share'), [(0, 0), (1, 1)])
def test_never_and_always_are_kept(prob: float, share: float) -> None:
    flips = boxes_and_flips(TorchRandomResizedCrop(8, flip_prob=prob), (60, 80), 20)[1]
    assert sum(flips) == share * 20


# Pixels


def rows_first(crop: np.ndarray, side: int) -> np.ndarray:
    """Pillow's bicubic filter along the rows, then along the columns."""
    wide = Image.fromarray(crop).resize((side, len(crop)), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize('side', [SIDE, 224])
def test_pixels_are_those_of_pillow(side: int) -> None:
    """To a tenth of a level of 255 in the mean, and to two levels anywhere if Pillow takes the rows first, too."""
    image = photograph(500, 375)
    theirs = RandomResizedCrop(side, crop_ratio_range=AREAS, interpolation='bicubic', backend='pillow')
    ours = TorchRandomResizedCrop(side, crop_ratio_range=AREAS)
    for seed in range(8):
        np.random.seed(seed)
        top, left, height, width = theirs.rand_crop_params(image)
        np.random.seed(seed)
        expected = theirs(dict(img=image))['img'].astype(int)
        np.random.seed(seed)
        pixels = ours(dict(img=image))['img'].astype(int)
        assert pixels.shape == (side, side, 3)
        assert np.abs(pixels - expected).mean() < 0.1
        assert np.abs(pixels - expected).max() <= 32
        same_order = rows_first(np.ascontiguousarray(image[top : top + height, left : left + width]), side)
        assert np.abs(pixels - same_order).max() <= 2


def test_the_whole_pipeline_gives_the_samples_of_the_one_before(tmp_path: Path) -> None:
    """From the file to the packed sample, beside Pillow for decoding and resizing and MMPretrain's flip."""
    Image.fromarray(photograph(250, 187)).save(tmp_path / 'picture', 'JPEG', quality=95, subsampling='4:2:0')
    register_all_modules(init_default_scope=False)
    crop = dict(scale=SIDE, crop_ratio_range=AREAS, interpolation='bicubic')
    before = [
        dict(type='mmpretrain.LoadImageFromFile', imdecode_backend='pillow'),
        dict(type='mmpretrain.RandomResizedCrop', backend='pillow', **crop),
        dict(type='mmpretrain.RandomFlip', prob=0.5),
        dict(type='mmpretrain.PackInputs'),
    ]
    after = [
        dict(type='mm_ummae.LoadCompleteImage'),
        dict(type='mm_ummae.TorchRandomResizedCrop', flip_prob=0.5, **crop),
        dict(type='mmpretrain.PackInputs'),
    ]
    samples = []
    for steps in (before, after):
        pipeline = [MMENGINE_TRANSFORMS.build(step) for step in steps]
        np.random.seed(0)
        draws = []
        for _ in range(10):
            results = dict(img_path=str(tmp_path / 'picture'))
            for step in pipeline:
                results = step(results)
            draws.append(results)
        samples.append(draws)
    flips = set()
    for old, new in zip(*samples, strict=True):
        assert new['inputs'].dtype == torch.uint8 and new['inputs'].shape == (3, SIDE, SIDE)
        assert (new['inputs'].float() - old['inputs'].float()).abs().mean() < 0.1
        for name in ('img_path', 'ori_shape', 'flip', 'flip_direction'):
            assert new['data_samples'].get(name) == old['data_samples'].get(name), name
        assert tuple(new['data_samples'].img_shape) == (SIDE, SIDE)
        flips.add(new['data_samples'].flip)
    assert flips == {False, True}


@pytest.mark.parametrize('flip_prob', [0, 1])
def test_packing_copies_nothing_and_the_loaded_picture_stays(flip_prob: float) -> None:
    image = photograph(100, 80)
    before = image.copy()
    results = TorchRandomResizedCrop((40, 56), flip_prob=flip_prob)(dict(img=image))
    assert results['img'].shape == (40, 56, 3) and results['img_shape'] == (40, 56)
    packed = PackInputs()(results)['inputs']
    assert packed.data_ptr() == results['img'].ctypes.data and packed.is_contiguous()
    assert np.array_equal(image, before)


def test_a_picture_that_is_a_view_is_cropped_as_its_copy() -> None:
    """Pillow's path gives colours in reversed order."""
    view = photograph(100, 80)[:, :, ::-1]
    draws = []
    for image in (view, view.copy()):
        np.random.seed(0)
        draws.append(TorchRandomResizedCrop(SIDE)(dict(img=image))['img'])
    assert np.array_equal(*draws)


# Arguments


@pytest.mark.parametrize('prob', [-0.1, 1.5])
def test_a_flip_probability_out_of_range_is_named(prob: float) -> None:
    with pytest.raises(ValueError, match=rf'flip_prob is {prob}, but it must be in \[0, 1\]'):
        TorchRandomResizedCrop(SIDE, flip_prob=prob)


def test_an_interpolation_that_pytorch_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="interpolation is 'lanczos', but it must be bicubic or bilinear"):
        TorchRandomResizedCrop(SIDE, interpolation='lanczos')


def test_the_settings_are_shown() -> None:
    text = repr(TorchRandomResizedCrop(SIDE, crop_ratio_range=AREAS, flip_prob=0.5))
    for part in (
        'TorchRandomResizedCrop(scale=(64, 64)',
        'crop_ratio_range=(0.2, 1.0)',
        'backend=torch, flip_prob=0.5)',
    ):
        assert part in text
    assert repr(LoadCompleteImage()) == 'LoadCompleteImage(backend_args=None)'
