"""MMPretrain's ways in: models by name, strict weights, inference, features, and its tools through mim."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

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

import mm_ummae
from mm_ummae.apis import models as apis
from mm_ummae.apis.inference import load_batch, reconstruct
from mm_ummae.models import UMMAE, UMSimMIM

ROOT = Path(__file__).parents[1]
DEMO = ROOT / 'configs' / 'demo'
PRETRAIN = DEMO / 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
SIMMIM = DEMO / 'simmim_swin-test_1xb64-coslr-20e_demo-128px.py'
CLASSIFICATION = DEMO / 'um-swin-test_classification_1xb16-100it_demo-128px.py'
SEGMENTATION = DEMO / 'upernet_um-swin-test_1xb8-150it_demo-128px.py'
PUBLISHED = 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px'
# What makes a model of the published config small
SMALL = dict(
    backbone=dict(arch='test'), neck=dict(in_channels=256, embed_dims=32, num_heads=4), head=dict(in_channels=32)
)
CLASSES = tuple(f'class {i}' for i in range(10))
METAFOLDERS = [apis.INDEX.parent / path.parent.relative_to(ROOT) for path in (ROOT / 'configs').glob('*/metafile.yml')]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with a hub that knows MMPretrain's models and not ours, and changes no other's."""
    mmpretrain.list_models()  # fills it, once
    others = {name: x for name, x in ModelHub._models_dict.items() if Path(x.filepath).parent not in METAFOLDERS}
    monkeypatch.setattr(ModelHub, '_models_dict', others)
    monkeypatch.setattr(apis, 'register_models', cache(apis.register_models.__wrapped__))


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images without loss, and a checkpoint of each demo model with random weights."""
    folder = tmp_path_factory.mktemp('files')
    generator = np.random.default_rng(0)
    for name, shape in (('square', (128, 128, 3)), ('wide', (90, 200, 3))):
        mmcv.imwrite(generator.integers(0, 256, shape, dtype=np.uint8), str(folder / f'{name}.png'))
    torch.manual_seed(0)
    for name, config in (('pretrain', PRETRAIN), ('simmim', SIMMIM), ('classifier', CLASSIFICATION)):
        content = dict(state_dict=apis.get_model(config).state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES)))
        torch.save(content, folder / f'{name}.pth')
    return folder


def metafile(folder: Path, host: str, data: str, entries: dict[str, str | None]) -> str:
    """Write a metafile of models, name -> task; returns its path in the index."""
    path = folder / 'configs' / host / 'metafile.yml'
    path.parent.mkdir(parents=True)
    models = [
        dict(
            Name=name,
            Config=f'configs/{host}/{name}.py',
            Results=[dict(Task=task, Dataset=data, Metrics=dict(score=1.0))] if task else None,
            **{'In Collection': host},
        )
        for name, task in entries.items()
    ]
    collection = dict(Name=host, Metadata={'Training Data': data}, README='README.md')
    path.write_text(yaml.safe_dump(dict(Collections=[collection], Models=models)))
    return str(path.relative_to(folder))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of two pre-training models, a classifier and a detector."""
    pretraining = metafile(tmp_path, 'mine', 'ImageNet-1k', {'alpha_a': None, 'alpha_b': None})
    classifier = metafile(tmp_path, 'classifiers', 'ImageNet-1k', {'beta': 'Image Classification'})
    detector = metafile(tmp_path, 'detectors', 'COCO', {'alpha-rcnn': 'Object Detection'})
    path = tmp_path / 'model-index.yml'
    path.write_text(yaml.safe_dump(dict(Import=[pretraining, classifier, detector])))
    monkeypatch.setattr(apis, 'INDEX', path)
    return path


# The package


