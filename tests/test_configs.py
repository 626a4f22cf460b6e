"""Configs: each builds, its name says what it does, and the pre-training recipe is the published one."""

from __future__ import annotations

import copy
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mim.utils import is_installed
from mim.utils.utils import module_full_name
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

from mm_ummae.demo.pictures import (
    DIGIT_CLASSES,
    PHOTOGRAPH_CLASSES,
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
)
from mm_ummae.models import UMMAE, UMSwin
from mm_ummae.registry import DATASETS

ROOT = Path(__file__).parents[1]
LEAVES = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)
IDS = [path.stem for path in LEAVES]
PUBLISHED = ROOT / 'configs' / 'ummae' / 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py'
DEMO = ROOT / 'configs' / 'demo'
DEMO_PRETRAIN = DEMO / 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
DEMO_CLASSIFICATION = DEMO / 'um-swin-test_classification_1xb16-100it_demo-128px.py'
DEMO_DETECTION = DEMO / 'mask-rcnn_um-swin-test_1xb8-200it_demo-128px.py'
DEMO_SEGMENTATION = DEMO / 'upernet_um-swin-test_1xb8-150it_demo-128px.py'


@cache
def read(path: Path) -> Config:
    return Config.fromfile(path)


def config(path: Path) -> Config:
    """A copy, for the test to change."""
    return copy.deepcopy(read(path))


def without_sync(cfg: Any) -> None:
    """SyncBN needs a GPU: put BN in its place, at any depth."""
    if isinstance(cfg, dict):
        if cfg.get('type') == 'SyncBN':
            cfg['type'] = 'BN'
        cfg = list(cfg.values())
    if isinstance(cfg, (list, tuple)):
        for value in cfg:
            without_sync(value)


def build_model(cfg: Config) -> nn.Module:
    """As the host's runner builds it: only the default scope is known."""
    without_sync(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MMENGINE_MODELS.build(cfg.model)


@cache
def published_model() -> nn.Module:
    return build_model(config(PUBLISHED))


# Every leaf


def test_there_are_leaves_of_every_kind() -> None:
    assert {path.parent.name for path in LEAVES} >= {'demo', 'mask_rcnn', 'ummae', 'upernet'}
    assert PUBLISHED in LEAVES and DEMO_PRETRAIN in LEAVES


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_model_builds_and_holds_a_um_swin(path: Path) -> None:
    model = build_model(config(path))
    assert isinstance(model.backbone, UMSwin)
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_leaf_is_short_and_starts_with_its_command(path: Path) -> None:
    """A comment from the first line on, with a command that names this file and an installed package."""
    lines = path.read_text().splitlines()
    assert len(lines) < 80
    comment = []
    for line in lines:
        if not line.startswith('#'):
            break
        comment.append(line)
    place = re.escape(str(path.relative_to(ROOT)))
    command = re.search(rf'^#   (mim train (\S+)|bash tools/dist_train\.sh) {place}', '\n'.join(comment), re.M)
    assert command is not None, comment
    if command[2]:
        assert is_installed(module_full_name(command[2])), f'mim does not know {command[2]}'
    else:
        assert (ROOT / 'tools' / 'dist_train.sh').is_file()


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_name_says_what_the_config_does(path: Path) -> None:
    """OpenMMLab's pattern, model_module_training_data, with numbers that are those of the config."""
    assert re.fullmatch(r'[a-z0-9]+(-[a-z0-9]+)*(_[a-z0-9]+(-[a-z0-9]+)*){3,4}', path.stem), path.stem
    cfg = config(path)
    training, data = path.stem.split('_')[-2:]
    length = re.search(r'(?:^|-)(?:(\d+)e|(\d+)k|(\d+)it|(1x))$', training)
    assert length is not None, training
    epochs, thousands, iterations, times = length.groups()
    if thousands or iterations:
        assert cfg.train_cfg.max_iters == (int(iterations) if iterations else 1000 * int(thousands))
    else:
        assert cfg.train_cfg.max_epochs == (12 if times else int(epochs))
    assert ('amp' in training.split('-')) == (cfg.optim_wrapper.type == 'AmpOptimWrapper')
    assert ('coslr' in training.split('-')) == ('ummae_' in path.stem)
    batch = re.search(r'(\d+)xb(\d+)(?:x(\d+))?', training)
    if batch:
        gpus, images, accumulated = (int(number or 1) for number in batch.groups())
        assert cfg.train_dataloader.batch_size == images
        assert cfg.optim_wrapper.get('accumulative_counts', 1) == accumulated
        if 'auto_scale_lr' in cfg:
            assert cfg.auto_scale_lr.base_batch_size == gpus * images
    side = re.search(r'(\d+)px', data)
    if side:
        assert cfg.model.backbone.img_size == int(side[1])
    assert f'swin-{cfg.model.backbone.arch}' in path.stem


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_rates_of_a_leaf_end_where_the_training_ends(path: Path) -> None:
    cfg = config(path)
    *_, last = cfg.param_scheduler
    assert last.end == cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))
    if last.type == 'CosineAnnealingLR':
        assert last.begin + last.T_max == last.end


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_steps_are_counted_as_the_training_counts_them(path: Path) -> None:
    """Else logs say "epoch 1" throughout and metrics belong to step 0; checkpoints too."""
    cfg = config(path)
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert cfg.default_hooks.checkpoint.get('by_epoch', True) is by_epoch
    assert cfg.get('log_processor', {}).get('by_epoch', True) is by_epoch
    assert cfg.default_hooks.logger.get('log_metric_by_epoch', True) is by_epoch


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_checkpoints_that_do_not_fit_are_refused(path: Path) -> None:
    """By the backbone where one starts it, and by the hook, or no checkpoint is ever loaded as a whole."""
    cfg = config(path)
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    init_cfg = cfg.model.backbone.get('init_cfg')
    assert 'mm_ummae.CheckpointKeysHook' in hooks or init_cfg is not None
    if init_cfg is not None:
        assert init_cfg.type == 'Pretrained' and init_cfg.prefix == 'backbone'


