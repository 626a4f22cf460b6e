"""A sample that cannot be loaded: the file to blame and its damage, in the demo's pipelines of all three hosts."""

from __future__ import annotations

import errno
import io
import re
import shutil
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv.transforms import TRANSFORMS
from mmdet.datasets import MultiImageMixDataset
from mmengine.config import Config
from mmengine.dataset import Compose, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from mm_ummae.datasets.damaged import DataError, describe_failure, find_damage
from mm_ummae.datasets.reading import UnreadableFileError
from tests.runs import leaf

HOSTS = {
    'mmpretrain': ('um-swin-test_classification_*', 'imagenet'),
    'mmdet': ('mask-rcnn_um-swin-test_*', 'coco'),
    'mmseg': ('upernet_um-swin-test_*', 'ade'),
}
HTML = b'<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>'
KINDS = {
    'empty': 'is empty',
    'truncated': r'is truncated \(\d+ bytes are there\)',
    'truncated in the header': r'is truncated \(100 bytes are there\)',
    'zeroed': r'holds nothing but \d+ zero bytes',
    'text': r"is not an image: it begins with b'a note\\na note\\na note\\n",
    'html': r"is not an image: it begins with b'<!DOCTYPE html>\\n<html><head><title>404",
    'truncated png': r'is truncated \(\d+ bytes are there\)',
}
REMEDY = r'\. Copy or download the file again, or remove it from the data and their annotations'


def damage(content: bytes, kind: str) -> bytes:
    if kind == 'truncated png':
        png = io.BytesIO()
        Image.open(io.BytesIO(content)).save(png, 'PNG')
        content = png.getvalue()
    half = len(content) // 2
    return {
        'empty': b'',
        'truncated': content[:half],
        'truncated in the header': content[:100],
        'truncated png': content[:half],
        'zeroed': bytes(half),
        'zeroed half': content[:half] + bytes(half),
        'text': 20 * b'a note\n',
        'html': HTML,
    }[kind]