def test_importing_the_package_imports_neither_torch_nor_the_hosts() -> None:
    code = (
        'import json, sys, mm_ummae; print(json.dumps([sorted(sys.modules), dir(mm_ummae), mm_ummae.__all__]))\n'
        'try: mm_ummae.get_models\n'
        'except AttributeError as error: print(error)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    first, error = done.stdout.splitlines()
    modules, names, public = json.loads(first)
    assert not {'torch', 'mmengine', 'mmcv', 'mmpretrain', 'mm_ummae.apis'} & set(modules)
    assert set(public) <= set(names) and 'get_model' in public
    assert error == "module 'mm_ummae' has no attribute 'get_models'"


def test_the_package_has_the_names_of_apis() -> None:
    for name in set(mm_ummae.__all__) - {'__version__'}:
        assert getattr(mm_ummae, name) is getattr(apis, name)
    from mm_ummae import FeatureExtractor

    assert FeatureExtractor is apis.FeatureExtractor


# Names


def test_list_has_the_models_of_each_metafile_that_is_for_mmpretrain() -> None:
    """Training data decide in the code, because reading configs takes long; here a config of each metafile is read."""
    expected = {}
    for file in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        entries = yaml.safe_load((ROOT / file).read_text())['Models']
        if Config.fromfile(ROOT / entries[0]['Config']).default_scope == 'mmpretrain':
            expected.update({entry['Name']: ROOT / entry['Config'] for entry in entries})
    assert PUBLISHED in expected
    assert mm_ummae.list_models() == sorted(expected)
    for name, config in expected.items():
        assert Path(ModelHub._models_dict[name].config).resolve() == config


def test_list_filters_by_the_start_of_the_name_and_by_task(index: Path) -> None:
    assert mm_ummae.list_models() == ['alpha_a', 'alpha_b', 'beta']
    assert mm_ummae.list_models('alpha') == mm_ummae.list_models('*l?ha_') == ['alpha_a', 'alpha_b']
    assert mm_ummae.list_models('lpha') == []
    assert mm_ummae.list_models(task='Image Classification') == ['beta']
    assert mm_ummae.list_models('alpha', task='null') == ['alpha_a', 'alpha_b']
    assert mm_ummae.FeatureExtractor.list_models('b') == ['beta']


def test_registering_tells_mmpretrain_once(index: Path) -> None:
    before = mmpretrain.list_models()
    assert mm_ummae.register_models() == mm_ummae.register_models() == ('alpha_a', 'alpha_b', 'beta')
    assert set(mmpretrain.list_models()) - set(before) == {'alpha_a', 'alpha_b', 'beta'}
    assert ModelHub._models_dict['beta'].config == str(index.parent / 'configs' / 'classifiers' / 'beta.py')


def test_a_name_of_mmpretrain_is_not_taken(index: Path) -> None:
    metafile(index.parent, 'second', 'ImageNet-1k', {'resnet18_8xb32_in1k': None})
    index.write_text(yaml.safe_dump(dict(Import=['configs/second/metafile.yml'])))
    with pytest.raises(ValueError, match='resnet18_8xb32_in1k is conflict'):
        mm_ummae.register_models()


def test_without_the_index_the_error_says_what_puts_it_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apis, 'INDEX', tmp_path / 'model-index.yml')
    with pytest.raises(FileNotFoundError, match=r'model-index\.yml is missing; installing the package puts it there'):
        mm_ummae.list_models()


