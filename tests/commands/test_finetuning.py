"""Fine-tuning and prediction on own labelled images in one call."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from PIL import Image

import mm_ummae
from mm_ummae.__main__ import main
from mm_ummae.commands import MODELS, TASKS, finetune, finetuning_recipes, predict, pretrain, run_folder
from mm_ummae.commands.finetuning import Finetuning, finetuning_config
from mm_ummae.commands.finetuning_recipes import RECIPES, choose_recipe, image_size_values, network_lines
from mm_ummae.commands.pretraining import Pretraining
from mm_ummae.datasets.damaged import DataError
from mm_ummae.registry import MODELS as REGISTRY
from mm_ummae.resources import config_path
from tests.conftest import ROOT
from tests.labelled_images import IDS, make_classes, make_coco, make_pairs
from tests.mixed_images import KINDS, make_mixed_images

MAKE = dict(detection=make_coco, segmentation=make_pairs, classification=make_classes)
SCORE = dict(detection='coco/bbox_mAP', segmentation='mIoU', classification='accuracy/top1')
SMALL = dict(epochs=1, image_size=64, workers=0)
NAMES = dict(detection=tuple(IDS), segmentation=('washer', 'bolt', 'nut'), classification=tuple(sorted(IDS)))


@pytest.fixture(scope='module')
def start(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A pre-training on images of all kinds."""
    folder = tmp_path_factory.mktemp('start')
    photos = make_mixed_images(folder / 'my photos', 18, 64)
    return pretrain(photos, folder / 'run', 'um-swin-test', image_size=64, epochs=1, workers=0)