@pytest.mark.parametrize('path', LEAVES, ids=IDS)
def test_unknown_key_is_named(path: Path) -> None:
    cfg = config(path)
    cfg.merge_from_dict({'model.backbone.windw_size': 16})
    with pytest.raises(TypeError, match=r'windw_size'):
        build_model(cfg)


def test_channels_of_the_parts_fit_each_other() -> None:
    """In the full-size configs, which no test runs forward: widths of the stages, necks and heads."""
    widths = [96, 192, 384, 768]
    for path in LEAVES:
        cfg = config(path)
        if cfg.model.backbone.arch != 'tiny':
            continue
        neck = cfg.model.get('neck')
        first = neck[0] if isinstance(neck, list) else neck
        if first.type == 'mm_ummae.StageProjection':
            assert list(first.in_channels) == widths
            assert cfg.model.backbone.out_indices in ((0, 1, 2, 3), [0, 1, 2, 3])
        else:
            assert first.in_channels == widths[-1] and cfg.model.head.in_channels == first.embed_dims
    detector = config(ROOT / 'configs' / 'mask_rcnn' / 'mask-rcnn_um-swin-tiny_fpn_amp-1x_coco.py').model
    assert list(detector.neck[1].in_channels) == 4 * [detector.neck[0].out_channels]


# Model index


def index_entries() -> list[dict]:
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert files
    return [model for file in files for model in yaml.safe_load((ROOT / file).read_text())['Models']]


def test_model_index_points_at_existing_files() -> None:
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    for file in files:
        content = yaml.safe_load((ROOT / file).read_text())
        collections = {collection['Name']: collection for collection in content['Collections']}
        for collection in collections.values():
            assert (ROOT / collection['README']).is_file()
        for model in content['Models']:
            assert model['In Collection'] in collections
            assert (ROOT / model['Config']).is_file()
            assert Path(model['Config']).stem == model['Name']
            weights = model.get('Weights')
            assert weights is None or (ROOT / weights).is_file() or weights.startswith('https://')


def test_every_pretraining_config_is_listed() -> None:
    listed = {model['Config'] for model in index_entries()}
    expected = {
        str(path.relative_to(ROOT))
        for path in LEAVES
        if path.parent.name != 'demo' and config(path).model.type == 'mm_ummae.UMMAE'
    }
    assert listed >= expected and expected