def test_copies_of_the_files_serve_as_links_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel holds copies; a model is built from them alone."""
    shutil.copy(ROOT / 'model-index.yml', tmp_path)
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    monkeypatch.setattr(apis, 'INDEX', tmp_path / 'model-index.yml')
    model = mm_ummae.get_model(PUBLISHED, **SMALL)
    assert Path(model._config.filename) == tmp_path / 'configs' / 'ummae' / f'{PUBLISHED}.py'


def test_mmpretrain_builds_a_registered_model() -> None:
    with pytest.raises(ValueError, match='Failed to find model'):
        mmpretrain.get_model(PUBLISHED, **SMALL)
    mm_ummae.register_models()
    model = mmpretrain.get_model(PUBLISHED, **SMALL)
    assert isinstance(model, UMMAE) and model.backbone.num_features == [32, 64, 128, 256]


# Models


def test_a_model_by_name_is_that_of_its_config_file() -> None:
    by_name = mm_ummae.get_model(PUBLISHED, **SMALL)
    by_file = mm_ummae.get_model(ROOT / 'configs' / 'ummae' / f'{PUBLISHED}.py', **SMALL)
    assert not by_name.training
    assert by_name._config.model == by_file._config.model and by_name._config.model.backbone.arch == 'test'
    assert by_name._metainfo.name == PUBLISHED and by_file._metainfo is None
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (by_name, by_file)]
    assert shapes[0] == shapes[1]


def test_keywords_leave_the_given_config_alone() -> None:
    config = Config.fromfile(PRETRAIN)
    model = mm_ummae.get_model(config, secondary_ratio=0.5, backbone=dict(out_indices=(0, 3)))
    assert (model.secondary_ratio, model.backbone.out_indices) == (0.5, (0, 3))
    assert config.model.secondary_ratio == 0.25 and 'out_indices' not in config.model.backbone
    with pytest.raises(TypeError, match='no_such_thing'):
        mm_ummae.get_model(config, no_such_thing=1)


@pytest.mark.parametrize('name', ['pretrain', 'simmim', 'classifier'])
def test_every_weight_is_loaded(files: Path, name: str) -> None:
    config = dict(pretrain=PRETRAIN, simmim=SIMMIM, classifier=CLASSIFICATION)[name]
    state = torch.load(files / f'{name}.pth', weights_only=True)['state_dict']
    model = mm_ummae.get_model(str(config), pretrained=str(files / f'{name}.pth'), device='cpu')
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_pretrained_true_takes_the_file_that_the_config_names(files: Path) -> None:
    config = Config.fromfile(PRETRAIN)
    config.load_from = str(files / 'pretrain.pth')
    state = torch.load(files / 'pretrain.pth', weights_only=True)['state_dict']
    model = mm_ummae.get_model(config, pretrained=True)
    assert torch.equal(model.head.pred.weight, state['head.pred.weight'])
    random = mm_ummae.get_model(config, pretrained=False)
    assert not torch.equal(random.head.pred.weight, state['head.pred.weight'])


def test_a_backbone_may_have_no_use_for_its_last_norm(files: Path) -> None:
    model = mm_ummae.get_model(PRETRAIN, files / 'pretrain.pth', backbone=dict(out_indices=(0, 1)))
    state = torch.load(files / 'pretrain.pth', weights_only=True)['state_dict']
    assert set(state) - set(model.state_dict()) == {'backbone.norm.weight', 'backbone.norm.bias'}
    assert torch.equal(model.neck.expand.weight, state['neck.expand.weight'])


def test_a_checkpoint_that_does_not_fit_is_an_error_that_names_the_parameters(files: Path, tmp_path: Path) -> None:
    """MMPretrain would warn and go on with what fits."""
    state = torch.load(files / 'pretrain.pth', weights_only=True)['state_dict']
    del state['neck.mask_token']
    state['neck.extra'] = torch.zeros(1)
    state['head.pred.bias'] = torch.zeros(5)
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    model = mm_ummae.get_model(PRETRAIN)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    message = (
        r'other\.pth does not fit UMMAE, nothing was loaded\. missing: neck\.mask_token; unexpected: neck\.extra; '
        r'other shape: head\.pred\.bias \(5,\) instead of \(768,\)'
    )
    with pytest.raises(ValueError, match=message):
        apis.load_weights(model, tmp_path / 'other.pth')
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match=message):
        mm_ummae.get_model(PRETRAIN, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'does not fit ImageClassifier.*missing: head\.fc\.bias, head\.fc\.weight'):
        mm_ummae.get_model(CLASSIFICATION, files / 'pretrain.pth')


def test_what_cannot_be_built_is_an_error_that_says_why(files: Path) -> None:
    with pytest.raises(ValueError, match=r"model is 'ummae_swim', but there is no such model: mm_ummae\.list_models"):
        mm_ummae.get_model('ummae_swim')
    with pytest.raises(ValueError, match="default_scope of the config is 'mmseg', but only models of mmpretrain"):
        mm_ummae.get_model(SEGMENTATION)
    with pytest.raises(ValueError, match=f'pretrained is True, but no weights of {PUBLISHED} are known'):
        mm_ummae.get_model(PUBLISHED, pretrained=True)
    with pytest.raises(ValueError, match=f'pretrained is True, but no weights of {PRETRAIN} are known'):
        mm_ummae.get_model(PRETRAIN, pretrained=True)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        mm_ummae.get_model(PRETRAIN, files / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match=r'nowhere\.py'):
        mm_ummae.get_model(files / 'nowhere.py')


# Inference


def test_a_pre_training_model_reconstructs(files: Path) -> None:
    model = mm_ummae.get_model(PRETRAIN, files / 'pretrain.pth')
    sample = mm_ummae.inference_model(model, files / 'wide.png', seed=3)
    (expected,) = reconstruct(model, [files / 'wide.png'], seed=3)
    for name in ('image', 'reconstruction', 'unsampled', 'hidden'):
        assert torch.equal(sample.get(name), expected.get(name))
    small = mm_ummae.inference_model(model, files / 'wide.png', image_size=64)
    assert small.reconstruction.shape == (3, 64, 64) and int(small.unsampled.sum()) == 12


def test_a_classifier_classifies(files: Path) -> None:
    """As the network computes it from the image of the test pipeline, which only loads here."""
    model = mm_ummae.get_model(CLASSIFICATION, files / 'classifier.pth')
    image = files / 'square.png'
    pixels = mmcv.imread(str(image))
    inputs = model.data_preprocessor(dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)]))['inputs']
    with torch.no_grad():
        scores = model.head.fc(model.extract_feat(inputs)[-1])[0].softmax(0)
    result = mm_ummae.inference_model(model, image)
    np.testing.assert_allclose(result['pred_scores'], scores.numpy(), rtol=1e-5)
    assert result['pred_label'] == scores.argmax() and result['pred_class'] == CLASSES[scores.argmax()]
    named = mm_ummae.inference_model(model, pixels, classes=[str(i) for i in range(10)])
    assert named['pred_class'] == str(result['pred_label']) and named['pred_score'] == result['pred_score']


def test_inference_takes_no_other_models_and_no_broken_pictures(files: Path) -> None:
    class Other(BaseModel):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs

    with pytest.raises(ValueError, match='model is a Other, but it must be a classifier or a pre-training model'):
        mm_ummae.inference_model(Other(), files / 'square.png')
    with pytest.raises(ValueError, match=r'the image .*pretrain\.pth cannot be read'):
        mm_ummae.inference_model(mm_ummae.get_model(PRETRAIN), files / 'pretrain.pth')


# Features


def maps_of(model: BaseModel, batch: dict) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model.backbone(model.data_preprocessor(batch, training=False)['inputs'])


@pytest.mark.parametrize('name', ['pretrain', 'simmim'])
def test_features_of_a_pre_training_model_are_its_stages_on_whole_pictures(files: Path, name: str) -> None:
    config = dict(pretrain=PRETRAIN, simmim=SIMMIM)[name]
    extract = mm_ummae.FeatureExtractor(config, files / f'{name}.pth', backbone=dict(out_indices=(0, 1, 2, 3)))
    assert isinstance(extract.model, (UMMAE, UMSimMIM)) and not extract.model.training
    images = [str(files / 'wide.png'), mmcv.imread(str(files / 'square.png'))]  # file and array
    features = extract(images, batch_size=2, stage='backbone')
    for maps, file in zip(features, ('wide.png', 'square.png'), strict=True):
        assert [tuple(x.shape) for x in maps] == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
        for x, expected in zip(maps, maps_of(extract.model, load_batch([files / file], 128)), strict=True):
            torch.testing.assert_close(x, expected[0], rtol=1e-4, atol=1e-5)
    one_by_one = extract(images)
    torch.testing.assert_close(one_by_one[1][3], features[1][3], rtol=1e-4, atol=1e-5)


def test_features_of_a_classifier_come_from_each_part(files: Path) -> None:
    """Of the whole image, as the config's test pipeline only loads."""
    model = mm_ummae.get_model(CLASSIFICATION)
    extract = mm_ummae.FeatureExtractor(model, files / 'classifier.pth')
    assert extract.model is model
    state = torch.load(files / 'classifier.pth', weights_only=True)['state_dict']
    assert torch.equal(model.head.fc.weight, state['head.fc.weight'])
    image = str(files / 'wide.png')
    expected = maps_of(model, dict(inputs=[torch.from_numpy(mmcv.imread(image)).permute(2, 0, 1)]))
    (maps,) = extract(image, stage='backbone')
    assert maps[0].shape == (256, 3, 7)
    torch.testing.assert_close(maps[0], expected[0][0], rtol=1e-4, atol=1e-5)
    (pooled,) = extract(image, stage='neck')
    torch.testing.assert_close(pooled[0], model.neck(expected)[0][0].detach(), rtol=1e-4, atol=1e-5)