@pytest.fixture(scope='module', params=TASKS)
def finished(
    request: pytest.FixtureRequest, start: Pretraining, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Finetuning]:
    """A fine-tuning on images of all kinds, from a pre-training."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = MAKE[task](folder / 'my data, of 2026', 12, side=64, kinds=tuple(KINDS))
    return task, data, finetune(task, data, folder / 'a run', start.config.parent, **SMALL)


@pytest.mark.integration
def test_labelled_images_become_a_model(finished: tuple[str, Path, Finetuning], start: Pretraining) -> None:
    """With its classes, the reading and the weights of the pre-training, and its metrics."""
    task, _, result = finished
    cfg = Config.fromfile(result.config)
    meta = torch.load(start.backbone, weights_only=False)['meta']['pretraining']
    assert meta['model'] == 'um-swin-test' and 1000 < meta['value_range'][1] < 5000
    assert result.classes == cfg.classes == NAMES[task] and cfg.checkpoint == str(start.backbone)
    load = cfg.train_dataloader.dataset.pipeline[0]
    assert load.value_range == cfg.test_dataloader.dataset.pipeline[0].value_range == meta['value_range'], (
        'some are deep'
    )
    content = torch.load(result.checkpoint, weights_only=False)
    assert 'optimizer' not in content and tuple(content['meta']['dataset_meta']['classes']) == NAMES[task]
    assert SCORE[task] in result.metrics and json.loads((result.config.parent / 'metrics.json').read_text())
    log = ''.join(path.read_text() for path in (result.config.parent / 'run').rglob('*.log'))
    assert 'all 144 parameters loaded' in log and f'{task} with um-swin-test: 1 epochs' in log
    assert '3 of 3 classes' in log or '3 classes, as the heads have' in log, 'labels are checked'
    assert 'launcher' in cfg and cfg.work_dir == str(result.config.parent / 'run')


@pytest.mark.integration
def test_a_finished_run_is_left_and_other_settings_are_refused(
    finished: tuple[str, Path, Finetuning], start: Pretraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data, result = finished
    monkeypatch.setattr(run_folder.RUNNERS, 'build', lambda cfg: pytest.fail('it was trained or measured again'))
    out = result.config.parent
    assert finetune(task, data, out, start.config.parent, **SMALL) == result
    with pytest.raises(ValueError, match=r'other settings \(.*epochs is 1, not 2.*: give another folder'):
        finetune(task, data, out, start.config.parent, **SMALL | dict(epochs=2))
    with pytest.raises(ValueError, match=r'it holds a run on other data: .* would change'):
        finetune(task, data, out, start.config.parent, val_share=0.4, **SMALL)


@pytest.mark.integration
def test_predictions_are_those_of_the_test(finished: tuple[str, Path, Finetuning], tmp_path: Path) -> None:
    """For all kinds of images, with their names, and without what cannot be read."""
    task, data, result = finished
    images = data.parent / 'images' if task == 'detection' else data / 'images' if task == 'segmentation' else data
    (images / 'broken.jpg').write_bytes(b'no image')
    words = ['predict', '--data', str(images), '--checkpoint', str(result.config.parent), '--out', f'{tmp_path}/out']
    main([*words, '--score', '0', '--draw', '3', '--device', 'cpu'])
    (images / 'broken.jpg').unlink()
    files = sorted(path for path in images.rglob('*.*') if path.suffix not in ('.txt',))
    pictures = list((tmp_path / 'out' / 'drawn').rglob('*.jpg'))
    assert len(pictures) == 3 and all(np.asarray(Image.open(path)).std() > 5 for path in pictures)
    names = {path.relative_to(images).as_posix() for path in files}
    if task == 'detection':
        found = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
        assert {each['category'] for each in found} <= set(IDS) and {each['file_name'] for each in found} <= names
        assert all(len(each['bbox']) == 4 and set(each['segmentation']) == {'size', 'counts'} for each in found)
    elif task == 'segmentation':
        folder = tmp_path / 'out' / 'maps'
        maps = {path.relative_to(folder).as_posix()[:-4]: path for path in folder.rglob('*.png')}
        assert set(maps) == names
        for name, path in maps.items():
            values = np.asarray(Image.open(path))
            assert set(np.unique(values)) <= set(IDS.values())
            assert values.shape == np.asarray(Image.open(data / 'masks' / Path(name).with_suffix('.png'))).shape
    else:
        rows = list(csv.DictReader((tmp_path / 'out' / 'predictions.csv').open()))
        assert {row['file'] for row in rows} == names and all(row['class'] in IDS for row in rows)
        assert all(sum(float(row[name]) for name in IDS) == pytest.approx(1, abs=1e-3) for row in rows)
        cfg = Config.fromfile(result.config)
        tested = {line.rsplit(' ', 1)[0]: int(line[-1]) for line in Path(cfg.test_list).read_text().splitlines()}
        right = [NAMES[task][tested[row['file']]] == row['class'] for row in rows if row['file'] in tested]
        assert 100 * np.mean(right) == pytest.approx(result.metrics['accuracy/top1'], abs=0.1)


@pytest.mark.integration
@pytest.mark.slow
def test_the_config_is_an_ordinary_one(start: Pretraining, tmp_path: Path) -> None:
    """The training tool takes it as it is, and the test tool computes the same metrics."""
    data = make_classes(tmp_path / 'data', 12, 64)
    result = finetune('classification', data, tmp_path / 'run', model='um-swin-test', **SMALL)
    command = [sys.executable, 'tools/train.py', str(result.config), '--work-dir', str(tmp_path / 'again')]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    first, second = (
        torch.load(path, weights_only=False)['state_dict']
        for path in (result.checkpoint, tmp_path / 'again' / 'epoch_1.pth')
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    command = [sys.executable, 'tools/test.py', str(result.config), str(result.checkpoint), '--work-dir', str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert f'accuracy/top1: {result.metrics["accuracy/top1"]:.4f}' in done.stdout + done.stderr


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize('masks', [True, False])
def test_bands_from_pretraining_to_detection(masks: bool, tmp_path: Path) -> None:
    """Six bands of 16 bits, read, normalised and drawn as they are, also by a detector without masks."""
    file = make_coco(tmp_path, 16, side=64, kinds=('bands.tif',), masks=masks)
    content = json.loads(file.read_text())
    for image in content['images']:
        path = tmp_path / 'images' / image['file_name']
        rgb = tifffile.imread(path)[..., :3].astype(np.uint16) * 20 + 300
        tifffile.imwrite(path, np.dstack((rgb, rgb + 90)), planarconfig='contig')
    before = pretrain(tmp_path / 'images', tmp_path / 'start', 'um-swin-test', image_size=64, epochs=1, workers=0)
    result = finetune('detection', file, tmp_path / 'run', before.config.parent, **SMALL)
    cfg = Config.fromfile(result.config)
    assert cfg.model.backbone.in_channels == len(cfg.model.data_preprocessor.mean) == cfg.channels == 6
    assert ('segm' in cfg.test_evaluator.metric) == masks == cfg.masks
    assert not result.metrics or ('coco/segm_mAP' in result.metrics) == masks, 'empty if nothing was detected'
    weight = torch.load(result.checkpoint, weights_only=False)['state_dict']['backbone.patch_embed.projection.weight']
    assert weight.shape[1] == 6
    out = predict(tmp_path / 'images', result.checkpoint, tmp_path / 'out', score=0.0)
    assert len(list((out / 'drawn').rglob('*.jpg'))) == 16


@pytest.mark.integration
@pytest.mark.slow
def test_the_inferencers_of_the_hosts_take_the_result(tmp_path: Path) -> None:
    """Config and weights as they are, for images of 8 bits and three channels."""
    from mmdet.apis import DetInferencer
    from mmpretrain import ImageClassificationInferencer
    from mmseg.apis import MMSegInferencer

    for task in TASKS:
        data = MAKE[task](tmp_path / task, 12, side=64)
        before = dict(start='mm_ummae://um-swin-test', model='um-swin-test')
        result = finetune(task, data, tmp_path / f'{task} run', **before, **SMALL)
        config, weights = str(result.config), str(result.checkpoint)
        image = str(next((tmp_path / task).rglob('*rgb.jpg')))
        own = predict(image, result.checkpoint, tmp_path / f'{task} out', score=0.0)
        if task == 'detection':
            found = DetInferencer(model=config, weights=weights, device='cpu')(image)['predictions'][0]
            mine = json.loads((own / 'predictions.json').read_text())
            assert [each['score'] for each in mine] == pytest.approx(found['scores'], abs=1e-3)
        elif task == 'segmentation':
            found = MMSegInferencer(model=config, weights=weights, device='cpu')(image)['predictions']
            (mine,) = (own / 'maps').glob('*.png')
            assert (np.array([3, 7, 20])[found] == np.asarray(Image.open(mine))).mean() > 0.99
        else:
            found = ImageClassificationInferencer(config, pretrained=weights, device='cpu')(image)[0]
            mine = next(csv.DictReader((own / 'predictions.csv').open()))
            assert found['pred_class'] == mine['class']
            assert found['pred_scores'] == pytest.approx([float(mine[name]) for name in NAMES[task]], abs=1e-3)


@pytest.mark.integration
@pytest.mark.slow
def test_several_processes_share_the_batch(tmp_path: Path) -> None:
    """Of pre-training and fine-tuning, by torchrun; the others wait for what the first one writes."""
    make_mixed_images(tmp_path / 'photos', 36, 64)
    make_classes(tmp_path / 'kinds', 24, 64)
    torchrun = [sys.executable, *['-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '29534']]
    for words in (
        'pretrain --data photos --model um-swin-test --out work/photos',
        'finetune --task classification --data kinds --start work/photos --out work/classifier',
    ):
        command = f'-m mm_ummae -- {words} --image-size 64 --epochs 1 --workers 0'
        done = subprocess.run(
            [*torchrun, *command.split()],
            cwd=tmp_path,
            env=dict(os.environ, CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert ' images x 1 iterations x 2 devices)' in done.stdout + done.stderr
    assert done.stdout.count('\naccuracy/top1: ') == 1, 'by the first process'
    assert (tmp_path / 'work' / 'classifier' / 'model.pth').exists()


def _config(task: str, name: str, folder: Path, **change: Any) -> Config:
    """The config of a network, without looking at data."""
    channels, size = change.pop('channels', 3), change.pop('size', None)
    recipe, lines = choose_recipe(task, name)
    values = dict(classes=tuple('abcd'), channels=channels, mean=[1.0] * channels, std=[2.0] * channels)
    values |= dict(checkpoint=None, amp=False, **image_size_values(task, recipe, size)) | change
    lines = [*lines, *network_lines(task, recipe, lines, channels, size)]
    cfg = Config.fromstring(finetuning_config(folder, task, recipe, values, lines, name), '.py')
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return cfg


@pytest.mark.parametrize(('task', 'name'), [(task, name) for task in TASKS for name in RECIPES[task]])
def test_values_of_the_template_reach_the_recipe(task: str, name: str, tmp_path: Path) -> None:
    cfg = _config(task, name, tmp_path, lr=3e-5, epochs=7)
    assert cfg.optim_wrapper.optimizer.lr == 3e-5 and cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs == 7
    assert find_counts(cfg.model) == {4}


def find_counts(node: Any) -> set[int]:
    """All ``num_classes`` of a model's config."""
    if isinstance(node, dict):
        own = {node['num_classes']} if 'num_classes' in node else set()
        return own.union(*map(find_counts, node.values()))
    return set().union(*map(find_counts, node)) if isinstance(node, list) else set()


