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
from PIL import Image
from pytest import MonkeyPatch

from mm_ummae.datasets import transforms
from mm_ummae.datasets.transforms import LoadCompleteImage, TorchRandomResizedCrop

AREAS = (0.2, 1.0)
SIDE = 64


def photograph(width: int, height: int) -> np.ndarray:
    """Smooth noise with edges, (height, width, 3) uint8."""
    noise = np.random.default_rng(0).integers(256, size=(27, 27, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 5)
    return pixels


def encode(image: Image.Image, form: str = 'JPEG', orientation: int = 1, **options: Any) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def load(content: bytes, folder: Path) -> dict:
    (folder / 'image').write_bytes(content)
    return LoadCompleteImage()(dict(img_path=str(folder / 'image')))


IMAGE = Image.fromarray(photograph(61, 45))
JPEGS = {
    '4:4:4': encode(IMAGE, subsampling='4:4:4'),
    '4:2:0': encode(IMAGE, subsampling='4:2:0'),
    'low quality': encode(IMAGE, quality=10, subsampling='4:2:2'),
    'progressive': encode(IMAGE, progressive=True),
    'restart markers': encode(IMAGE, restart_marker_blocks=2),
    'grey': encode(IMAGE.convert('L')),
    **{f'orientation {number}': encode(IMAGE, orientation=number) for number in range(1, 9)},
}
OTHERS = {
    'CMYK': encode(IMAGE.convert('CMYK')),
    'PNG': encode(IMAGE, 'PNG', orientation=6),
    'bytes after the end': JPEGS['4:2:0'] + b'\0\0\n',
}


def check_loaded(results: dict, content: bytes) -> None:
    expected = mmcv.imfrombytes(content, backend='pillow')
    assert np.array_equal(results['img'], expected) and results['img'].dtype == np.uint8
    assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2] == expected.shape[:2]


@pytest.mark.parametrize('files', [JPEGS, OTHERS], ids=['by OpenCV', 'by Pillow'])
def test_every_format_has_the_pixels_that_pillow_reads(
    tmp_path: Path, monkeypatch: MonkeyPatch, files: dict[str, bytes]
) -> None:
    for kind, content in files.items():
        with monkeypatch.context() as patch:
            patch.delattr(*((mmcv, 'imfrombytes') if files is JPEGS else (cv2, 'imdecode')))
            results = load(content, tmp_path)
        check_loaded(results, content)
        assert results['img_path'] == str(tmp_path / 'image')
        assert results['img'].flags.c_contiguous or files is OTHERS, kind


@pytest.mark.parametrize('kind', ['4:2:0', 'progressive', 'grey', 'CMYK'])
def test_a_truncated_file_is_rejected(tmp_path: Path, monkeypatch: MonkeyPatch, kind: str) -> None:
    """By Pillow: whether OpenCV accepts it depends on the version and the call."""
    content = {**JPEGS, **OTHERS}[kind]
    monkeypatch.delattr(cv2, 'imdecode')
    for length in (0, len(content) // 10, len(content) // 2, len(content) - 200, len(content) - 2, len(content) - 1):
        with pytest.raises((OSError, SyntaxError)):
            load(content[:length], tmp_path)


def test_files_between_good_and_truncated(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Damage before the end marker, and what OpenCV cannot decode, are read as by Pillow."""
    content = JPEGS['4:2:0']
    damaged = content[: len(content) * 3 // 4] + transforms.END_OF_JPEG
    check_loaded(load(damaged, tmp_path), damaged)
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: None)
    check_loaded(load(content, tmp_path), content)
    with pytest.raises(FileNotFoundError):
        LoadCompleteImage()(dict(img_path=str(tmp_path / 'nothing.jpg')))


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
        pixels = ours(dict(img=image))['img'].astype(int)
        assert pixels.shape == (side, side, 3)
        crop = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
        assert np.abs(pixels - crop.resize((side, side), Image.Resampling.BICUBIC)).mean() < 0.1
        rows = crop.resize((side, height), Image.Resampling.BICUBIC)
        assert np.abs(pixels - np.asarray(rows.resize((side, side), Image.Resampling.BICUBIC))).max() <= 2


@pytest.mark.parametrize('size', [(250, 187), (256, 60)], ids=str)
def test_the_whole_pipeline_gives_the_samples_of_mmpretrain(tmp_path: Path, size: tuple[int, int]) -> None:
    """From the file to the packed sample: the same boxes and flips for a seed, and pixels of Pillow."""
    Image.fromarray(photograph(*size)).save(tmp_path / 'image', 'JPEG', quality=95, subsampling='4:2:0')
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
        states.append(np.random.rand())
    assert states[0] == states[1]
    for old, new in zip(*samples, strict=True):
        assert new['inputs'].dtype == torch.uint8 and new['inputs'].shape == (3, SIDE, SIDE)
        assert (new['inputs'].float() - old['inputs'].float()).abs().mean() < 0.3
        for name in ('img_path', 'ori_shape', 'flip', 'flip_direction'):
            assert new['data_samples'].get(name) == old['data_samples'].get(name), name
        assert tuple(new['data_samples'].img_shape) == (SIDE, SIDE)
    assert {sample['data_samples'].flip for sample in samples[1]} == {False, True}


@pytest.mark.parametrize('flip_prob', [0, 1])
def test_packing_copies_nothing_and_the_loaded_image_is_not_modified(flip_prob: float) -> None:
    """Also of a view with reversed channels, as Pillow's decoding gives it."""
    view, crops = photograph(100, 80)[:, :, ::-1], []
    before = view.copy()
    for image in (view, view.copy()):
        np.random.seed(0)
        results = TorchRandomResizedCrop((40, 56), flip_prob=flip_prob)(dict(img=image))
        assert results['img'].shape == (40, 56, 3) and results['img_shape'] == (40, 56)
        packed = PackInputs()(results)['inputs']
        assert packed.data_ptr() == results['img'].ctypes.data and packed.is_contiguous()
        assert results['flip'] is bool(flip_prob) and np.array_equal(image, before)
        crops.append(packed)
    assert torch.equal(*crops)


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