def test_features_where_another_host_is_at_work(files: Path) -> None:
    """Its default scope has other transforms of the same names."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        extract = mm_ummae.FeatureExtractor(PRETRAIN, files / 'pretrain.pth')
        (maps,) = extract(str(files / 'square.png'))
        mm_ummae.inference_model(mm_ummae.get_model(CLASSIFICATION), files / 'square.png')
    assert maps[0].shape == (256, 4, 4)


def test_features_of_random_weights_must_be_asked_for(files: Path) -> None:
    with pytest.raises(ValueError, match='pretrained is True, but no weights of'):
        mm_ummae.FeatureExtractor(PRETRAIN)
    extract = mm_ummae.FeatureExtractor(PRETRAIN, pretrained=False)
    with pytest.raises(
        ValueError, match=r"stage is 'neck', but a pre-training model has features of its backbone only"
    ):
        extract(str(files / 'square.png'), stage='neck')
    with pytest.raises(ValueError, match='backbone would change the config, but the model was built before'):
        mm_ummae.FeatureExtractor(extract.model, backbone=dict(out_indices=(0,)))


# MMPretrain's tools, as docs/mmpretrain.md calls them


def mim_run(tool: str, *arguments: str | Path, folder: Path) -> str:
    """Output of ``mim run mmpretrain TOOL ...``, called in ``folder``."""
    command = [str(Path(sys.executable).with_name('mim')), 'run', 'mmpretrain', tool, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_get_flops_counts_all_but_attention(tmp_path: Path) -> None:
    output = mim_run('get_flops', PRETRAIN, '--shape', '128', folder=tmp_path)
    params = sum(x.numel() for x in mm_ummae.get_model(PRETRAIN).parameters())
    assert f'Params: {params / 1e6:.3f}M' in output
    # In each of the 2 blocks of a stage a token costs 12 C^2 in linear layers, and 2 C for each token of its window
    stages = [(32, 32**2, 16**2), (64, 16**2, 16**2), (128, 8**2, 8**2), (256, 4**2, 4**2)]  # C, tokens, in a window
    linear = sum(2 * 12 * dims**2 * tokens for dims, tokens, _ in stages)
    attention = sum(2 * 2 * dims * tokens * window for dims, tokens, window in stages)
    (flops,) = re.findall(r'^Flops: ([\d.]+)G$', output, re.M)
    assert linear < float(flops) * 1e9 < linear + attention / 2
    assert 'Unsupported operator aten::scaled_dot_product_attention encountered 8 time(s)' in output


def test_analyze_logs_reads_a_log_of_pre_training(tmp_path: Path) -> None:
    lines = [
        dict(lr=1e-3, time=0.25 * epoch, loss=1 / epoch, epoch=epoch, iter=i, step=i)
        for epoch in (1, 2)
        for i in (1, 2)
    ]
    (tmp_path / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    output = mim_run('analyze_logs', 'cal_train_time', 'scalars.json', folder=tmp_path)
    assert 'average iter time: 0.3750 s/iter' in output and 'slowest epoch 2, average time is 0.5000' in output


def test_names_in_the_docs_exist() -> None:
    """Config files, tools of mmpretrain and of ours, options, and names of the package."""
    text = (ROOT / 'docs' / 'mmpretrain.md').read_text()
    tools = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
    calls = re.findall(r'mim run mmpretrain ([a-z_]+)((?:\\\n|[^\n`])*)', text)
    assert {'get_flops', 'analyze_logs', 'vis_cam'} <= {name for name, _ in calls}
    for name, arguments in calls:
        (script,) = tools.rglob(f'{name}.py')
        for option in re.findall(r'(?<= )--[a-z-]+', arguments):
            assert f"'{option}'" in script.read_text(), (script, option)
    for tool in re.findall(r'mim run mm_ummae ([a-z_]+)', text):
        assert (ROOT / 'tools' / f'{tool}.py').is_file()
    for path in re.findall(r'(?:configs|tools|requirements)/[\w./-]+\.(?:py|txt)', text):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r'\]\(([\w./]+)\)', text):
        assert (ROOT / 'docs' / link).is_file(), link
    for name in re.findall(r"'(um[\w-]+px)'", text):
        assert name in mm_ummae.list_models()
    for name in re.findall(r'mm_ummae\.([A-Za-z_]+)\(', text):
        assert name in mm_ummae.__all__