def test_networks_without_a_recipe_are_derived_or_refused() -> None:
    for task in TASKS:
        for name in set(MODELS) - set(RECIPES[task]) - set(finetuning_recipes.SAME):
            if name.startswith(('um-vit', 'lomar')):
                with pytest.raises(ValueError, match=f"'{name}', but there is no recipe for {task} with it: take one"):
                    choose_recipe(task, name)
            elif not name.endswith('base'):  # built in seconds
                recipe, lines = choose_recipe(task, name)
                assert (recipe in RECIPES[task].values() and 'in_channels=[' in ''.join(lines)) or task == TASKS[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'task'),
    [
        ('um-swin-base', 'detection'),
        ('um-pvt-small', 'segmentation'),
        ('swin-tiny', 'classification'),
        ('swin-v2-tiny', 'segmentation'),
        ('pvt-v2-b2', 'detection'),
        ('convnext-tiny', 'segmentation'),
        ('twins-svt-small', 'classification'),
        ('resnet-50', 'detection'),
    ],
)
def test_backbones_of_the_pretraining_fit(name: str, task: str, tmp_path: Path) -> None:
    """Strictly, with five bands, and with the options of the optimizer."""
    from mmengine.optim import build_optim_wrapper

    source = REGISTRY.build(Config.fromfile(config_path(MODELS[name])).model.backbone)
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'backbone.pth')
    cfg = _config(task, name, tmp_path / 'run', channels=5, size=192, checkpoint=str(tmp_path / 'backbone.pth'))
    model = ROOT_MODELS.build(cfg.model).eval()
    model.init_weights()
    inner = [key for key, value in state.items() if value.dim() > 1][-1]
    assert torch.equal(dict(model.backbone.state_dict())[inner.removeprefix('backbone.')], state[inner])
    build_optim_wrapper(model, cfg.optim_wrapper)
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 5, 192, 192))
    assert len(maps) == dict(detection=5, segmentation=4, classification=1)[task]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(task='detecting'), "task is 'detecting', but it must be one of detection, segmentation, classification"),
        (dict(model='um-swin-tinny'), "model is 'um-swin-tinny', but it must be one of um-swin-test"),
        (dict(start='nothing.pth'), 'start is nothing.pth, but there is no file'),
        (dict(val='val.json'), r'val is val.json, but task is classification: it is an option of detection'),
        (dict(masks='masks'), r'masks is masks, but task is classification: it is an option of segmentation'),
        (dict(image_size=100), 'image_size is 100, but it must be a multiple of 32 px'),
        (dict(batch=640), r'batch is 640, but there are only 9 images: give a smaller batch'),
        (dict(data='nowhere'), r'data is .*nowhere, but there is no such folder'),
        (dict(epochs=0), 'epochs is 0, but it must be above 0'),
        (dict(value_range=[5.0, 1.0]), r'value_range is \[5.0, 1.0\], but it must be'),
        (dict(out='data/run'), r'out is .*data/run, but it lies in data'),
        (dict(start='mm_ummae://um-pvt-test'), 'um-pvt-test'),
    ],
)
def test_mistakes_leave_nothing_behind(
    change: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_classes(tmp_path / 'data', 12, 64)
    arguments = dict(task='classification', data='data', out='run', model='um-swin-test') | change
    with pytest.raises((ValueError, FileNotFoundError, DataError), match=message):
        finetune(**arguments)
    assert [path.name for path in tmp_path.iterdir()] == ['data'] and not (tmp_path / 'data' / 'run').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(score=2), r'score is 2, but it must be in 0..1'),
        (dict(checkpoint='no.pth'), 'checkpoint is no.pth, but there is no file .*no.pth'),
        (dict(out='.'), r'out is .*, but it exists and is not empty'),
        (dict(data='nowhere'), 'nowhere is neither an image nor a folder with images'),
        (dict(), r'config.py does not exist: give the config of the run \(config\)'),
    ],
)
def test_mistakes_in_predictions(change: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_classes(tmp_path / 'data', 3, 64)
    (tmp_path / 'model.pth').write_bytes(b'')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict(**dict(dict(data='data', checkpoint='model.pth', out='out'), **change))
    assert not (tmp_path / 'out').exists()


def test_it_is_in_the_package() -> None:
    assert mm_ummae.finetune is finetune and mm_ummae.predict is predict
