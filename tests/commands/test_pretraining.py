"""Pre-training on a folder of images in one call."""

from __future__ import annotations

import html
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from PIL import Image

import mm_ummae
from mm_ummae.__main__ import main
from mm_ummae.commands import MODELS, embed, pretraining, run_folder
from mm_ummae.commands.pretraining import Pretraining, pretrain
from mm_ummae.datasets.image_files import load_batch, loader_of
from mm_ummae.models import UMMAE, MaskedPixelModel, UMSwin
from mm_ummae.registry import MODELS as REGISTRY
from mm_ummae.resources import config_path
from tests.conftest import ROOT
from tests.mixed_images import make_mixed_images

SMALL = dict(model='um-swin-test', image_size=64, epochs=2, workers=0)


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed_images(tmp_path_factory.mktemp('data') / 'my photos, of 2026', 36)


@pytest.fixture(scope='module')
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    return pretrain(photos, tmp_path_factory.mktemp('run') / 'a b', **SMALL)


@pytest.mark.integration
def test_a_folder_becomes_a_backbone(finished: Pretraining, photos: Path) -> None:
    """With a config that the runner takes as it is, and a file that a backbone takes strictly."""
    cfg = Config.fromfile(finished.config)
    assert finished.checkpoint == finished.config.parent / 'run' / 'epoch_2.pth'
    assert cfg.train_dataloader.dataset.data_root == f'{photos}/' and cfg.train_cfg.max_epochs == 2
    assert 0 <= cfg.train_dataloader.dataset.pipeline[0].value_range[0] < 1500
    assert (
        cfg.model.backbone.img_size == cfg.model.neck.img_size == cfg.train_dataloader.dataset.pipeline[1].scale == 64
    )
    backbone = UMSwin(arch='test', init_cfg=dict(type='Pretrained', checkpoint=str(finished.backbone)))
    backbone.init_weights()
    state = torch.load(finished.checkpoint, weights_only=False)['state_dict']
    assert all(torch.equal(value, state[f'backbone.{name}']) for name, value in backbone.state_dict().items())
    page = finished.report.read_text()
    assert (
        'Pre-training report: a b' in page
        and f'--start {shlex.quote(str(finished.config.parent))}' in html.unescape(page)
    )
    random = UMSwin(arch='test').state_dict()
    assert not torch.equal(random['patch_embed.projection.weight'], backbone.patch_embed.projection.weight)