@pytest.fixture(scope='module')
def datasets(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Training sets of the demo's configs, on copies of its data."""
    root = shutil.copytree(demo_data, tmp_path_factory.mktemp('damaged') / 'demo')
    built = {}
    for host, (config, folder) in HOSTS.items():
        cfg = Config.fromfile(leaf(config)).train_dataloader.dataset
        with DefaultScope.overwrite_default_scope(host):
            built[host] = DATASETS.build(dict(cfg, data_root=f'{root / folder}/'))
    return built


def failure(dataset: Any, index: int = 0) -> Exception:
    """What the user reads in place of the error of ``dataset[index]``."""
    with pytest.raises(Exception) as raised:
        dataset[index]
    return describe_failure(dataset, index, raised.value)


Replace = Callable[[str, bytes | None], None]


@pytest.fixture
def replace() -> Iterator[Replace]:
    """Gives files another content, or removes them, for one test."""
    saved: dict[Path, bytes] = {}

    def write(path: str, content: bytes | None) -> None:
        file = Path(path)
        saved.setdefault(file, file.read_bytes())
        file.unlink() if content is None else file.write_bytes(content)

    yield write
    for file, content in saved.items():
        file.write_bytes(content)


@pytest.mark.parametrize('host', HOSTS)
def test_a_damaged_image_is_named_with_its_damage(host: str, datasets: dict, replace: Replace) -> None:
    path = datasets[host].get_data_info(0)['img_path']
    content = Path(path).read_bytes()
    for kind, text in KINDS.items():
        replace(path, damage(content, kind))
        error = failure(datasets[host])
        assert isinstance(error, ValueError)
        assert re.match(f'the image {path} {text}.*{REMEDY}', str(error)), (kind, str(error))
    replace(path, None)
    assert re.match(
        rf'the image {path} cannot be read \(FileNotFoundError: .*\. Check path and storage, or remove the file',
        str(failure(datasets[host])),
    )


def test_a_damaged_label_map_is_named(datasets: dict, replace: Replace) -> None:
    """The image before it is intact."""
    path = datasets['mmseg'].get_data_info(0)['seg_map_path']
    content = Path(path).read_bytes()
    for kind, text in KINDS.items():
        if kind != 'truncated png':  # it is one
            replace(path, damage(content, kind))
            assert re.match(f'the label map {path} {text}', str(failure(datasets['mmseg']))), kind
    replace(path, None)
    assert str(failure(datasets['mmseg'])).startswith(f'the label map {path} cannot be read (FileNotFoundError: ')


def test_a_stuff_map_that_opencv_cannot_decode(datasets: dict, replace: Replace, tmp_path: Path) -> None:
    """MMDetection's transform fails on it with an AttributeError."""
    info = datasets['mmdet'].get_data_info(0)
    pipeline = Compose([dict(type='mmdet.LoadImageFromFile')])
    pipeline.transforms.append(TRANSFORMS.build(dict(type='mmdet.LoadAnnotations', with_bbox=False, with_seg=True)))
    info['seg_map_path'] = str(tmp_path / 'map.png')
    (tmp_path / 'map.png').write_bytes(HTML)

    class OneSample:
        def __getitem__(self, index: int) -> dict:
            return pipeline(dict(info))

    assert str(failure(OneSample())).startswith(f'the label map {tmp_path / "map.png"} is not an image: it begins with')


def test_the_file_is_found_through_wrappers(datasets: dict, replace: Replace) -> None:
    """Of MMEngine, MMDetection and PyTorch; some have no records of their own."""
    dataset = datasets['mmdet']
    path, size = dataset.get_data_info(1)['img_path'], len(dataset)
    replace(path, b'')
    for wrapper, index in (
        (RepeatDataset(dataset, 2), size + 1),
        (ConcatDataset([dataset, dataset]), size + 1),
        (Subset(dataset, [0, 1]), 1),
        (MultiImageMixDataset(dataset, []), 1),
    ):
        assert str(failure(wrapper, index)).startswith(f'the image {path} is empty'), type(wrapper)


def test_the_file_that_failed_is_named_and_not_the_requested_one(datasets: dict, replace: Replace) -> None:
    """A host draws another image in place of one that a transform refuses."""
    dataset = copy(datasets['mmseg'])
    refused, path = (dataset.get_data_info(index)['img_path'] for index in (0, 1))
    dataset.pipeline = Compose([])
    dataset.pipeline.transforms = [
        lambda results: None if results['img_path'] == refused else results,
        *datasets['mmseg'].pipeline.transforms,
    ]
    dataset._rand_another = lambda: 1
    replace(path, b'')
    assert str(failure(dataset)).startswith(f'the image {path} is empty')


def test_mistakes_in_transforms_are_not_blamed_on_the_file(datasets: dict) -> None:
    dataset = copy(datasets['mmpretrain'])
    path = dataset.get_data_info(0)['img_path']
    dataset.pipeline = Compose([])
    dataset.pipeline.transforms = [datasets['mmpretrain'].pipeline.transforms[0], lambda results: results['labels']]
    assert str(failure(dataset)) == (
        f"the sample of {path} cannot be prepared (KeyError: 'labels'). Its files are intact as far as they were read: "
        "check the transforms of the dataset's pipeline and the annotations of this image"
    )


def test_a_read_that_fails_without_a_name_is_that_of_the_file_to_be_loaded() -> None:
    """An error of reading an open file has no name; the image is loaded already."""

    class Fails(Dataset):
        def __getitem__(self, index: int) -> None:
            results = dict(img_path='a.jpg', img=np.zeros((2, 2, 3)), seg_map_path='a.png')  # noqa: F841
            raise OSError(errno.ESTALE, 'Stale file handle')

    assert str(failure(Fails())).startswith('the label map a.png cannot be read (OSError: ')


def test_other_errors() -> None:
    """Of storage, of the dataset as a whole, and of datasets without files."""

    class Fails(Dataset):
        def __init__(self, error: Exception) -> None:
            self.error = error

        def __getitem__(self, index: int) -> None:
            results = dict(img_path='a.jpg')  # noqa: F841, as in a transform
            raise self.error

    stale = OSError(errno.ESTALE, 'Stale file handle')
    message = f'the image a.jpg cannot be read (OSError: [Errno {errno.ESTALE}] Stale file handle). Check path'
    assert str(failure(Fails(stale))).startswith(message)
    named = UnreadableFileError('b.jpg cannot be read, 4 attempts failed (TimeoutError: )')
    assert str(failure(Fails(named))).startswith(f'{named}. Check path and storage')
    whole = DataError('10 files in a row cannot be read')
    assert repr(failure(Fails(whole))) == repr(whole)
    error = failure([], 3)
    assert str(error) == 'sample 3 of list cannot be loaded (IndexError: list index out of range)'


def test_the_message_reaches_the_main_process(datasets: dict, replace: Replace) -> None:
    """PyTorch builds the error anew from its type and text."""

    class Named(Dataset):
        def __init__(self, dataset: Any) -> None:
            self.dataset = dataset

        def __len__(self) -> int:
            return len(self.dataset)

        def __getitem__(self, index: int) -> dict:
            try:
                return self.dataset[index]
            except Exception as error:
                raise describe_failure(self.dataset, index, error) from error

    path = datasets['mmseg'].get_data_info(0)['img_path']
    replace(path, b'')
    with pytest.raises(ValueError, match=f'the image {path} is empty.*') as raised:
        next(iter(DataLoader(Named(datasets['mmseg']), num_workers=1, timeout=60)))
    assert 'imdecode' in str(raised.value), 'with the traceback of the original error'


def test_damage_of_content(datasets: dict) -> None:
    content = Path(datasets['mmseg'].get_data_info(0)['img_path']).read_bytes()
    assert find_damage(content) is None
    png = io.BytesIO()
    Image.open(io.BytesIO(content)).save(png, 'PNG')
    broken = bytearray(png.getvalue())
    broken[200:260] = bytes(60)
    assert find_damage(bytes(broken)).startswith('cannot be decoded (')