@pytest.mark.parametrize('entry', index_entries(), ids=lambda entry: entry['Name'])
def test_listed_numbers_are_those_of_the_config(entry: dict) -> None:
    path = ROOT / entry['Config']
    cfg = config(path)
    model = published_model() if path == PUBLISHED else build_model(cfg)
    assert entry['Metadata']['Parameters'] == sum(parameter.numel() for parameter in model.parameters())
    assert entry['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
    gpus, images, accumulated = re.search(r'_(\d+)xb(\d+)(?:x(\d+))?-', path.stem).groups(default=1)
    assert entry['Metadata']['Batch Size'] == int(gpus) * int(images) * int(accumulated)


# The published recipe (section 6 of the specification)


def optimizer_groups() -> tuple[nn.Module, list[dict], torch.optim.Optimizer]:
    cfg, model = config(PUBLISHED), published_model()
    assert 'constructor' not in cfg.optim_wrapper
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'
    plain = ConfigDict({key: value for key, value in cfg.optim_wrapper.items() if key != 'loss_scale'})
    plain.type = 'OptimWrapper'  # the other one needs a GPU
    optimizer = build_optim_wrapper(model, plain).optimizer
    return model, optimizer.param_groups, optimizer


def test_published_optimizer() -> None:
    """AdamW (0.9, 0.95), 1.5e-4 for 256 images, weight decay 0.05, none on 1-D parameters and biases."""
    model, groups, optimizer = optimizer_groups()
    assert type(optimizer) is torch.optim.AdamW
    decays = {}
    for group in groups:
        assert tuple(group['betas']) == (0.9, 0.95)
        assert group['lr'] == pytest.approx(1.5e-4 * 4096 / 256, rel=1e-12)
        for parameter in group['params']:
            assert parameter not in decays
            decays[parameter] = group['weight_decay']
    kinds = set()
    for name, parameter in model.named_parameters():
        one_dimensional = parameter.ndim == 1 or name.endswith('bias')
        kinds.add('bias' if name.endswith('bias') else f'{parameter.ndim}-D')
        assert decays.pop(parameter) == (0 if one_dimensional else 0.05), name
    assert not decays
    assert kinds == {'bias', '1-D', '2-D', '3-D', '4-D'}


def test_published_tokens_decay() -> None:
    model, groups, _ = optimizer_groups()
    decay = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    tokens = {name: parameter for name, parameter in model.named_parameters() if name.endswith('token')}
    assert len(tokens) == 2, 'the secondary token and the mask token'
    for parameter in tokens.values():
        assert parameter.shape[:2] == (1, 1) and decay[id(parameter)] == 0.05


def test_published_batch() -> None:
    cfg = config(PUBLISHED)
    assert 8 * cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == 4096
    assert cfg.train_dataloader.drop_last
    assert cfg.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=200)


