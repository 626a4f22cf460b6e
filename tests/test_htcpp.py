"""HTC++ end to end on a CPU: trains, resumes, is tested with augmentation, formats results, survives hard data."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn

from mm_ummae.compatibility import HOSTS, installed_version
from demo.make_data import make_demo_data

from .leaves import ROOT, build_model, config, leaf
from .test_tools import scalars, tool

SMALL = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
WITHOUT = leaf('htcpp-without-semantic_um-swin-tiny_fpn_8xb2-amp-1x_coco')
LOSSES = {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_semantic_seg'} | {
    f's{stage}.loss_{kind}' for stage in range(3) for kind in ('cls', 'bbox', 'mask')
}
IN_PROCESS = [
    f'{split}_dataloader.{option}'
    for split in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images for training, of which the eleventh has a crowd, and two for tests."""
    counts = dict(num_coco_train=12, num_coco_val=2, num_ade_train=1, num_ade_val=1)
    labelled = dict(num_pretrain=1, num_labelled_train=10, num_labelled_val=10)
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', image_size=128, **counts, **labelled)


@pytest.fixture(autouse=True)
def quick_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner formats its config for the log, which takes longer than all the rest."""
    monkeypatch.setattr(Config, 'pretty_text', '')


def data_options(coco: Path) -> list[str]:
    """What a user with data elsewhere sets, and nothing else."""
    truth = f'ann_file={coco}/annotations/instances_val2017.json'
    options = [f'{split}_dataloader.dataset.data_root={coco}/' for split in ('train', 'val', 'test')]
    return [*options, *(f'{split}_evaluator.{truth}' for split in ('val', 'test'))]


def length(iterations: int) -> list[str]:
    return [
        f'train_cfg.max_iters={iterations}',
        f'train_cfg.val_interval={iterations}',
        'default_hooks.logger.interval=1',
        'default_hooks.visualization.draw=False',
    ]


def train(work_dir: Path, coco: Path, iterations: int, *words: str) -> list[dict]:
    """Through tools/train.py; what was logged."""
    # A visualizer that another test made in this process would be taken again
    options = [*data_options(coco), *IN_PROCESS, *length(iterations), f'visualizer.name={work_dir.name}']
    flags = [word for word in words if word.startswith('--')]
    options += [word for word in words if not word.startswith('--')]
    arguments = [str(SMALL), '--work-dir', str(work_dir), *flags, '--cfg-options', *options]
    tool('train').main(arguments)
    newest = max(path for path in work_dir.iterdir() if path.is_dir())
    return scalars(newest)


# The whole chain


@pytest.fixture(scope='module')
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of two iterations and an evaluation, through the host's own script as ``mim`` finds it."""
    distribution = next(name for name in HOSTS['mmdet'][0] if installed_version((name,)))
    work_dir = tmp_path_factory.mktemp('trained') / 'run'
    command = [str(Path(sys.executable).parent / 'mim'), 'train', distribution, str(SMALL)]
    command += ['--work-dir', str(work_dir), '--cfg-options', *data_options(data / 'coco'), *IN_PROCESS, *length(2)]
    done = subprocess.run(command, cwd=work_dir.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return work_dir


def test_every_loss_and_every_ap_is_logged(trained: Path) -> None:
    """Of RPN, semantic branch and three stages; AP of boxes and masks, of small, medium and large ones too."""
    (run,) = (path for path in trained.iterdir() if path.is_dir())
    first, second, evaluation = scalars(run)
    for record in (first, second):
        assert record.keys() >= LOSSES and all(np.isfinite(record[key]) for key in LOSSES)
    sizes = ('', '_50', '_75', '_s', '_m', '_l')
    assert evaluation.keys() >= {f'coco/{kind}_mAP{size}' for kind in ('bbox', 'segm') for size in sizes}


def test_a_run_resumes(trained: Path, data: Path, tmp_path: Path) -> None:
    """With weights, optimiser and iteration: only the third is trained."""
    shutil.copytree(trained, tmp_path / 'resumed')
    (tmp_path / 'resumed' / 'last_checkpoint').write_text(str(tmp_path / 'resumed' / 'iter_2.pth'))
    records = train(tmp_path / 'resumed', data / 'coco', 3, '--resume')
    assert [record['step'] for record in records] == [3, 3]  # the iteration and its evaluation
    before, after = (
        torch.load(tmp_path / 'resumed' / f'iter_{iteration}.pth', weights_only=False) for iteration in (2, 3)
    )
    assert before['meta']['iter'] == 2 and after['meta']['iter'] == 3
    steps = {int(state['step']) for state in after['optimizer']['state'].values()}
    assert steps == {3}


def test_augmented_test_and_formatted_results(trained: Path, data: Path, tmp_path: Path) -> None:
    """Boxes and masks of all views, in the form that COCO's server takes."""
    prefix = tmp_path / 'results' / 'test'
    options = [*data_options(data / 'coco'), *IN_PROCESS, 'visualizer.name=formatted', 'test_dataloader.batch_size=1']
    options.append('default_hooks.visualization.draw=False')
    words = [str(SMALL), str(trained / 'iter_2.pth'), '--work-dir', str(tmp_path / 'run'), '--tta']
    assert tool('test').main([*words, '--format-only', str(prefix), '--cfg-options', *options]) == {}
    boxes, masks = (json.loads(Path(f'{prefix}.{kind}.json').read_text()) for kind in ('bbox', 'segm'))
    truth = json.loads((data / 'coco/annotations/instances_val2017.json').read_text())
    assert {box['image_id'] for box in boxes} == {image['id'] for image in truth['images']}
    assert len(masks) == len(boxes) > 0
    assert {box['category_id'] for box in boxes} <= {category['id'] for category in truth['categories']}
    assert all(mask['segmentation']['size'] == [128, 128] for mask in masks)


# Learning


def samples(cfg: Config, count: int) -> dict[str, Any]:
    """The first images as they are, without InstaBoost and other sizes."""
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=count)
    cfg.train_dataloader.sampler.shuffle = False
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == 'mm_ummae.InstaBoost':
            step.aug_ratio = 0.0
        if step.type == 'RandomResize':
            step.scale = [(128, 128), (128, 128)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))


