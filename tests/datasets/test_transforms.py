"""Loading and cropping for pre-training: pixels and strictness of Pillow, boxes and flips of MMPretrain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
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


def encode(image: Image.Image, form: str = 'JPEG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def load(content: bytes, folder: Path) -> dict:
    (folder / 'image').write_bytes(content)
    return LoadCompleteImage()(dict(img_path=str(folder / 'image')))


def by_pillow(content: bytes) -> np.ndarray:
    return mmcv.imfrombytes(content, backend='pillow')


def with_orientation(number: int) -> dict:
    exif = Image.Exif()
    exif[0x0112] = number
    return dict(exif=exif)


IMAGE = Image.fromarray(photograph(61, 45))
JPEGS = {
    '4:4:4': encode(IMAGE, subsampling='4:4:4'),
    '4:2:2': encode(IMAGE, subsampling='4:2:2'),
    '4:2:0': encode(IMAGE, subsampling='4:2:0'),
    'low quality': encode(IMAGE, quality=10),
    'progressive': encode(IMAGE, progressive=True),
    'restart markers': encode(IMAGE, restart_marker_blocks=2),
    'grey': encode(IMAGE.convert('L')),
    **{f'orientation {number}': encode(IMAGE, **with_orientation(number)) for number in range(1, 9)},
}
OTHERS = {
    'CMYK': encode(IMAGE.convert('CMYK')),
    'PNG': encode(IMAGE, 'PNG'),
    'alpha': encode(IMAGE.convert('RGBA'), 'PNG'),
    'grey alpha': encode(IMAGE.convert('LA'), 'PNG'),
    'palette': encode(IMAGE.convert('P'), 'PNG'),
    'one bit': encode(IMAGE.convert('1'), 'PNG'),
    '16 bits': encode(Image.fromarray(photograph(61, 45)[..., 0].astype(np.uint16)), 'PNG'),
    'rotated PNG': encode(IMAGE, 'PNG', **with_orientation(6)),
    'WebP': encode(IMAGE, 'WEBP'),
    'BMP': encode(IMAGE, 'BMP'),
    'bytes after the end': JPEGS['4:2:0'] + b'\0\0\n',
}


# Loading


@pytest.mark.parametrize('files', [JPEGS, OTHERS], ids=['by OpenCV', 'by Pillow'])
def test_every_format_has_the_pixels_that_pillow_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    expected = {kind: by_pillow(content) for kind, content in files.items()}
    monkeypatch.delattr(*((mmcv, 'imfrombytes') if files is JPEGS else (cv2, 'imdecode')))
    for kind, content in files.items():
        results = load(content, tmp_path)
        assert np.array_equal(results['img'], expected[kind]), kind
        assert results['img'].dtype == np.uint8 and results['img'].shape[2] == 3, kind
        assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2], kind
        assert results['img_path'] == str(tmp_path / 'image')
        assert results['img'].flags.c_contiguous or files is OTHERS, kind


def test_opencv_would_read_other_pixels_from_cmyk() -> None:
    opencv = cv2.imdecode(np.frombuffer(OTHERS['CMYK'], np.uint8), cv2.IMREAD_COLOR)
    assert not np.array_equal(opencv, by_pillow(OTHERS['CMYK']))


@pytest.mark.parametrize('kind', ['4:2:0', 'progressive', 'grey', 'CMYK'])
def test_a_truncated_file_is_rejected(tmp_path: Path, kind: str) -> None:
    content = {**JPEGS, **OTHERS}[kind]
    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        with pytest.raises((OSError, SyntaxError)):
            load(content[: int(share * len(content))], tmp_path)


@pytest.mark.parametrize('missing', [1, 2, 200])
def test_a_file_without_its_end_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Whether OpenCV accepts it depends on the version and the call."""
    monkeypatch.delattr(cv2, 'imdecode')
    with pytest.raises(OSError, match='truncated'):
        load(JPEGS['4:2:0'][:-missing], tmp_path)


def test_what_opencv_cannot_decode_is_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: None)
    assert np.array_equal(load(JPEGS['4:2:0'], tmp_path)['img'], by_pillow(JPEGS['4:2:0']))


