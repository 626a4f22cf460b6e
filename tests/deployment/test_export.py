"""Exported networks against the original: another batch gives the right result, another size that or an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from packaging.version import Version
from torch import Tensor, nn

from mm_ummae.deployment import FORMATS, Deployed, export_network, exporting, load_deployed
from tests.builders import seeded

SIDE = 64
PYRAMID = dict(embed_dims=8, depths=(2, 1), num_heads=(1, 2), position_dims=4)  # plain and shifted windows, merging
PVT = dict(embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2))
VIT = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=32)
SWIN = dict(arch=dict(embed_dims=8, depths=[2, 1], num_heads=[1, 2]), window_size=4, pad_small_map=True)
NETWORKS: dict[str, dict[str, Any]] = {
    'UMSwin': dict(type='mm_ummae.UMSwin', arch=PYRAMID, img_size=SIDE, window_size=4, out_indices=(0, 1)),
    'UMPVT': dict(type='mm_ummae.UMPVT', arch=PVT, img_size=SIDE, out_indices=(0, 3)),
    'UMViT': dict(type='mm_ummae.UMViT', arch=VIT, img_size=SIDE),
    'LoMaRViT': dict(type='mm_ummae.LoMaRViT', arch=VIT, img_size=SIDE, patch_size=16),
    'stock Swin': dict(
        type='mm_ummae.UMBackbone',
        img_size=SIDE,
        network=dict(type='mmpretrain.SwinTransformer', out_indices=(0, 1), **SWIN),
    ),
    'classifier': dict(
        type='ImageClassifier',
        backbone=dict(type='mm_ummae.UMViT', arch=VIT, img_size=SIDE),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=24, num_classes=5),
    ),
}
# Host code makes the number of images a constant
FIXED = {'stock Swin'}
MODERN = Version(torch.__version__) >= Version('2.6')  # what torch.export needs for any number of images
every_network = pytest.mark.parametrize('name', NETWORKS)


def built(name: str) -> Deployed:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return Deployed(MODELS.build(NETWORKS[name]))


# torch.export takes seconds, so not all; the older exporter of ONNX gets the values of MMPretrain's Swin wrong
CASES = [
    *((name, 'torchscript') for name in NETWORKS),
    *((name, 'onnx-torchscript') for name in NETWORKS if name not in FIXED | {'LoMaRViT'}),
    *((name, 'torch-export') for name in ('UMSwin', 'UMViT', 'LoMaRViT') if MODERN),
]


@pytest.mark.parametrize(('name', 'format'), CASES)
def test_a_file_computes_the_same(name: str, format: str, tmp_path: Path) -> None:
    """At 1 and 3 images after 2, or with a fixed number where the code of a host makes it a constant."""
    network, path = built(name), tmp_path / f'model{FORMATS[format].suffix}'
    batch = 2 if name in FIXED else None
    if batch:
        with pytest.raises(ValueError, match=r'UMBackbone.*Give a batch \(--batch N\)'):
            export_network(network, path, format, (SIDE, SIDE))
        assert not list(tmp_path.iterdir())
    differences = export_network(network, path, format, (SIDE, SIDE), batch)
    assert len(differences) == (1 if batch else 2) and max(differences.values()) < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    images = seeded(batch or 5, 3, SIDE, SIDE, seed=9)
    with torch.no_grad():
        torch.testing.assert_close(load_deployed(path)(images), network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', ['LoMaRViT'] if MODERN else [])
def test_the_default_exporter_of_onnx(name: str, tmp_path: Path) -> None:
    """It takes long, so one network: the older exporter loses its number of images."""
    differences = export_network(built(name), tmp_path / 'model.onnx', 'onnx', (SIDE, SIDE))
    assert len(differences) == 2 and max(differences.values()) < 1e-4


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@every_network
@torch.no_grad()
def test_a_plain_trace_never_gives_wrong_maps_in_silence(name: str) -> None:
    """From one image or two (field case 13): right for another number or an error, and an error at another size."""
    network = built(name)
    for traced_with in (1, 2):
        trace = torch.jit.trace(network, seeded(traced_with, 3, SIDE, SIDE), check_trace=False)
        for n in (1, 2, 3):
            images = seeded(n, 3, SIDE, SIDE)
            if name in FIXED and n != traced_with:
                with pytest.raises(RuntimeError):
                    trace(images)
            else:
                torch.testing.assert_close(trace(images), network(images), atol=1e-5, rtol=1e-5)
        for size in ((2 * SIDE, SIDE // 2), (SIDE + 32, SIDE)):
            with pytest.raises(RuntimeError):
                trace(seeded(traced_with, 3, *size))


@pytest.mark.skipif(not MODERN, reason='needs PyTorch 2.6')
def test_other_sizes_where_the_network_allows_them(tmp_path: Path) -> None:
    """A convolutional network does; windows and positions are computed for one size."""
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(4, 8, 3, stride=2, padding=1)
    convolutions = Deployed(nn.Sequential(*layers))
    path = tmp_path / 'network.pt2'
    differences = export_network(convolutions, path, 'torch-export', (SIDE, SIDE), dynamic_size=True)
    assert '3 images of 128x64 px' in differences
    images = seeded(4, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(load_deployed(path)(images), convolutions(images), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r'UMViT.* leave the size fixed'):
        export_network(built('UMViT'), tmp_path / 'vit.pt2', 'torch-export', (SIDE, SIDE), dynamic_size=True)


@pytest.mark.parametrize(
    ('arguments', 'error', 'text'),
    [
        (dict(format='caffe'), ValueError, "format is 'caffe', but it must be one of torchscript, torch-export, onnx"),
        (dict(path='model.onnx'), ValueError, 'the file is model.onnx, but the suffix of torchscript is .pt'),
        (dict(path='nowhere/model.pt'), ValueError, 'its folder does not exist'),
        (dict(batch=0), ValueError, 'batch is 0, but it must be at least 1'),
        (dict(dynamic_size=True), ValueError, 'sizes are constants of a trace: choose torch-export or onnx'),
    ],
    ids=['format', 'suffix', 'folder', 'batch', 'size'],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], text: str, tmp_path: Path) -> None:
    options = dict(format='torchscript', image_size=(SIDE, SIDE)) | arguments
    with pytest.raises(error, match=text):
        export_network(built('UMViT'), tmp_path / options.pop('path', 'model.pt'), **options)


def test_missing_packages_and_wrong_files_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) + (0.01 if torch.jit.is_tracing() else 0.0)

    with pytest.raises(ValueError, match=r'1 images of 64x64 px the file differs from Wrong by 0\.01'):
        export_network(Deployed(Wrong()), tmp_path / 'model.pt', 'torchscript', (SIDE, SIDE))
    old = exporting.FORMATS['torchscript']._replace(since='99.0')
    monkeypatch.setitem(exporting.FORMATS, 'torchscript', old)
    with pytest.raises(ValueError, match=r"format is 'torchscript', which needs PyTorch 99\.0, but this is"):
        export_network(built('UMViT'), tmp_path / 'model.pt', 'torchscript', (SIDE, SIDE))
    monkeypatch.setattr(exporting, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='onnx-torchscript needs onnx, onnxruntime: pip install onnx onnxruntime'):
        export_network(built('UMViT'), tmp_path / 'model.onnx', 'onnx-torchscript', (SIDE, SIDE))
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
def test_the_tool(tmp_path: Path, tool: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier with its normalisation inside, and the backbone of a pre-training."""
    run = tool('export_model').main
    model = built('classifier').network
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    preprocessor = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0], to_rgb=True)
    settings = dict(NETWORKS['classifier'], data_preprocessor=dict(type='ClsDataPreprocessor', **preprocessor))
    (tmp_path / 'config.py').write_text(f"default_scope = 'mmpretrain'\nmodel = {settings!r}\n")
    common = [str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')]
    path = run([*common, str(tmp_path / 'a.pt'), '--format', 'torchscript', '--normalize'])
    assert 'images: pixel values 0..255, channels RGB' in capsys.readouterr().out
    pixels = seeded(3, 3, SIDE, SIDE).abs() * 50
    mean, std = (torch.tensor(preprocessor[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        expected = model.eval()((pixels - mean) / std, mode='tensor')
    torch.testing.assert_close(load_deployed(path)(pixels)[0], expected, atol=1e-4, rtol=1e-4)

    (tmp_path / 'bare.py').write_text("model = dict(type='Bare')\n")
    for arguments, text in (
        ([str(tmp_path / 'bare.py'), common[1], 'a.pt'], 'has no model.backbone'),
        ([*common[:1], str(tmp_path / 'nowhere.pth'), 'a.pt'], 'nowhere.pth does not exist'),
        ([*common, 'a.pt', '--img-size', '1', '2', '3'], '--img-size takes one or two numbers'),
    ):
        with pytest.raises(SystemExit, match=f'error: .*{text}'):
            run(arguments)
