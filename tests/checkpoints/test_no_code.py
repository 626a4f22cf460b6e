"""No file executes code: every entrance of a checkpoint is tried with a file that would leave a mark."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
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

HOST_ENTRANCES = ('get_model', 'start', 'resume', 'test')
Tool = Callable[[str], ModuleType]
DETECTOR = ROOT / 'configs/demo/mask-rcnn_um-swin-test_1xb4-400it_demo-128px.py'
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


def make_data(file: Path) -> None:
    """Images of a pre-training, and of ten classes."""
    root = file.parents[1]
    for path in (
        *(root / 'data' / f'{i}.png' for i in range(2)),
        *(root / 'val' / f'{i}' / '0.png' for i in range(10)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (128, 128)).save(path)


def train(file: Path, tool: Tool, *options: str, flags: tuple[str, ...] = ()) -> None:
    make_data(file)
    options = (
        f'train_dataloader.dataset.data_root={file.parents[1]}/',
        'train_dataloader.dataset.data_prefix=data',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        *options,
    )
    tool('train').main([str(PRETRAIN), '--work-dir', str(file.parent), *flags, '--cfg-options', *options])


def evaluate(file: Path, tool: Tool) -> None:
    make_data(file)
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


def mmdet_inferencer(file: Path) -> None:
    from mmdet.apis import DetInferencer

    DetInferencer(str(DETECTOR), str(file), device='cpu')


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
    'tools/visualize_features.py': lambda file, tool: tool('visualize_features').main(
        [str(PRETRAIN), str(file), str(file.parents[1] / 'image.png'), '--out', str(file.with_name('sheet.png'))]
    ),
    'init_cfg of the backbone': lambda file, tool: build(PRETRAIN, 'backbone', file),
    'init_cfg of the neck': lambda file, tool: build(PRETRAIN, 'neck', file),
    'init_cfg of the head': lambda file, tool: build(CLASSIFY, 'head', file),
    'init_cfg of a pre-training model': lambda file, tool: build(PRETRAIN, 'model', file),
    'init_cfg of a detector': lambda file, tool: build(DETECTOR, 'model', file),
    'init_cfg of a segmentor': lambda file, tool: build(SEGMENTOR, 'model', file),
    'mm_ummae.get_model': lambda file, tool: mm_ummae.get_model(PRETRAIN, file),
    'mmpretrain.get_model': lambda file, tool: mmpretrain.apis.get_model(str(PRETRAIN), pretrained=str(file)),
    'mmpretrain.ImageClassificationInferencer': lambda file, tool: mmpretrain.ImageClassificationInferencer(
        str(CLASSIFY), pretrained=str(file), device='cpu'
    ),
    'FeatureExtractor': lambda file, tool: mm_ummae.FeatureExtractor(PRETRAIN, file),
    'mmdet.init_detector': lambda file, tool: mmdet_detector(file),
    'mmdet.DetInferencer': lambda file, tool: mmdet_inferencer(file),
    'mmseg.init_model': lambda file, tool: mmseg_segmentor(file),
    'mmengine.load_checkpoint': lambda file, tool: load_checkpoint(torch.nn.Linear(1, 1), str(file)),
}


@pytest.mark.parametrize('entrance', ENTRANCES)
def test_no_entrance_executes_code(entrance: str, file: Path, tool: Tool) -> None:
    with pytest.raises((ValueError, SystemExit), match='could execute code of its author'):
        ENTRANCES[entrance](file, tool)
    assert not (file.parents[1] / 'mark').exists()


# A process that imports this package by the types in the config only, as hosts do. Each entrance has a process of its
# own, since the loaders stay registered.
HOSTS_ONLY = """
import os, runpy, sys
from pathlib import Path
import mmpretrain.apis, mmpretrain.models, mmpretrain.datasets, scipy.interpolate, scipy.optimize
assert not any(name.startswith('mm_ummae') for name in sys.modules)
pretrain, classify, file = sys.argv[1:]
run = Path(file).parent
tools = Path(mmpretrain.__file__).parent / '.mim' / 'tools'

def mim(script, *words):
    sys.argv = [script, *words]
    runpy.run_path(str(tools / script), run_name='__main__')

data = [f'train_dataloader.dataset.data_root={run.parent}/', 'train_dataloader.dataset.data_prefix=data']
data += ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
val = [f'test_dataloader.dataset.data_root={run.parent}/', 'test_dataloader.num_workers=0']
val += ['test_dataloader.persistent_workers=False']
entrances = dict(
    get_model=lambda: mmpretrain.apis.get_model(pretrain, pretrained=file),
    start=lambda: mim('train.py', pretrain, '--work-dir', str(run), '--cfg-options', f'load_from={file}', *data),
    resume=lambda: mim('train.py', pretrain, '--work-dir', str(run), '--resume', file, '--cfg-options', *data),
    test=lambda: mim('test.py', classify, file, '--work-dir', str(run / 'test'), '--cfg-options', *val),
)
for name, entrance in entrances.items():
    child = os.fork()
    if child == 0:
        try:
            entrance()
        except BaseException as error:
            os._exit(0 if 'could execute code of its author' in str(error) else 1)
        os._exit(2)
    print('entrance', name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize('file', ['zip'], indirect=True)
def test_no_entrance_of_hosts_executes_code(file: Path) -> None:
    """``mim train``, ``mim test`` and MMPretrain's functions: the types in our configs bring the safe reader."""
    make_data(file)
    done = subprocess.run(
        [sys.executable, '-c', HOSTS_ONLY, PRETRAIN, CLASSIFY, file], capture_output=True, text=True, timeout=300
    )
    outcomes = [line for line in done.stdout.splitlines() if line.startswith('entrance')]
    assert outcomes == [f'entrance {name} 0' for name in HOST_ENTRANCES], done.stdout + done.stderr
    assert not (file.parents[1] / 'mark').exists()


def test_canary_sings(file: Path) -> None:
    """A reader that trusts the file does execute it: the tests above can fail."""
    torch.load(file, weights_only=False)
    assert (file.parents[1] / 'mark').exists()


def test_another_suffix_executes_no_code(file: Path) -> None:
    renamed = file.rename(file.with_suffix('.safetensors'))
    with pytest.raises(ValueError, match=r'epoch_1\.safetensors cannot be read\.'):
        CheckpointLoader.load_checkpoint(str(renamed))
    assert not (file.parents[1] / 'mark').exists()


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
    with pytest.raises(ValueError, match=r'open-mmlab://model cannot be read\. It holds \w+\.mkdir, and'):
        CheckpointLoader.load_checkpoint('open-mmlab://model')
    assert not (tmp_path / 'mark').exists()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_configs_in_checkpoints_are_not_executed(tmp_path: Path) -> None:
    """MMEngine's runner executes ``meta['config']`` as Python when it resumes."""
    content = dict(meta=dict(epoch=1, iter=1, config=f'import os; os.mkdir({str(tmp_path / "mark")!r})'), state_dict={})
    torch.save(content, tmp_path / 'a.pth')
    assert 'config' not in CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))['meta']
    assert Runner.resume.__module__ == 'mmengine.runner.runner'