def test_damage_before_the_end_marker_is_repaired_as_by_pillow(tmp_path: Path) -> None:
    content = JPEGS['4:2:0'][: len(JPEGS['4:2:0']) * 3 // 4] + transforms.END_OF_JPEG
    assert np.array_equal(load(content, tmp_path)['img'], by_pillow(content))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LoadCompleteImage()(dict(img_path=str(tmp_path / 'nothing.jpg')))


# Boxes, flips and pixels


@pytest.mark.parametrize('side', [SIDE, 224])
def test_pixels_are_those_of_pillow(side: int) -> None:
    """Within 0.1 of 255 levels on average, and within two levels everywhere if Pillow resizes the rows first."""
    image = photograph(500, 375)
    theirs = RandomResizedCrop(side, crop_ratio_range=AREAS, interpolation='bicubic', backend='pillow')
    ours = TorchRandomResizedCrop(side, crop_ratio_range=AREAS)
    for seed in range(6):
        np.random.seed(seed)
        top, left, height, width = theirs.rand_crop_params(image)
        np.random.seed(seed)
        expected = theirs(dict(img=image))['img'].astype(int)
        np.random.seed(seed)
        pixels = ours(dict(img=image))['img'].astype(int)
        assert pixels.shape == (side, side, 3)
        assert np.abs(pixels - expected).mean() < 0.1
        assert np.abs(pixels - expected).max() <= 32
        crop = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
        rows = crop.resize((side, height), Image.Resampling.BICUBIC)
        assert np.abs(pixels - np.asarray(rows.resize((side, side), Image.Resampling.BICUBIC))).max() <= 2


@pytest.mark.parametrize('size', [(250, 187), (256, 60), (90, 256)], ids=str)
def test_the_whole_pipeline_gives_the_samples_of_mmpretrain(tmp_path: Path, size: tuple[int, int]) -> None:
    """From the file to the packed sample: the same boxes and flips for a seed, and pixels of Pillow."""
    Image.fromarray(photograph(*size)).save(tmp_path / 'image', 'JPEG', quality=95, subsampling='4:2:0')
    register_all_modules(init_default_scope=False)
    crop = dict(scale=SIDE, crop_ratio_range=AREAS, interpolation='bicubic')
    theirs = [
        dict(type='mmpretrain.LoadImageFromFile', imdecode_backend='pillow'),
        dict(type='mmpretrain.RandomResizedCrop', backend='pillow', **crop),
        dict(type='mmpretrain.RandomFlip', prob=0.5),
    ]
    ours = [
        dict(type='mm_ummae.LoadCompleteImage'),
        dict(type='mm_ummae.TorchRandomResizedCrop', flip_prob=0.5, **crop),
    ]
    samples, states = [], []
    for steps in (theirs, ours):
        pipeline = Compose([*steps, dict(type='mmpretrain.PackInputs')])
        np.random.seed(0)
        samples.append([pipeline(dict(img_path=str(tmp_path / 'image'))) for _ in range(20)])
        states.append(np.random.get_state()[1:3])
    assert np.array_equal(states[0][0], states[1][0]) and states[0][1] == states[1][1]
    for old, new in zip(*samples, strict=True):
        assert new['inputs'].dtype == torch.uint8 and new['inputs'].shape == (3, SIDE, SIDE)
        assert (new['inputs'].float() - old['inputs'].float()).abs().mean() < 0.3
        for name in ('img_path', 'ori_shape', 'flip', 'flip_direction'):
            assert new['data_samples'].get(name) == old['data_samples'].get(name), name
        assert tuple(new['data_samples'].img_shape) == (SIDE, SIDE)
    assert {sample['data_samples'].flip for sample in samples[1]} == {False, True}


@pytest.mark.parametrize('flip_prob', [0, 1])
def test_packing_copies_nothing_and_the_loaded_image_is_not_modified(flip_prob: float) -> None:
    image = photograph(100, 80)
    before = image.copy()
    results = TorchRandomResizedCrop((40, 56), flip_prob=flip_prob)(dict(img=image))
    assert results['img'].shape == (40, 56, 3) and results['img_shape'] == (40, 56)
    packed = PackInputs()(results)['inputs']
    assert results['flip'] is bool(flip_prob)
    assert packed.data_ptr() == results['img'].ctypes.data and packed.is_contiguous()
    assert np.array_equal(image, before)


def test_a_view_is_cropped_like_its_copy() -> None:
    """Pillow's decoding gives a view with reversed channels."""
    view, crops = photograph(100, 80)[:, :, ::-1], []
    for image in (view, view.copy()):
        np.random.seed(0)
        crops.append(TorchRandomResizedCrop(SIDE)(dict(img=image))['img'])
    assert np.array_equal(*crops)


def test_arguments_are_checked_and_shown() -> None:
    for prob in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf'flip_prob is {prob}, but it must be in \[0, 1\]'):
            TorchRandomResizedCrop(SIDE, flip_prob=prob)
    with pytest.raises(ValueError, match="interpolation is 'lanczos', but it must be bicubic or bilinear"):
        TorchRandomResizedCrop(SIDE, interpolation='lanczos')
    text = repr(TorchRandomResizedCrop(SIDE, crop_ratio_range=AREAS, flip_prob=0.5))
    for part in ('TorchRandomResizedCrop(scale=(64, 64)', 'crop_ratio_range=(0.2, 1.0)', 'torch, flip_prob=0.5)'):
        assert part in text
    assert repr(LoadCompleteImage()) == 'LoadCompleteImage(backend_args=None)'
