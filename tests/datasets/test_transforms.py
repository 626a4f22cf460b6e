"""Loading: samples of the hosts' own loader. Cropping for pre-training: pixels of Pillow, boxes of MMPretrain."""

from __future__ import annotations

import errno
import random
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import fileio
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, DefaultScope
from mmpretrain.datasets.transforms import PackInputs, RandomResizedCrop
from PIL import Image
from pytest import MonkeyPatch

from mm_ummae.datasets import reading
from mm_ummae.datasets.transforms import LoadCompleteImage, TorchRandomResizedCrop
from tests.datasets.photographs import JPEGS, OTHERS, photograph
from tests.runs import leaf

AREAS = (0.2, 1.0)
SIDE = 64


HOSTS = {
    'mmpretrain': ('um-swin-test_classification_*', 'imagenet'),
    'mmdet': ('mask-rcnn_um-swin-test_*', 'coco'),
    'mmseg': ('upernet_um-swin-test_*', 'ade'),
}


@pytest.mark.parametrize('host', HOSTS)
def test_loading_in_the_pipelines_of_all_hosts(host: str, demo_data: Path, tmp_path: Path) -> None:
    """Packed samples are those of the hosts' own loader, bit by bit, with the backend of their recipes."""
    config, folder = HOSTS[host]
    backend = 'pillow' if host == 'mmpretrain' else 'cv2'
    cfg = Config.fromfile(leaf(config)).train_dataloader.dataset
    samples = []
    for load in ('LoadImageFromFile', 'mm_ummae.LoadCompleteImage'):
        pipeline = [dict(type=load, imdecode_backend=backend), *cfg.pipeline[1:]]
        with DefaultScope.overwrite_default_scope(host):
            dataset = DATASETS.build(dict(cfg, data_root=f'{demo_data / folder}/', pipeline=pipeline))
        info = dataset.get_data_info(0)
        paths = [info['img_path']]
        if host != 'mmseg':  # whose label map would need another size
            for kind, content in {**JPEGS, **OTHERS}.items():
                paths.append(str(tmp_path / kind.replace(':', '')))
                Path(paths[-1]).write_bytes(content)
        np.random.seed(0), random.seed(0)
        samples.append([dataset.pipeline(dict(deepcopy(info), img_path=path)) for path in paths])
    for theirs, ours in zip(*samples, strict=True):
        assert torch.equal(theirs['inputs'], ours['inputs'])
        for key in ('img_path', 'img_shape', 'ori_shape'):
            assert getattr(theirs['data_samples'], key) == getattr(ours['data_samples'], key)
        texts = [re.sub(' at 0x[0-9a-f]+', '', str(sample['data_samples'])) for sample in (theirs, ours)]
        assert texts[0] == texts[1]


def test_loading_adds_three_keys_and_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / 'image').write_bytes(JPEGS['orientation 6'])
    given = dict(img_path=str(tmp_path / 'image'), gt_label=3)
    results = LoadCompleteImage()(given)
    assert results.keys() - given.keys() == {'img', 'img_shape', 'ori_shape'} and results['gt_label'] == 3
    assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2] == (61, 45), 'rotated'
    with pytest.raises(FileNotFoundError):
        LoadCompleteImage()(dict(img_path=str(tmp_path / 'nothing.jpg')))


def test_a_read_that_fails_for_the_moment_is_tried_again(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    (tmp_path / 'image').write_bytes(JPEGS['grey'])
    answers = [OSError(errno.ESTALE, 'Stale file handle'), JPEGS['grey']]

    def get(path: str, backend_args: dict) -> bytes:
        assert backend_args == dict(backend='local')
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(fileio, 'get', get)
    monkeypatch.setattr(reading, 'PAUSES', (0.0,))
    load = LoadCompleteImage(backend_args=dict(backend='local'))
    assert load(dict(img_path='image'))['img'].shape == (45, 61, 3) and not answers


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
    with pytest.raises(ValueError, match="imdecode_backend is 'turbojpeg', but it must be pillow or cv2"):
        LoadCompleteImage('turbojpeg')
    with pytest.raises(ValueError, match="interpolation is 'lanczos', but it must be bicubic or bilinear"):
        TorchRandomResizedCrop(SIDE, interpolation='lanczos')
    text = repr(TorchRandomResizedCrop(SIDE, crop_ratio_range=AREAS, flip_prob=0.5))
    for part in ('TorchRandomResizedCrop(scale=(64, 64)', 'crop_ratio_range=(0.2, 1.0)', 'torch, flip_prob=0.5)'):
        assert part in text
    assert repr(LoadCompleteImage()) == (
        "LoadCompleteImage(imdecode_backend='pillow', backend_args=None, channels=3, value_range=None)"
    )
    with pytest.raises(ValueError, match='channels is 0, but an image has at least one'):
        LoadCompleteImage(channels=0)
    for wrong in ('full', (5, 5), (0, 1, 2), [(0, 1), (2, 3)], [(0, 1), (0, 1), (3, 2)]):
        with pytest.raises(ValueError, match=r'value_range is .*, but it must be None, percentile, \(low, high\)'):
            LoadCompleteImage(value_range=wrong)
