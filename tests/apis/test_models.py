"""MMPretrain-style API: models by name, strict loading of weights, inference, features, tools of MMPretrain."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import mmcv
import mmpretrain
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmpretrain.apis import ModelHub
from pytest import MonkeyPatch

import mm_ummae
from mm_ummae.apis import load_weights, models, reconstruct
from mm_ummae.datasets.image_files import load_batch
from mm_ummae.models import UMMAE, UMSimMIM
from tests.runs import CLASSIFY, DEMO, PRETRAIN, ROOT, SIMMIM

CONFIGS = {'pre-training': PRETRAIN, 'simmim': SIMMIM, 'classifier': CLASSIFY}
SEGMENTOR = DEMO / 'upernet_um-swin-test_1xb8-150it_demo-128px.py'
PUBLISHED = 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px'
# Overrides that make a model of the published config small
SMALL = dict(
    backbone=dict(arch='test'), neck=dict(in_channels=256, embed_dims=32, num_heads=4), head=dict(in_channels=32)
)
CLASSES = tuple(f'class {i}' for i in range(10))


@pytest.fixture(autouse=True)
def hub(monkeypatch: MonkeyPatch) -> None:
    """Each test starts with a hub that holds only MMPretrain's models, and leaves no trace in it."""
    mmpretrain.list_models()  # fills it once
    theirs = Path(mmpretrain.__file__).parent
    entries = {name: x for name, x in ModelHub._models_dict.items() if Path(x.filepath).is_relative_to(theirs)}
    monkeypatch.setattr(ModelHub, '_models_dict', entries)
    monkeypatch.setattr(models, 'register_models', cache(models.register_models.__wrapped__))


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lossless images, and a checkpoint of each demo model with random weights."""
    folder = tmp_path_factory.mktemp('files')
    generator = np.random.default_rng(0)
    for name, shape in (('square', (128, 128, 3)), ('wide', (90, 200, 3))):
        mmcv.imwrite(generator.integers(0, 256, shape, dtype=np.uint8), str(folder / f'{name}.png'))
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        meta = dict(dataset_meta=dict(classes=CLASSES))
        torch.save(dict(state_dict=mm_ummae.get_model(config).state_dict(), meta=meta), folder / f'{name}.pth')
    return folder


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


def write_index(folder: Path, **metafiles: tuple[str, str | None, list[str]]) -> None:
    """Write an index of metafiles: folder = (training data, task, names of the models)."""
    for name, (data, task, names) in metafiles.items():
        results = [dict(Task=task, Dataset=data, Metrics=dict(score=1.0))] if task else None
        common = {'In Collection': name, 'Results': results}
        entries = [dict(Name=model, Config=f'configs/{name}/{model}.py', **common) for model in names]
        collection = dict(Name=name, Metadata={'Training Data': data}, README='README.md')
        (folder / 'configs' / name).mkdir(parents=True)
        text = yaml.safe_dump(dict(Collections=[collection], Models=entries))
        (folder / 'configs' / name / 'metafile.yml').write_text(text)
    files = [f'configs/{name}/metafile.yml' for name in metafiles]
    (folder / 'model-index.yml').write_text(yaml.safe_dump(dict(Import=files)))


def test_importing_the_package_is_cheap() -> None:
    """The names of the API are there, but PyTorch and the hosts are imported on first use."""
    code = 'import json, sys, mm_ummae; print(json.dumps([sorted(sys.modules), dir(mm_ummae), mm_ummae.__all__]))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    modules, names, public = json.loads(done.stdout)
    assert not {'torch', 'mmengine', 'mmcv', 'mmpretrain', 'mm_ummae.apis'} & set(modules)
    assert set(public) <= set(names) and 'get_model' in public
    with pytest.raises(AttributeError, match="module 'mm_ummae' has no attribute 'get_models'"):
        _ = mm_ummae.get_models
    for name in set(public) & set(mm_ummae.apis.__all__):
        assert getattr(mm_ummae, name) is getattr(mm_ummae.apis, name)


def test_every_model_of_a_metafile_for_mmpretrain_is_listed() -> None:
    """Here a config of each metafile is read. The demo, for all hosts, is out."""
    expected = {}
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    for file in set(files) - {'configs/demo/metafile.yml'}:
        entries = yaml.safe_load((ROOT / file).read_text())['Models']
        if Config.fromfile(ROOT / entries[0]['Config']).default_scope == 'mmpretrain':
            expected.update({entry['Name']: ROOT / entry['Config'] for entry in entries})
    assert PUBLISHED in expected and mm_ummae.list_models() == sorted(expected)
    for name, config in expected.items():
        assert Path(ModelHub._models_dict[name].config).resolve() == config


def test_the_list_is_filtered_by_name_and_task(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(models, 'MODEL_INDEX', tmp_path / 'model-index.yml')
    with pytest.raises(FileNotFoundError, match=r'model-index\.yml is missing: it is created when the package is inst'):
        mm_ummae.list_models()
    write_index(
        tmp_path,
        mine=('ImageNet-1k', None, ['alpha_a', 'alpha_b']),
        classifiers=('ImageNet-1k', 'Image Classification', ['beta']),
        detectors=('COCO', 'Object Detection', ['alpha-rcnn']),
    )
    before = mmpretrain.list_models()
    assert mm_ummae.list_models() == ['alpha_a', 'alpha_b', 'beta']
    assert mm_ummae.list_models('alpha') == mm_ummae.list_models('*l?ha_') == ['alpha_a', 'alpha_b']
    assert mm_ummae.list_models('lpha') == []
    assert mm_ummae.list_models(task='Image Classification') == ['beta']
    assert mm_ummae.list_models('alpha', task='null') == ['alpha_a', 'alpha_b']
    assert mm_ummae.FeatureExtractor.list_models('b') == ['beta']
    # Registered in MMPretrain by the first call
    assert models.register_models() == models.register_models() == ('alpha_a', 'alpha_b', 'beta')
    assert set(mmpretrain.list_models()) - set(before) == {'alpha_a', 'alpha_b', 'beta'}
    assert ModelHub._models_dict['beta'].config == str(tmp_path / 'configs' / 'classifiers' / 'beta.py')
    write_index(tmp_path, other=('ImageNet-1k', None, ['resnet18_8xb32_in1k']))
    models.register_models.cache_clear()
    with pytest.raises(ValueError, match='resnet18_8xb32_in1k is conflict'):
        mm_ummae.register_models()


def test_a_model_by_name_equals_that_of_its_config_file(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Here from copies of the files, as in a wheel; MMPretrain builds it as well once the names are registered."""
    shutil.copy(ROOT / 'model-index.yml', tmp_path)
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    monkeypatch.setattr(models, 'MODEL_INDEX', tmp_path / 'model-index.yml')
    with pytest.raises(ValueError, match='Failed to find model'):
        mmpretrain.get_model(PUBLISHED, **SMALL)
    built = [
        mm_ummae.get_model(PUBLISHED, **SMALL),
        mm_ummae.get_model(ROOT / 'configs' / 'ummae' / f'{PUBLISHED}.py', **SMALL),
        mmpretrain.get_model(PUBLISHED, **SMALL),
    ]
    assert Path(built[0]._config.filename) == tmp_path / 'configs' / 'ummae' / f'{PUBLISHED}.py'
    assert built[0]._metainfo.name == PUBLISHED and built[1]._metainfo is None and not built[0].training
    assert built[0]._config.model == built[1]._config.model and built[0]._config.model.backbone.arch == 'test'
    first, *others = ({name: x.shape for name, x in model.state_dict().items()} for model in built)
    assert first['head.pred.weight'] == (768, 32) and all(shapes == first for shapes in others)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_weight_is_loaded(files: Path, name: str) -> None:
    """From a checkpoint, or from ``load_from`` of the config with ``pretrained=True``."""
    path, config = files / f'{name}.pth', Config.fromfile(CONFIGS[name])
    config.load_from = str(path)
    expected = state_of(path)
    for given, pretrained in ((str(CONFIGS[name]), str(path)), (config, True)):
        own = mm_ummae.get_model(given, pretrained=pretrained, device='cpu').state_dict()
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
    random = mm_ummae.get_model(config, pretrained=False).state_dict()
    assert not all(torch.equal(random[key], expected[key]) for key in random)
    # Overrides do not change the given config; a backbone that returns other stages has no last norm
    model = mm_ummae.get_model(config, pretrained=True, backbone=dict(out_indices=(0, 1)))
    assert model.backbone.out_indices == (0, 1) and config.model == Config.fromfile(CONFIGS[name]).model
    own = model.state_dict()
    assert expected.keys() - own.keys() <= {'backbone.norm.weight', 'backbone.norm.bias'}
    assert all(torch.equal(own[key], expected[key]) for key in own)


