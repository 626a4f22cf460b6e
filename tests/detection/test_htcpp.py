"""HTC++ end to end on the demo's data: training, resuming, augmented tests, starting weights and hard images."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mm_ummae.compatibility import HOSTS, installed_version
from tests.builders import seeded
from tests.detection.detectors import build, leaf
from tests.runs import logged

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LEAF = leaf('htcpp_um-swin-test_*_demo-128px')
SPLITS = ('train', 'val', 'test')
LOSSES = {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_semantic_seg'} | {
    f's{stage}.loss_{kind}' for stage in range(3) for kind in ('cls', 'bbox', 'mask')
}
METRICS = {f'coco/{kind}_mAP{size}' for kind in ('bbox', 'segm') for size in ('', '_50', '_75', '_s', '_m', '_l')}
Tool = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def quick_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner formats its config for the log, which takes longer than the rest of a test."""
    monkeypatch.setattr(Config, 'pretty_text', '')


def options(coco: Path, iterations: int = 2) -> list[str]:
    """Options for data in another folder, loading in this process and short training."""
    annotations = f'ann_file={coco}/annotations/instances_val2017.json'
    loaders = ('num_workers=0', 'persistent_workers=False', 'batch_size=2', f'dataset.data_root={coco}/')
    return [
        *(f'{split}_dataloader.{option}' for split in SPLITS for option in loaders),
        *(f'{split}_evaluator.{annotations}' for split in SPLITS[1:]),
        f'train_cfg.max_iters={iterations}',
        f'train_cfg.val_interval={iterations}',
        'default_hooks.logger.interval=1',
        'default_hooks.visualization.draw=False',
    ]


def train(tool: Tool, work_dir: Path, coco: Path, *more: str, iterations: int = 2, resume: bool = False) -> list[dict]:
    """Run tools/train.py; returns what was logged."""
    # A visualizer of the same name in this process would be used again
    values = [*options(coco, iterations), f'visualizer.name={work_dir.name}', *more]
    flags = ['--resume'] if resume else []
    tool('train').main([str(LEAF), '--work-dir', str(work_dir), *flags, '--cfg-options', *values])
    return logged(newest(work_dir))


def newest(work_dir: Path) -> Path:
    """The folder of the last run."""
    return max(path for path in work_dir.iterdir() if path.is_dir())


# The whole chain