def small(data: Path) -> Config:
    cfg = config(SMALL)
    cfg.train_dataloader.dataset.data_root = f'{data}/coco/'
    return cfg


def proposals_around(boxes: torch.Tensor) -> InstanceData:
    """Eight of each box (n, 4), moved by up to an eighth of its sides, and forty anywhere on an image of 128 px."""
    rng = np.random.default_rng(0)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(8, 2)
    near = boxes.repeat(8, 1) + sides * torch.from_numpy(rng.uniform(-0.12, 0.12, sides.shape)).float()
    corners = torch.from_numpy(rng.uniform(0, 80, (40, 2))).float()
    found = torch.cat((near, torch.cat((corners, corners + 40), 1)))
    return InstanceData(bboxes=found, scores=torch.ones(len(found)), labels=torch.zeros(len(found), dtype=torch.long))


def test_every_loss_falls_on_one_picture(data: Path) -> None:
    """To less than half. The proposals stay the same, else later stages get more boxes while the RPN learns."""
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = small(data)
    batch, model = samples(cfg, 1), build_model(cfg, 'cpu').train()
    model.init_weights()
    found = [proposals_around(sample.gt_instances.bboxes.tensor) for sample in batch['data_samples']]
    model.rpn_head.predict_by_feat = lambda *args, **kwargs: copy.deepcopy(found)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    history: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(60):
        inputs = model.data_preprocessor(copy.deepcopy(batch), True)
        total, terms = model.parse_losses(model(**inputs, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        for name, values in history.items():
            values.append(terms[name].item())
    for name, values in history.items():
        assert np.mean(values[-10:]) < 0.5 * np.mean(values[:10]), (name, values)


def test_a_network_trained_without_the_extra_layer_starts_one_with_it(data: Path, tmp_path: Path) -> None:
    """The same maps from the same images: the layer changes nothing until it is trained."""
    cfg, images = small(data), torch.randn(1, 3, 128, 128)
    plain = copy.deepcopy(cfg)
    plain.model.neck[0].extra_layer = None
    torch.manual_seed(3)
    model = build_model(plain, 'cpu').eval()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'plain.pth')
    (command,) = re.findall(r'load_from=TRAINED.pth [^`]+', (ROOT / 'docs' / 'htcpp.md').read_text())
    options = [*data_options(data / 'coco'), *command.split()]
    # As in the full-size configs, which stop without weights
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='', prefix='backbone')
    cfg.merge_from_dict(
        {key: DictAction._parse_iterable(value) for key, value in (option.split('=', 1) for option in options)}
        | dict(load_from=str(tmp_path / 'plain.pth'), work_dir=str(tmp_path / 'run'), experiment_name='extended')
    )
    cfg.visualizer.name = 'extended'
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner._init_model_weights()
    runner.load_or_resume()  # CheckpointKeysHook looks at it
    extended = runner.model.eval()
    with torch.no_grad():
        for a, b in zip(model.extract_feat(images), extended.extract_feat(images), strict=True):
            assert torch.equal(a, b)
    assert not any(name.startswith('neck.0.extra_layer') for name in model.state_dict())
    assert any(name.startswith('neck.0.extra_layer') for name in extended.state_dict())


def test_pretrained_weights_are_options(data: Path, tmp_path: Path) -> None:
    """As the config's first lines say; the config itself starts from scratch."""
    head = SMALL.read_text().split('_base_')[0]
    options = dict(option.split('=') for option in re.findall(r'model\.backbone\.init_cfg\.\w+=\w+', head))
    cfg = small(data)
    assert len(options) == 3 and not cfg.model.backbone.init_cfg
    state = {f'backbone.{name}': torch.full_like(value, 0.5) for name, value in build_backbone(cfg).items()}
    torch.save(dict(state_dict=state), tmp_path / 'PRETRAINED.pth')
    options['model.backbone.init_cfg.checkpoint'] = str(tmp_path / 'PRETRAINED.pth')
    cfg.merge_from_dict(options)
    model = build_model(cfg, 'cpu')
    model.init_weights()
    assert all(bool((value == 0.5).all()) for value in model.backbone.parameters())