def test_a_checkpoint_that_does_not_fit_is_an_error(files: Path, tmp_path: Path) -> None:
    """MMPretrain would warn and load the rest."""
    state = state_of(files / 'pre-training.pth')
    del state['neck.mask_token']
    state |= {'neck.extra': torch.zeros(1), 'head.pred.bias': torch.zeros(5)}
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    model = mm_ummae.get_model(PRETRAIN)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    message = (
        r'other\.pth does not fit UMMAE, nothing was loaded\. missing: neck\.mask_token; unexpected: neck\.extra; '
        r'other shape: head\.pred\.bias \(5,\) instead of \(768,\)'
    )
    for load in (lambda path: load_weights(model, path), lambda path: mm_ummae.get_model(PRETRAIN, path)):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / 'other.pth')
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ('model', 'pretrained', 'error', 'message'),
    [
        ('ummae_swim', None, ValueError, r"model is 'ummae_swim', but there is no such model: mm_ummae\.list_models"),
        (SEGMENTOR, None, ValueError, "config is 'mmseg', but get_model builds .* mmpretrain only: .* one with mmseg"),
        (PUBLISHED, True, ValueError, f'no weights of {PUBLISHED} are known: set pretrained to the path'),
        (PRETRAIN, True, ValueError, f'pretrained is True, but no weights of {PRETRAIN} are known'),
        (PRETRAIN, 'nowhere.pth', FileNotFoundError, r'nowhere\.pth does not exist'),
        (Path('nowhere.py'), None, FileNotFoundError, r'nowhere\.py'),
    ],
)
def test_models_that_cannot_be_built(model: Any, pretrained: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mm_ummae.get_model(model, pretrained)


def test_a_pre_training_model_reconstructs(files: Path) -> None:
    model = mm_ummae.get_model(PRETRAIN, files / 'pre-training.pth')
    sample = mm_ummae.inference_model(model, files / 'wide.png', seed=3)
    (expected,) = reconstruct(model, [files / 'wide.png'], seed=3)
    assert all(torch.equal(sample.get(name), values) for name, values in expected.items())
    mask = model.draw_mask(1, (64, 64))
    (small,) = reconstruct(model, [str(files / 'wide.png')], image_size=64, mask=mask)
    assert small.reconstruction.shape == (3, 64, 64) and torch.equal(small.unsampled.flatten(), mask.unsampled()[0])
    with pytest.raises(ValueError, match=r'the image .*pre-training\.pth cannot be read'):
        mm_ummae.inference_model(model, files / 'pre-training.pth')
    with pytest.raises(ValueError, match='model is a Identity, but it must be a classifier or a pre-training model'):
        mm_ummae.inference_model(torch.nn.Identity(), files / 'square.png')


def maps_of(model: BaseModel, batch: dict) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model.backbone(model.data_preprocessor(batch, training=False)['inputs'])


def test_a_classifier_classifies_and_has_features_of_each_stage(files: Path) -> None:
    """Of the whole image, because the test pipeline of the config only loads it."""
    model = mm_ummae.get_model(CLASSIFY)
    extract = mm_ummae.FeatureExtractor(model, files / 'classifier.pth')
    assert extract.model is model
    assert torch.equal(model.head.fc.weight, state_of(files / 'classifier.pth')['head.fc.weight'])
    image = str(files / 'wide.png')
    pixels = mmcv.imread(image)
    expected = maps_of(model, dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)]))
    ((last,),) = extract(image, stage='backbone')
    assert last.shape == (256, 3, 7)
    torch.testing.assert_close(last, expected[0][0], rtol=1e-4, atol=1e-5)
    ((pooled,),) = extract(image, stage='neck')
    torch.testing.assert_close(pooled, model.neck(expected)[0][0].detach(), rtol=1e-4, atol=1e-5)

    scores = model.head.fc(pooled).softmax(0).detach()
    result = mm_ummae.inference_model(model, files / 'wide.png')
    np.testing.assert_allclose(result['pred_scores'], scores.numpy(), rtol=1e-4)
    assert result['pred_label'] == scores.argmax() and result['pred_class'] == CLASSES[scores.argmax()]
    named = mm_ummae.inference_model(model, pixels, classes=[str(i) for i in range(10)])
    assert named['pred_class'] == str(result['pred_label']) and named['pred_score'] == result['pred_score']