@pytest.fixture(scope='module')
def trained(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of two iterations and an evaluation, run by ``mim``."""
    distribution = next(name for name in HOSTS['mmdet'][0] if installed_version((name,)))
    work_dir = tmp_path_factory.mktemp('trained') / 'run'
    command = [str(Path(sys.executable).parent / 'mim'), 'train', distribution, str(LEAF)]
    command += ['--work-dir', str(work_dir), '--cfg-options', *options(demo_data / 'coco')]
    # More threads would only be slower on networks of this size
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=work_dir.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return work_dir


def test_losses_and_metrics_are_logged(trained: Path) -> None:
    """Of RPN, semantic branch and all stages; AP of boxes and masks, also by size."""
    *steps, evaluation = logged(newest(trained))
    assert len(steps) == 2 and evaluation.keys() >= METRICS
    for step in steps:
        assert step.keys() >= LOSSES and all(np.isfinite(step[name]) for name in LOSSES)


def test_a_run_resumes(trained: Path, demo_data: Path, tool: Tool, tmp_path: Path) -> None:
    """With weights, optimizer and iteration: only the third iteration is trained."""
    work_dir = shutil.copytree(trained, tmp_path / 'resumed')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_2.pth'))
    records = train(tool, work_dir, demo_data / 'coco', iterations=3, resume=True)
    assert [record['step'] for record in records] == [3, 3]  # the iteration and its evaluation
    checkpoint = torch.load(work_dir / 'iter_3.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == 3
    assert {int(state['step']) for state in checkpoint['optimizer']['state'].values()} == {3}


def test_augmented_test(trained: Path, demo_data: Path, tool: Tool, tmp_path: Path) -> None:
    """Boxes and masks from the views of the config are evaluated and drawn."""
    words = [str(LEAF), str(trained / 'iter_2.pth'), '--work-dir', str(tmp_path), '--tta', '--show-dir', 'seen']
    metrics = tool('test').main([*words, '--cfg-options', *options(demo_data / 'coco'), 'visualizer.name=augmented'])
    assert metrics.keys() == METRICS and all(-1 <= value <= 1 for value in metrics.values())
    assert [path for path in (tmp_path / 'seen').rglob('*') if path.suffix in ('.jpg', '.png')]


# Learning and starting weights


def config(demo_data: Path) -> Config:
    cfg = Config.fromfile(LEAF)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.data_root = f'{demo_data}/coco/'
    return cfg


def first_image(cfg: Config) -> dict[str, list]:
    """A batch of one image as it is, without InstaBoost and resizing."""
    cfg.train_dataloader.batch_size = 1
    cfg.train_dataloader.sampler.shuffle = False
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == 'mm_ummae.InstaBoost':
            step.aug_ratio = 0.0
        if step.type == 'RandomResize':
            step.scale = [(128, 128), (128, 128)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))


def proposals_around(boxes: Tensor) -> InstanceData:
    """Eight around each box (n, 4), shifted by up to an eighth of its sides, and forty anywhere in the image."""
    rng = np.random.default_rng(0)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(8, 2)
    near = boxes.repeat(8, 1) + sides * torch.from_numpy(rng.uniform(-0.12, 0.12, sides.shape)).float()
    corners = torch.from_numpy(rng.uniform(0, 80, (40, 2))).float()
    found = torch.cat((near, torch.cat((corners, corners + 40), 1)))
    return InstanceData(bboxes=found, scores=torch.ones(len(found)), labels=torch.zeros(len(found), dtype=torch.long))


def test_every_loss_falls_on_one_image(demo_data: Path) -> None:
    """To less than half. Proposals are fixed, because later stages get more boxes while the RPN learns."""
    np.random.seed(0)
    cfg = config(demo_data)
    batch, model = first_image(cfg), build(cfg.model).train()
    model.init_weights()
    found = [proposals_around(sample.gt_instances.bboxes.tensor) for sample in batch['data_samples']]
    model.rpn_head.predict_by_feat = lambda *args, **kwargs: copy.deepcopy(found)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(24):
        inputs = model.data_preprocessor(copy.deepcopy(batch), True)
        total, terms = model.parse_losses(model(**inputs, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        for name, values in history.items():
            values.append(terms[name].item())
    for name, values in history.items():
        assert np.mean(values[-5:]) < 0.5 * np.mean(values[:5]), (name, values)


def test_a_network_without_the_extra_layer_starts_one_with_it(demo_data: Path, tmp_path: Path) -> None:
    """Both compute the same maps: the layer changes nothing until it is trained."""
    cfg, images = config(demo_data), seeded(1, 3, 128, 128)
    plain = copy.deepcopy(cfg.model)
    plain.neck[0].extra_layer = None
    model = build(plain, seed=3).eval()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'plain.pth')
    # As documented; the full-size configs stop without backbone weights otherwise
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='', prefix='backbone')
    cfg.merge_from_dict({'load_from': str(tmp_path / 'plain.pth'), 'model.backbone.init_cfg': None})
    cfg.update(work_dir=str(tmp_path), experiment_name='extended')
    cfg.visualizer.name = 'extended'
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner._init_model_weights()
    runner.load_or_resume()  # where CheckpointKeysHook compares the names
    extended = runner.model.eval()
    with torch.no_grad():
        for expected, out in zip(model.extract_feat(images), extended.extract_feat(images), strict=True):
            assert torch.equal(out, expected)
    new = extended.state_dict().keys() - model.state_dict().keys()
    assert new and all(name.startswith('neck.0.extra_layer') for name in new)


# Data


@pytest.fixture
def hard(demo_data: Path, tmp_path: Path) -> Path:
    """An image without objects, one with one-pixel objects, one with only a crowd, and one smaller than a window."""
    coco = shutil.copytree(demo_data / 'coco', tmp_path / 'coco')
    for split in ('train', 'val'):
        path = coco / f'annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        images = [
            dict(id=number, file_name=f'hard_{number}.jpg', width=side, height=side)
            for number, side in enumerate((128, 128, 128, 20))
        ]
        for image in images:
            shape = (image['height'], image['width'])
            noise = np.random.default_rng(image['id']).integers(0, 256, (*shape, 3), np.uint8)
            cv2.imwrite(str(coco / f'{split}2017' / image['file_name']), noise)
            stuff_map = (coco / f'stuffthingmaps/{split}2017' / image['file_name']).with_suffix('.png')
            cv2.imwrite(str(stuff_map), np.full(shape, 255, np.uint8))
        _, single_pixels, crowd, tiny = images
        boxes = [(single_pixels, (x, y, 1, 1)) for x, y in ((0, 0), (127, 127), (60, 60))]
        boxes += [(crowd, (10, 10, 60, 40)), (tiny, (2, 3, 9, 12))]
        annotations = [annotation(image, i, box, image is crowd) for i, (image, box) in enumerate(boxes, 1)]
        path.write_text(json.dumps(dict(content, images=images, annotations=annotations)))
    return coco


def annotation(image: dict, number: int, box: tuple[int, int, int, int], crowd: bool) -> dict:
    """A rectangle; as run-lengths for a crowd."""
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
def test_hard_images_train_and_evaluate(side: int, hard: Path, tool: Tool, tmp_path: Path) -> None:
    """With InstaBoost applied whenever possible; at 32 px the whole image is smaller than a window of 64 px."""
    records = train(
        tool,
        tmp_path / f'run{side}',
        hard,
        'train_dataloader.dataset.filter_cfg.filter_empty_gt=False',
        'train_dataloader.dataset.filter_cfg.min_size=1',
        'train_dataloader.dataset.pipeline.1.aug_ratio=1.0',
        f'train_dataloader.dataset.pipeline.4.scale=[({side},{side}),({side},{side})]',
        *(f'{split}_dataloader.dataset.pipeline.1.scale=({side},{side})' for split in ('val', 'test')),
        'check_labels=False',  # all pixels of all stuff maps are ignored
    )
    *steps, evaluation = records
    assert len(steps) == 2 and all(np.isfinite(step[name]) for step in steps for name in LOSSES)
    assert evaluation.keys() >= {'coco/bbox_mAP', 'coco/segm_mAP'}


@pytest.fixture
def without_maps(demo_data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo_data / 'coco', tmp_path / 'coco', ignore=shutil.ignore_patterns('stuffthingmaps'))


def test_missing_stuff_maps_stop_the_run(without_maps: Path, tool: Tool, tmp_path: Path) -> None:
    """Before the first iteration, with the folder and configs that do without."""
    with pytest.raises(SystemExit, match=r'stuffthingmaps/train2017.*htcpp-without-semantic_\* \(configs/htc\)'):
        train(tool, tmp_path / 'run', without_maps)


def test_stuff_maps_are_not_needed_without_the_semantic_branch(without_maps: Path) -> None:
    loader = Config.fromfile(leaf('htc/htcpp-without-semantic_um-swin-tiny_*')).train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    metainfo = Config.fromfile(LEAF).train_dataloader.dataset.metainfo
    loader.dataset.update(data_root=f'{without_maps}/', metainfo=metainfo)
    with DefaultScope.overwrite_default_scope('mmdet'):
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    assert all('gt_sem_seg' not in sample and len(sample.gt_instances) for sample in batch['data_samples'])