def build_backbone(cfg: Config) -> dict[str, torch.Tensor]:
    return build_model(copy.deepcopy(cfg), 'cpu').backbone.state_dict()


# Hard data


@pytest.fixture
def hard(data: Path, tmp_path: Path) -> Path:
    """Images without objects, with one-pixel objects, with a crowd alone, and smaller than a window."""
    coco = tmp_path / 'coco'
    shutil.copytree(data / 'coco', coco)
    for split in ('train', 'val'):
        path = coco / f'annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        content['images'] = (content['images'] * 2)[:4]
        if split == 'val':
            content['images'] = content['images'][:2] + [
                dict(image, id=image['id'] + 10, file_name=f'more_{image["file_name"]}')
                for image in content['images'][:2]
            ]
        empty, pixels, crowd, tiny = content['images']
        for image, side in ((empty, 128), (pixels, 128), (crowd, 128), (tiny, 20)):
            picture = np.random.default_rng(image['id']).integers(0, 256, (side, side, 3), np.uint8)
            cv2.imwrite(str(coco / f'{split}2017' / image['file_name']), picture)
            name = Path(image['file_name']).with_suffix('.png')
            cv2.imwrite(str(coco / f'stuffthingmaps/{split}2017' / name), np.full((side, side), 255, np.uint8))
            image.update(width=side, height=side)
        content['annotations'] = [
            annotation(pixels, 1, (0, 0, 1, 1)),
            annotation(pixels, 2, (127, 127, 1, 1)),
            annotation(pixels, 3, (60, 60, 1, 1)),
            annotation(crowd, 4, (10, 10, 60, 40), crowd=True),
            annotation(tiny, 5, (2, 3, 9, 12)),
        ]
        path.write_text(json.dumps(content))
    return coco


def annotation(image: dict, number: int, box: tuple[int, int, int, int], crowd: bool = False) -> dict:
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    runs = [y + x * image['height'], height] + [image['height'] - height, height] * (width - 1)
    runs.append(image['height'] * image['width'] - sum(runs))
    return dict(
        id=number,
        image_id=image['id'],
        category_id=1 + number % 10,
        bbox=list(box),
        area=width * height,
        iscrowd=int(crowd),
        segmentation=dict(size=[image['height'], image['width']], counts=runs) if crowd else [polygon],
    )


@pytest.mark.parametrize('side', [128, 32])
def test_hard_data_train_and_evaluate(side: int, hard: Path, tmp_path: Path) -> None:
    """With InstaBoost at work whenever it can; at 32 px the whole image is smaller than a window of 64."""
    sides = [f'train_dataloader.dataset.pipeline.4.scale=[({side},{side}),({side},{side})]']
    sides += [f'{split}_dataloader.dataset.pipeline.1.scale=({side},{side})' for split in ('val', 'test')]
    keep_all = 'train_dataloader.dataset.filter_cfg.filter_empty_gt=False'
    small_too = 'train_dataloader.dataset.filter_cfg.min_size=1'
    always = 'train_dataloader.dataset.pipeline.1.aug_ratio=1.0'
    records = train(tmp_path / f'run{side}', hard, 4, keep_all, small_too, always, *sides)
    losses = [record for record in records if 'loss' in record]
    assert len(losses) == 4 and all(np.isfinite(record[key]) for record in losses for key in LOSSES)
    evaluation = records[-1]
    assert evaluation.keys() >= {'coco/bbox_mAP', 'coco/segm_mAP'}


def test_missing_stuff_maps_stop_the_run(data: Path, tmp_path: Path) -> None:
    """Before the first iteration, with the folder and what to use instead."""
    shutil.copytree(data / 'coco', tmp_path / 'coco', ignore=shutil.ignore_patterns('stuffthingmaps'))
    with pytest.raises(FileNotFoundError, match=r'stuffthingmaps/train2017.*htcpp-without-semantic_\*'):
        train(tmp_path / 'run', tmp_path / 'coco', 2)
    assert list(ROOT.glob('configs/htc/htcpp-without-semantic_*.py')), 'the advice leads nowhere'


def test_stuff_maps_are_not_needed_without_the_semantic_branch(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / 'coco', tmp_path / 'coco', ignore=shutil.ignore_patterns('stuffthingmaps'))
    cfg = config(WITHOUT)
    loader = cfg.train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.update(data_root=f'{tmp_path}/coco/', metainfo=config(SMALL).train_dataloader.dataset.metainfo)
    with DefaultScope.overwrite_default_scope('mmdet'):
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    assert all('gt_sem_seg' not in sample and len(sample.gt_instances) for sample in batch['data_samples'])


def test_a_missing_instaboost_stops_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'instaboostfast', None)
    with pytest.raises(ImportError, match=r'pip install --no-build-isolation instaboostfast==0\.1\.2'):
        train(tmp_path / 'run', data / 'coco', 2)