@pytest.mark.parametrize('name', ['pre-training', 'simmim'])
def test_features_of_a_pre_training_model_are_the_stages_of_whole_images(files: Path, name: str) -> None:
    """Also inside the default scope of another host, which has other transforms of the same names."""
    images = [str(files / 'wide.png'), mmcv.imread(str(files / 'square.png'))]  # file and array
    stages = dict(out_indices=(0, 1, 2, 3))
    with DefaultScope.overwrite_default_scope('mmseg'):
        extract = mm_ummae.FeatureExtractor(CONFIGS[name], files / f'{name}.pth', backbone=stages)
        features = extract(images, batch_size=2, stage='backbone')
    assert isinstance(extract.model, (UMMAE, UMSimMIM)) and not extract.model.training
    for maps, file in zip(features, ('wide.png', 'square.png'), strict=True):
        assert [tuple(x.shape) for x in maps] == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
        for x, expected in zip(maps, maps_of(extract.model, load_batch([files / file], 128)), strict=True):
            torch.testing.assert_close(x, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extract(images)[1][3], features[1][3], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="stage is 'neck', but a pre-training model has features of its backbone only"):
        extract(images[0], stage='neck')
    with pytest.raises(ValueError, match='backbone would change the config, but the model is already built'):
        mm_ummae.FeatureExtractor(extract.model, backbone=stages)
    with pytest.raises(ValueError, match='pretrained is True, but no weights of'):
        mm_ummae.FeatureExtractor(CONFIGS[name])


def test_get_flops_counts_all_but_attention(monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The tool of MMPretrain."""
    tool = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'analysis_tools' / 'get_flops.py'
    monkeypatch.setattr(sys, 'argv', ['get_flops', str(PRETRAIN), '--shape', '128'])
    runpy.run_path(str(tool), run_name='__main__')
    output = capsys.readouterr().out
    params = sum(x.numel() for x in mm_ummae.get_model(PRETRAIN).parameters())
    assert f'Params: {params / 1e6:.3f}M' in output
    (flops,) = re.findall(r'^Flops: ([\d.]+)G$', output, re.M)
    # Each of the 2 blocks of a stage costs 12 C^2 per token in linear layers; attention would cost half as much
    linear = sum(24 * dims**2 * tokens for dims, tokens in ((32, 1024), (64, 256), (128, 64), (256, 16)))
    assert linear < float(flops) * 1e9 < 1.25 * linear