@pytest.mark.integration
@pytest.mark.slow
def test_the_terminal_says_what_matters(photos: Path, tmp_path: Path) -> None:
    """Settings and forecast come just before the first iteration; the list of all parameters is in the file alone."""
    words = f'--model um-swin-test --image-size 64 --epochs 1 --workers 0 --out {tmp_path}/run'.split()
    command = [sys.executable, '-m', 'mm_ummae', 'pretrain', '--data', str(photos), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    shown = done.stdout + done.stderr
    before, after = shown.split('um-swin-test: 1 epochs, batch 16 (16 images x 1 iterations x 1 devices)')
    assert 'System environment' in before and 'Forecast: ' in after and 'Epoch(train)' in after
    assert 'paramwise_options' not in shown
    assert 'paramwise_options' in next((tmp_path / 'run' / 'run').rglob('*.log')).read_text()


@pytest.mark.integration
def test_the_same_call_leaves_a_finished_run_and_other_settings_are_refused(
    finished: Pretraining, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished.config.parent
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RUNNERS, 'build', lambda cfg: pytest.fail('it was trained again'))
        assert pretrain(photos, out, **SMALL) == finished
    with pytest.raises(ValueError, match=r'other settings \(.*train_cfg.max_epochs is 2, not 3.*: give another folder'):
        pretrain(photos, out, **SMALL | dict(epochs=3))


@pytest.mark.integration
@pytest.mark.slow
def test_an_interrupted_run_is_resumed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the same words in a terminal; a start is not loaded again."""
    words = f'--model um-swin-test --image-size 64 --epochs 3 --workers 0 --out {tmp_path}/run'.split()
    words = ['pretrain', '--data', str(photos), *words]
    build = run_folder.RUNNERS.build

    def stopped(cfg: Config) -> Any:
        runner = build(cfg)
        runner.train_loop._max_epochs = 2
        return runner

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RUNNERS, 'build', stopped)
        with pytest.raises(SystemExit, match=f'{tmp_path}/run: interrupted; the same command resumes it'):
            main(words)
    seen = []
    monkeypatch.setattr(run_folder.RUNNERS, 'build', lambda cfg: seen.append((cfg.resume, cfg.load_from)) or build(cfg))
    result = main(words)
    assert seen == [(True, None)] and result.checkpoint.name == 'epoch_3.pth' and result.checkpoint.exists()
    assert f'backbone: {tmp_path}/run/backbone.pth' in capsys.readouterr().out
    assert torch.load(result.checkpoint, weights_only=False)['meta']['epoch'] == 3


@pytest.mark.integration
def test_features_of_a_folder(finished: Pretraining, photos: Path, tmp_path: Path, capsys: Any) -> None:
    """By the command; those of the model, in the order of the files, without what cannot be read."""
    folder = tmp_path / 'images'
    shutil.copytree(photos, folder)
    (folder / 'damaged.png').write_bytes(b'no image')
    words = ['embed', '--data', str(folder), '--checkpoint', str(finished.config.parent), '--out', f'{tmp_path}/f.npz']
    main([*words, '--device', 'cpu'])
    assert f'features: {tmp_path}/f.npz' in capsys.readouterr().out
    stored = np.load(tmp_path / 'f.npz')
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob('*.*')) if path.suffix != '.txt']
    assert sorted(stored['files']) == sorted(name for name in names if name != 'damaged.png')
    assert stored['features'].shape == (36, 256) and stored['features'].dtype == np.float32
    (tmp_path / 'list.txt').write_text(f'{folder / names[3]}\n{folder / names[1]}\n')
    listed = np.load(mm_ummae.embed(tmp_path / 'list.txt', finished.checkpoint, tmp_path / 'listed.npz', device='cpu'))
    assert listed['files'].tolist() == [str(folder / names[3]), str(folder / names[1])]
    order = stored['files'].tolist()
    assert np.allclose(listed['features'][1], stored['features'][order.index(names[1])], atol=1e-4)
    cfg = Config.fromfile(finished.config)
    model = mm_ummae.get_model(cfg, pretrained=str(finished.checkpoint), device='cpu')
    batch = load_batch([folder / stored['files'][35]], 64, loader_of(cfg))
    inputs = model.data_preprocessor(dict(batch), training=False)['inputs']
    with torch.no_grad():
        expected = model.eval().backbone(inputs)[-1].mean((2, 3))[0]
    assert np.allclose(stored['features'][35], expected, atol=1e-4)
    for change, message in (
        (('--out', 'f.txt'), 'out is f.txt, but the file must end in .npz'),
        (('--data', 'nowhere'), 'data is .*nowhere, but there is no such folder'),
        (('--config', 'no.py'), 'no.py does not exist: give the config of the run'),
    ):
        with pytest.raises(SystemExit, match=f'error: {message}'):
            main([*words, *change])


@pytest.mark.integration
def test_weights_to_start_from(finished: Pretraining, photos: Path, tmp_path: Path) -> None:
    """A whole pre-training with its decoder, or a backbone."""
    state = torch.load(finished.checkpoint, weights_only=False)['state_dict']
    for start, key in ((finished.checkpoint, 'neck.expand.weight'), (finished.backbone, 'backbone.norm.weight')):
        result = pretrain(photos, tmp_path / start.stem, start=start, lr=1e-12, **SMALL | dict(epochs=1))
        own = torch.load(result.checkpoint, weights_only=False)['state_dict']
        assert torch.allclose(own[key], state[key], atol=1e-6), start
        config = Config.fromfile(result.config)
        assert (config.load_from is None) == (start == finished.backbone)
        assert config.model.data_preprocessor.mean[0] == 123.675, 'that of the recipe, which the weights know'


def test_probes_need_labelled_images(demo_data: Path, tmp_path: Path) -> None:
    result = pretrain(
        demo_data / 'imagenet' / 'unlabelled', tmp_path / 'run', labelled=demo_data / 'imagenet' / 'train', **SMALL
    )
    scalars = next((tmp_path / 'run' / 'run').rglob('scalars.json')).read_text()
    assert '"learning/linear"' in scalars and 'Probes on frozen features' in result.report.read_text()


def test_bands_are_trained_as_they_are(tmp_path: Path) -> None:
    """Six bands of 16 bits: channels, range and statistics come from the files, and the model is built for them."""
    rng = np.random.default_rng(0)
    (tmp_path / 'data').mkdir()
    for index in range(18):
        bands = (rng.normal(size=(80, 80, 6)) * 300 + 5000).clip(0).astype(np.uint16)
        tifffile.imwrite(tmp_path / 'data' / f'{index}.tif', bands, planarconfig='contig')
    result = pretrain(tmp_path / 'data', tmp_path / 'run', **SMALL | dict(epochs=1))
    cfg = Config.fromfile(result.config)
    assert cfg.model.backbone.in_channels == cfg.model.head.image_channels == len(cfg.model.data_preprocessor.mean) == 6
    low, high = cfg.train_dataloader.dataset.pipeline[0].value_range
    assert 4100 < low < 4400 and 5600 < high < 5900
    assert all(110 < value < 145 for value in cfg.model.data_preprocessor.mean)
    state = torch.load(result.backbone, weights_only=False)['state_dict']
    assert state['backbone.patch_embed.projection.weight'].shape[1] == 6
    extract = mm_ummae.FeatureExtractor(cfg, result.checkpoint)
    ((maps,),) = extract(tmp_path / 'data' / '0.tif', stage='backbone')
    inputs = extract.model.data_preprocessor(load_batch([tmp_path / 'data' / '0.tif'], 64, loader_of(cfg)))['inputs']
    with torch.no_grad():
        assert torch.allclose(maps, extract.model.backbone(inputs)[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_every_model_of_the_list_gives_a_config_that_builds(name: str, photos: Path, tmp_path: Path) -> None:
    recipe = Config.fromfile(config_path(MODELS[name]))
    settings = pretraining.choose_settings(1000)
    changes = pretraining._changes(recipe, photos, tmp_path, settings, 4, (0, 9), [1] * 4, [2] * 4, None, 1, 0)
    run_folder.write_config(tmp_path / 'config.py', pretraining._text(config_path(MODELS[name]), changes, photos, name))
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.optim_wrapper.optimizer.lr == 4e-4 and cfg.optim_wrapper.type == 'OptimWrapper'
    assert [each.end for each in cfg.param_scheduler][-1] == cfg.train_cfg.max_epochs == settings.epochs
    if not name.endswith(('large', 'base')):  # built in seconds
        model = REGISTRY.build(cfg.model)
        assert model.head.image_channels == 4 and len(model.data_preprocessor.mean) == 4


@pytest.mark.integration
@pytest.mark.parametrize(
    'model',
    [
        'um-swin-test',
        'ummae_pvt-test_1xb32-coslr-100e_demo-128px.py',
        'lomar_vit-test_1xb32-coslr-10e_demo-128px.py',
        pytest.param('simmim_swin-test_1xb16-coslr-20e_demo-128px.py', marks=pytest.mark.slow),
        pytest.param('resnet-50', marks=pytest.mark.slow),
    ],
)
def test_crops_need_not_be_square(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From images of any size; with reconstructions, measures of the features, a report, and features of squares."""
    folder, sizes, loss = make_mixed_images(tmp_path / 'data', 14), set(), MaskedPixelModel.loss
    for index, size in enumerate([(1, 1), (8, 8), (3, 200), (200, 6000)]):
        Image.new('RGB', size[::-1], (index * 60, 90, 0)).save(folder / f'odd {index}.png')

    def seen(network: MaskedPixelModel, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.add(tuple(inputs.shape[2:]))
        return loss(network, inputs, *args, **kwargs)

    monkeypatch.setattr(MaskedPixelModel, 'loss', seen)
    result = pretrain(folder, tmp_path / 'run', model, image_size=(96, 160), epochs=1, workers=0)
    cfg = Config.fromfile(result.config)
    crop = cfg.train_dataloader.dataset.pipeline[1]
    assert crop.scale == cfg.model.backbone.img_size == [96, 160]
    assert crop.aspect_ratio_range == pytest.approx([1.25, 20 / 9])
    assert sizes == {(96, 160)}
    assert len([*(tmp_path / 'run').rglob('reconstruction_1.png')]) == 1 and result.report.exists()
    features = embed(folder, result.checkpoint, tmp_path / 'features.npz', device='cpu')
    assert len(np.load(features)['features']) == 18


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(model='um-swin-tinny'), "model is 'um-swin-tinny', but it must be one of um-swin-test, um-swin-tiny"),
        (dict(model='mask_rcnn/mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco.py'), 'is no pre-training on images'),
        (dict(data='nowhere'), r'data is .*nowhere, but there is no such folder, nor a file with paths'),
        (dict(mean=[1.0, 2, 3]), r'mean is \[1.0, 2, 3\] and std None, but they go together'),
        (
            dict(image_size=50),
            'image_size is 50, but it must be a side, or height and width, in positive multiples of 32',
        ),
        (dict(image_size=(64, 100)), r'image_size is \(64, 100\), but it must be a side'),
        (dict(image_size=(32, 32, 32)), r'image_size is \(32, 32, 32\), but it must be a side'),
        (dict(batch=64), 'batch is 64, but there are only 36 images'),
        (dict(channels=5), r'has \d channels, but channels is 5'),
        (dict(start='nothing.pth'), r'nothing.pth'),
        (dict(labelled='no'), r'labelled is .*no, but there is no such folder'),
    ],
)
def test_mistakes_leave_nothing_behind(change: dict, message: str, photos: Path, tmp_path: Path) -> None:
    arguments = dict(dict(data=photos, out=tmp_path / 'run'), **SMALL) | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(**arguments)
    assert not (tmp_path / 'run').exists()


def test_a_folder_with_something_else_is_not_written_into(photos: Path, tmp_path: Path) -> None:
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(ValueError, match='it holds something else than a run: give a new or empty folder'):
        pretrain(photos, tmp_path, **SMALL)
    assert [each.name for each in tmp_path.iterdir()] == ['thesis.tex']


def test_it_is_in_the_package() -> None:
    assert mm_ummae.pretrain is pretrain and issubclass(UMMAE, torch.nn.Module)
