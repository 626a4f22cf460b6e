"""No file executes code: every entrance of a checkpoint is tried with a file that would leave a mark."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mmpretrain.apis
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from PIL import Image

import mm_ummae
from mm_ummae.checkpoints import convert_checkpoint, read_checkpoint
from mm_ummae.registry import MODELS
from tests.runs import CLASSIFY, PRETRAIN, ROOT

Tool = Callable[[str], ModuleType]
DETECTOR = ROOT / 'configs/demo/mask-rcnn_um-swin-test_1xb8-200it_demo-128px.py'
SEGMENTOR = ROOT / 'configs/demo/upernet_um-swin-test_1xb8-150it_demo-128px.py'


class Canary:
    """Leaves a mark where it is restored."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(params=['zip', 'before-1.6'])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file that looks like a run's checkpoint."""
    (tmp_path / 'run').mkdir()
    path = tmp_path / 'run' / 'epoch_1.pth'
    content = dict(
        meta=dict(epoch=1, iter=1), state_dict=dict(a=torch.ones(1)), optimizer={}, canary=Canary(tmp_path / 'mark')
    )
    torch.save(content, path, _use_new_zipfile_serialization=request.param == 'zip')
    (path.parent / 'last_checkpoint').write_text(str(path))
    Image.new('RGB', (128, 128)).save(tmp_path / 'image.png')
    return path


@pytest.fixture
def address(file: Path) -> Iterator[str]:
    """The file on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=file.parent))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}/{file.name}'
    server.shutdown()
    thread.join()
    server.server_close()


def train(file: Path, tool: Tool, *options: str, flags: tuple[str, ...] = ()) -> None:
    root = file.parents[1]
    for number in range(2):
        (root / 'data').mkdir(exist_ok=True)
        Image.new('RGB', (128, 128)).save(root / 'data' / f'{number}.png')
    options = (
        f'train_dataloader.dataset.data_root={root}/',
        'train_dataloader.dataset.data_prefix=data',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        *options,
    )
    tool('train').main([str(PRETRAIN), '--work-dir', str(file.parent), *flags, '--cfg-options', *options])


def evaluate(file: Path, tool: Tool) -> None:
    folder = file.parents[1] / 'val' / 'class'
    folder.mkdir(parents=True)
    Image.new('RGB', (128, 128)).save(folder / '0.png')
    options = (f'test_dataloader.dataset.data_root={file.parents[1]}/', 'test_dataloader.num_workers=0')
    options = (*options, 'test_dataloader.persistent_workers=False')
    tool('test').main([str(CLASSIFY), str(file), '--work-dir', str(file.parent / 'test'), '--cfg-options', *options])


def build(config: Path, part: str, file: Path) -> None:
    """Build a model one of whose parts starts from the file."""
    cfg = Config.fromfile(config)
    model = cfg.model
    model.backbone.init_cfg = None
    init = dict(type='Pretrained', checkpoint=str(file))
    (model if part == 'model' else model[part]).init_cfg = init
    MODELS.build(dict(model, _scope_=cfg.default_scope)).init_weights()


def mmdet_detector(file: Path) -> None:
    from mmdet.apis import init_detector

    init_detector(str(DETECTOR), str(file), device='cpu')


def mmseg_segmentor(file: Path) -> None:
    from mmseg.apis import init_model

    init_model(str(SEGMENTOR), str(file), device='cpu')


ENTRANCES: dict[str, Callable[[Path, Tool], Any]] = {
    'read_checkpoint': lambda file, tool: read_checkpoint(file),
    'convert_checkpoint': lambda file, tool: convert_checkpoint(file, file.with_name('other.pth')),
    'tools/convert_checkpoint.py': lambda file, tool: tool('convert_checkpoint').main(
        [str(file), str(file.with_name('other.pth'))]
    ),
    'tools/train.py load_from': lambda file, tool: train(file, tool, f'load_from={file}'),
    'tools/train.py --resume': lambda file, tool: train(file, tool, flags=('--resume',)),
    'tools/train.py --resume FILE': lambda file, tool: train(file, tool, flags=('--resume', str(file))),
    'MMEngine runner --resume': lambda file, tool: train(
        file, tool, 'runner_type=mmengine.Runner', flags=('--resume', str(file))
    ),
    'tools/test.py': evaluate,
    'tools/visualize.py': lambda file, tool: tool('visualize').main(
        [str(PRETRAIN), str(file), str(file.parents[1] / 'image.png'), '--out', str(file.with_name('sheet.png'))]
    ),
    'init_cfg of the backbone': lambda file, tool: build(PRETRAIN, 'backbone', file),
    'init_cfg of the neck': lambda file, tool: build(PRETRAIN, 'neck', file),
    'init_cfg of the head': lambda file, tool: build(CLASSIFY, 'head', file),
    'init_cfg of a pre-training model': lambda file, tool: build(PRETRAIN, 'model', file),
    'init_cfg of a detector': lambda file, tool: build(DETECTOR, 'model', file),
    'mm_ummae.get_model': lambda file, tool: mm_ummae.get_model(PRETRAIN, file),
    'mmpretrain.get_model': lambda file, tool: mmpretrain.apis.get_model(str(PRETRAIN), pretrained=str(file)),
    'FeatureExtractor': lambda file, tool: mm_ummae.FeatureExtractor(PRETRAIN, file),
    'mmdet.init_detector': lambda file, tool: mmdet_detector(file),
    'mmseg.init_model': lambda file, tool: mmseg_segmentor(file),
    'mmengine.load_checkpoint': lambda file, tool: load_checkpoint(torch.nn.Linear(1, 1), str(file)),
}


@pytest.mark.parametrize('entrance', ENTRANCES)
def test_no_entrance_executes_code(entrance: str, file: Path, tool: Tool) -> None:
    with pytest.raises((ValueError, SystemExit), match='could execute code of its author'):
        ENTRANCES[entrance](file, tool)
    assert not (file.parents[1] / 'mark').exists()


def test_canary_sings(file: Path) -> None:
    """A reader that trusts the file does execute it: the tests above can fail."""
    torch.load(file, weights_only=False)
    assert (file.parents[1] / 'mark').exists()


def test_addresses_execute_no_code(file: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    for _ in range(2):  # downloaded, and from the cache
        with pytest.raises(ValueError, match='could execute code of its author'):
            CheckpointLoader.load_checkpoint(address)
    assert (tmp_path / 'cache/checkpoints/epoch_1.pth').exists()
    assert not (tmp_path / 'mark').exists()


def test_addresses_are_read(address: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    torch.save(dict(state_dict=dict(a=torch.ones(2))), file)
    assert CheckpointLoader.load_checkpoint(address)['state_dict']['a'].tolist() == [1, 1]


def test_names_of_models_execute_no_code(
    address: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MMEngine turns the name into an address and reads that with PyTorch's hub."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    monkeypatch.setattr('mmengine.runner.checkpoint.get_external_models', lambda: dict(model=address))
    with pytest.raises(Exception, match=r'(?i)weights.only|unsupported'):
        CheckpointLoader.load_checkpoint('open-mmlab://model')
    assert not (tmp_path / 'mark').exists()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_configs_in_checkpoints_are_not_executed(tmp_path: Path) -> None:
    """MMEngine's runner executes ``meta['config']`` as Python when it resumes."""
    content = dict(meta=dict(epoch=1, iter=1, config=f'import os; os.mkdir({str(tmp_path / "mark")!r})'), state_dict={})
    torch.save(content, tmp_path / 'a.pth')
    assert 'config' not in CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))['meta']
    assert Runner.resume.__module__ == 'mmengine.runner.runner'