def learning_rates(cfg: Config, epoch_length: int, base: float) -> list[float]:
    """The rate of every iteration, with the schedulers built and stepped as MMEngine's runner does."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(cfg), default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for cfg in cfg.param_scheduler
    ]
    assert not any(scheduler.by_epoch for scheduler in schedulers), 'stepped once an epoch'
    rates = []
    for _ in range(cfg.train_cfg.max_epochs * epoch_length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ('path', 'epochs', 'warmup'), [(PUBLISHED, 200, 10), (DEMO_PRETRAIN, 20, 2)], ids=['published', 'demo']
)
def test_pretraining_schedule(path: Path, epochs: int, warmup: int) -> None:
    """A line from 0, then half a cosine to 0, by iteration; MMEngine reaches the top one iteration early."""
    length, base = 31, 2.0
    rates = learning_rates(config(path), length, base)
    start, end = warmup * length, epochs * length
    assert len(rates) == end
    for i, rate in enumerate(rates):
        if i < start:
            expected = base * i / (start - 1)
        else:
            expected = base * 0.5 * (1 + math.cos(math.pi * (i - start) / (end - start)))
        assert rate == pytest.approx(expected, rel=1e-6, abs=1e-8), f'iteration {i}'
    assert rates[0] < 1e-8 and rates[start] == pytest.approx(base) == max(rates)
    assert rates[start // 2] == pytest.approx(base / 2, rel=2 / start)
    assert rates[(start + end) // 2] == pytest.approx(base / 2, rel=0.01)
    assert 0 <= rates[-1] < 1e-4 * base
    assert len(set(rates[:start])) == start, 'constant within an epoch'


def test_published_model() -> None:
    model = published_model()
    assert isinstance(model, UMMAE)
    assert model.secondary_ratio == 0.25 and model.head.norm_pix
    assert model.backbone.secondary_token is not None
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert model.data_preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert model.data_preprocessor._channel_conversion, 'pictures are read as BGR'
    # On 256 px: windows of 8 tokens on the compact image, none shifted where they span it
    assert [stage.window_and_shift(True) for stage in model.backbone.stages] == [(8, 4), (8, 4), (8, 0), (4, 0)]


def test_published_pipeline() -> None:
    dataset = config(PUBLISHED).train_dataloader.dataset
    load, crop, flip, pack = dataset.pipeline
    assert load == dict(type='LoadImageFromFile', imdecode_backend='pillow')
    assert crop.type == 'RandomResizedCrop' and crop.scale == 256
    assert tuple(crop.crop_ratio_range) == (0.2, 1.0)
    assert (crop.backend, crop.interpolation) == ('pillow', 'bicubic')
    assert flip == dict(type='RandomFlip', prob=0.5)
    assert pack.type == 'PackInputs'
    assert dataset.type == 'mm_ummae.PretrainImages' and DATASETS.get('PretrainImages') is not None


def test_published_run_has_no_moving_average_and_seeds_each_rank() -> None:
    cfg = config(PUBLISHED)
    hooks = [hook['type'] for hook in [*cfg.custom_hooks, *cfg.default_hooks.values()]]
    assert not any('EMA' in hook for hook in hooks)
    assert hooks.count('mm_ummae.CheckpointKeysHook') == 1
    assert cfg.randomness.diff_rank_seed, 'all ranks would draw the same masks'
    assert cfg.get('val_cfg') is None and cfg.get('test_cfg') is None


def test_published_segmentation_recipe() -> None:
    """What section 6 says of ADE20K, number by number."""
    cfg = config(ROOT / 'configs' / 'upernet' / 'upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, tuple(optimizer.betas), optimizer.weight_decay) == (
        'AdamW',
        1e-4,
        (0.9, 0.999),
        0.05,
    )
    assert cfg.optim_wrapper.paramwise_cfg == dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0)
    warmup, poly = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 1e-6, 1500)
    assert (poly.type, poly.power, poly.eta_min, poly.end) == ('PolyLR', 1.0, 0.0, 160000)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert cfg.model.backbone.drop_path_rate == 0.1 and not cfg.model.neck.with_norm
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (head.channels, head.num_classes, list(head.in_channels)) == (768, 150, 4 * [768])
    assert (auxiliary.in_index, auxiliary.num_classes) == (2, 150)
    assert 8 * cfg.train_dataloader.batch_size == 16 == cfg.auto_scale_lr.base_batch_size


# The demo's data


def test_demo_segmentation_agrees_with_the_pictures() -> None:
    cfg = config(DEMO_SEGMENTATION)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert tuple(dataset.metainfo.classes) == SEGMENTATION_CLASSES
        assert [tuple(colour) for colour in dataset.metainfo.palette] == list(SEGMENTATION_PALETTE)
        assert dataset.reduce_zero_label
    assert cfg.model.decode_head.num_classes == len(SEGMENTATION_CLASSES) == cfg.model.auxiliary_head.num_classes


def test_demo_detection_agrees_with_the_pictures() -> None:
    cfg = config(DEMO_DETECTION)
    for split in ('train', 'val', 'test'):
        assert tuple(cfg[f'{split}_dataloader'].dataset.metainfo.classes) == DIGIT_CLASSES
    roi_head = cfg.model.roi_head
    assert roi_head.bbox_head.num_classes == roi_head.mask_head.num_classes == len(DIGIT_CLASSES)


def test_demo_classification_agrees_with_the_pictures() -> None:
    cfg = config(DEMO_CLASSIFICATION)
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == len(PHOTOGRAPH_CLASSES)


@pytest.mark.parametrize('path', [DEMO_CLASSIFICATION, DEMO_DETECTION, DEMO_SEGMENTATION], ids=lambda path: path.stem)
def test_demo_starts_where_its_pretraining_ends(path: Path) -> None:
    """The file that the pre-training config writes last, in MMEngine's default work folder; the same backbone."""
    cfg, pretraining = config(path), config(DEMO_PRETRAIN)
    epochs, interval = pretraining.train_cfg.max_epochs, pretraining.default_hooks.checkpoint.interval
    assert epochs % interval == 0
    assert cfg.model.backbone.init_cfg.checkpoint == f'work_dirs/{DEMO_PRETRAIN.stem}/epoch_{epochs}.pth'
    for key in ('arch', 'img_size', 'window_size'):
        assert cfg.model.backbone[key] == pretraining.model.backbone[key]
    assert cfg.default_hooks.checkpoint.save_last


def test_demo_trains_without_a_gpu() -> None:
    for path in DEMO.glob('*.py'):
        cfg = config(path)
        assert cfg.optim_wrapper.type == 'OptimWrapper'
        assert 'SyncBN' not in cfg.pretty_text
