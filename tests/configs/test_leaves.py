"""Every leaf config: its name, comment, data, schedule, start, model and entry in the model index agree."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, METRICS, TRANSFORMS
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.selfsup import BEiT
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from torch import nn

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SEGMENTATION_CLASSES, SEGMENTATION_PALETTE
from mm_ummae.checkpoints.loading import compare_state
from mm_ummae.models.backbones.plain_vit import PlainViT
from tests.configs.leaves import CONFIGS, LEAVES, PRETRAINERS, ROOT, build_model, config, full_model, is_demo, leaf

DEMO_HTCPP = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
BEIT = leaf('lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px')
NETWORKS = {'mm_ummae.UMSwin': 'swin', 'mm_ummae.UMPVT': 'pvt', 'BEiTPretrainViT': 'beit'}  # the others are ViTs
DATA_ROOTS = {'in1k': 'data/imagenet', 'coco': 'data/coco/', 'ade20k': 'data/ade/', 'demo': 'data/demo/'}
DEMO_CLASSES = {'mmpretrain': PHOTOGRAPH_CLASSES, 'mmdet': DIGIT_CLASSES, 'mmseg': SEGMENTATION_CLASSES}
ARCHITECTURES = {'S': 'small', 'T': 'tiny', 'B': 'base', 'L': 'large'}  # of the model index
ENTRIES = {
    entry['Name']: entry
    for file in CONFIGS.glob('*/metafile.yml')
    for entry in yaml.safe_load(file.read_text())['Models']
}


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_leaf(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # does not know `meta`
    for check in (check_comment, check_name, check_data, check_schedule, check_start, check_model, check_entry):
        check(path, config(path))


def check_comment(path: Path, cfg: Config) -> None:
    """The file holds a difference only, and begins with a command that runs it and says where weights go."""
    text = path.read_text()
    assert text.count('\n') < 30
    comment, place = text.partition('_base_ =')[0], re.escape(str(path.relative_to(ROOT)))
    command = re.search(
        rf'^#   (python tools/(train|test)\.py {place}|bash tools/dist_train\.sh {place} 8\b)', comment, re.M
    )
    assert command, comment
    part, init_cfg = start(cfg)
    if init_cfg and init_cfg.checkpoint == '' and 'train' in command[0]:
        assert re.search(rf'--cfg-options model\.{part}\.init_cfg\.checkpoint=[A-Z]+\.pth', comment)


def check_name(path: Path, cfg: Config) -> None:
    """`{method}_{backbone}_{neck}_{batch}-{precision}-{schedule}_{data}`, with the config's numbers."""
    name = re.fullmatch(
        r'(?P<model>[a-z0-9-]+(?:_[a-z0-9-]+){0,2})_(?P<gpus>\d+)xb(?P<images>\d+)(?:x(?P<accumulated>\d+))?'
        r'(?P<amp>-amp)?(?P<words>-coslr|-ms|-lsj)?-(?P<length>\d+)(?P<unit>e|k|it|x)_(?P<data>[a-z0-9]+)(?:-.+)?',
        path.stem,
    )
    assert name, path.stem
    assert duration(cfg) == int(name['length']) * {'e': 1, 'x': 12, 'k': 1000, 'it': 1}[name['unit']]
    assert ('max_iters' in cfg.train_cfg) == (name['unit'] in ('k', 'it'))
    assert (cfg.optim_wrapper.type == 'AmpOptimWrapper') == bool(name['amp'])
    train = str(cfg.train_dataloader)
    assert (name['words'] == '-ms') == ('RandomChoiceResize' in train)
    assert (name['words'] == '-lsj') == ('FilterAnnotations' in train)
    assert name['words'] != '-coslr' or cfg.param_scheduler[-1].type == 'CosineAnnealingLR'
    assert cfg.train_dataloader.batch_size == int(name['images'])
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == int(name['accumulated'] or 1)
    # MMEngine does not know of accumulation
    assert is_demo(path) or cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['images'])
    backbone, side = cfg.model.backbone, re.search(r'-(\d+)px$', path.stem)
    assert not side or path == BEIT or backbone.img_size == int(side[1])  # BEiT's network takes a local window
    patch = '' if is_demo(path) or NETWORKS.get(backbone.type) in ('swin', 'pvt') else f'-p{patch_size(cfg)}'
    assert f'{NETWORKS.get(backbone.type, "vit")}-{backbone.arch}{patch}' in name['model']
    assert all(loader.dataset.data_root.startswith(DATA_ROOTS[name['data']]) for loader in loaders(cfg))


def check_data(path: Path, cfg: Config) -> None:
    """Every type of the data path and of the hooks has an owner; the demo's classes are those of its images."""
    used = {
        HOOKS: [cfg.default_hooks, cfg.get('custom_hooks')],
        METRICS: [cfg.get('val_evaluator'), cfg.get('test_evaluator')],
        TRANSFORMS: [cfg.get('tta_pipeline'), *(loader.dataset.pipeline for loader in loaders(cfg))],
        DATASETS: [dict(type=loader.dataset.type) for loader in loaders(cfg)],
    }
    for registry, parts in used.items():
        with registry.switch_scope_and_registry(cfg.default_scope) as host:
            assert [name for name in re.findall(r"'type': '([\w.]+)'", str(parts)) if host.get(name) is None] == []
    if is_demo(path) and cfg.model.type not in PRETRAINERS:
        assert 'SyncBN' not in str(cfg.model), 'needs a GPU'
        classes = DEMO_CLASSES[cfg.default_scope]
        assert numbers_of_classes(cfg) == {len(classes)} | ({20} if path == DEMO_HTCPP else set())
        for loader in loaders(cfg):
            metainfo = loader.dataset.get('metainfo', dict(classes=classes))  # a classifier's are folders
            assert tuple(metainfo['classes']) == classes
            assert list(map(tuple, metainfo.get('palette', SEGMENTATION_PALETTE))) == list(SEGMENTATION_PALETTE)


def check_schedule(path: Path, cfg: Config) -> None:
    """Learning rates end where the training ends, and everything counts as the training does."""
    last, hooks = cfg.param_scheduler[-1], cfg.default_hooks
    assert last.end == duration(cfg) and 'T_max' not in last, 'MMEngine takes end - begin'
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert hooks.checkpoint.get('by_epoch', True) is by_epoch
    assert cfg.get('log_processor', {}).get('by_epoch', True) is by_epoch
    assert hooks.logger.get('log_metric_by_epoch', True) is by_epoch
    if not is_demo(path):
        assert str(cfg.custom_hooks).count('mm_ummae.CheckpointKeysHook') == 1, (
            'a checkpoint that does not fit would load'
        )
        assert 1 <= hooks.checkpoint.max_keep_ckpts <= 3, 'a full-size run would fill a disk'


def check_start(path: Path, cfg: Config) -> None:
    """Pre-training and the demo's HTC++ start from random weights; all else needs a checkpoint."""
    part, init_cfg = start(cfg)
    if (cfg.model.type in PRETRAINERS and path != BEIT) or path == DEMO_HTCPP:
        assert not init_cfg
        return
    checkpoint = init_cfg.pop('checkpoint')
    assert init_cfg == (dict(type='Pretrained', prefix='backbone') if part == 'backbone' else dict(type='Pretrained'))
    if not is_demo(path):
        assert checkpoint == '', 'a forgotten checkpoint must stop the run'
        return
    # The last checkpoint of the demo's pre-training, which is where MMEngine writes by default
    source = config(leaf(Path(checkpoint).parent.name))
    epochs, interval = source.train_cfg.max_epochs, source.default_hooks.checkpoint.interval
    assert checkpoint == f'work_dirs/{Path(source.filename).stem}/epoch_{epochs}.pth' and epochs % interval == 0
    assert cfg.default_hooks.checkpoint.save_last


def check_model(path: Path, cfg: Config) -> None:
    """Widths of stages, necks and heads fit in a forward pass of shapes; all is trained but for fixed positions."""
    model, demo = full_model(path), is_demo(path)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    pattern = r'target_generator\.|.*pos_embed$' if cfg.model.type in PRETRAINERS else r'target_generator\.'
    assert fixed == {name for name, _ in model.named_parameters() if re.match(pattern, name)}
    expected = {
        **{kind: [()] for kind in PRETRAINERS},
        'ImageClassifier': [(2, 10 if demo else 1000)],
        'EncoderDecoder': 2 * [(2, 20 if demo else 150)],
        'MaskRCNN': (3 if demo else 5) * [(2, 3)],  # three anchors at each place
        'HybridTaskCascade': (3 if demo else 5) * [(2, 3)] + [(2, 20 if demo else 183)],
        'GFL': 5 * [(2, 80)],
    }[cfg.model.type]
    side = 224 if path == BEIT else cfg.model.backbone.img_size
    assert shapes(model, side) == (expected[:-1] if 'without-semantic' in path.stem else expected)


def check_entry(path: Path, cfg: Config) -> None:
    """The metafile has the config's numbers, and what it calls downstream takes the backbone's weights."""
    entry, model = ENTRIES[path.stem], full_model(path)
    metadata = entry['Metadata']
    assert entry['Config'] == str(path.relative_to(ROOT))
    assert metadata['Parameters'] == sum(parameter.numel() for parameter in model.parameters())
    assert metadata['Iterations' if 'max_iters' in cfg.train_cfg else 'Epochs'] == duration(cfg)
    images = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    assert metadata['Batch Size'] == images * (1 if is_demo(path) else 8)
    network, arch, *patch = re.split('[-/]', metadata['Backbone'])
    name = '-'.join([network.lower(), ARCHITECTURES.get(arch, arch), *(f'p{size}' for size in patch)])
    assert name in path.stem
    sizes = re.findall(r'\d+', str([cfg.get('crop_size'), *(loader.dataset.pipeline for loader in loaders(cfg))]))
    assert set(re.findall(r'\d+', str(metadata['Image Size']))) <= set(sizes)
    for target in map(leaf, entry.get('Downstream', [])):
        first, second = cfg.model.backbone, config(target).model.backbone
        backbone, state = full_model(target).backbone, model.backbone.state_dict()
        assert first.type in (second.type, 'MAEViT')  # MAE has no fine-tuned backbone of its own
        assert patch_size(cfg) == patch_size(config(target))
        if isinstance(backbone, PlainViT):
            state = backbone.adapt_state(state)
        else:
            assert first.get('window_size') == second.get('window_size')
        assert compare_state(backbone.state_dict(), state, backbone.PRETRAINING_ONLY) == ''


def test_a_forgotten_checkpoint_stops_the_run() -> None:
    model = build_model(config(leaf('um-pvt-small_8xb128-amp-coslr-100e_in1k-256px')))
    with pytest.raises(ValueError, match=r'init_cfg\.checkpoint is empty.*--cfg-options.*init_cfg=None'):
        model.backbone.init_weights()


# A leaf of each method, the template for own data that takes the place of its data set, and the numbers of classes
OWN_DATA = [
    ('um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px', 'demo_classification', {10}),
    ('gfl_um-pvt-small_fpn_8xb2-amp-lsj-25e_coco', 'demo_coco', {10}),
    ('mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco', 'demo_coco', {10}),
    ('mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco', 'demo_coco', {10}),
    ('htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco', 'demo_coco_htcpp', {10, 20}),
    ('htcpp-without-semantic_um-swin-tiny_fpn_8xb2-amp-6x_coco', 'demo_coco', {10}),
    ('upernet_um-pvt-small_8xb2-amp-160k_ade20k-512x512', 'demo_ade20k', {20}),
]
# What a template lacks because its own leaf has no use for it
GIVEN = {'gfl': 'crop_size = (128, 128)', 'vitdet': 'image_size = 128'}


@pytest.mark.parametrize(('name', 'template', 'classes'), OWN_DATA, ids=[row[0] for row in OWN_DATA])
def test_classes_and_sizes_come_from_the_data(name: str, template: str, classes: set[int], tmp_path: Path) -> None:
    """Another data set in one line of a leaf changes the classes and image sizes of the model as well."""
    path = leaf(name)
    data = f"_base_ = ['{CONFIGS}/_base_/datasets/{template}.py']\n{GIVEN.get(path.parent.name, '')}"
    (tmp_path / 'data.py').write_text(data)
    text, count = re.subn(r"'\.\./_base_/datasets/[\w.-]+'", "'./data.py'", path.read_text())
    assert count == 1
    (tmp_path / 'mine.py').write_text(text.replace("'../_base_", f"'{CONFIGS}/_base_"))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert numbers_of_classes(cfg) == classes
    if path.parent.name in ('classification', 'vitdet'):
        assert cfg.model.backbone.img_size == 128
    if path.parent.name == 'upernet':
        assert cfg.model.data_preprocessor.size == cfg.model.test_cfg.crop_size == (128, 128)


def start(cfg: Config) -> tuple[str, Any]:
    """The part of the model that weights are given for, and its ``init_cfg``: BEiT's is the tokenizer."""
    part = 'target_generator' if cfg.model.type == 'mm_ummae.LoMaRBEiT' else 'backbone'
    return part, cfg.model[part].get('init_cfg')


def duration(cfg: Config) -> int:
    """Iterations or epochs."""
    return cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs


def patch_size(cfg: Config) -> int:
    return cfg.model.backbone.get('patch_size', 16)


def loaders(cfg: Config) -> list[Any]:
    return [cfg[name] for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(name)]


def numbers_of_classes(cfg: Config) -> set[int]:
    """Of all heads."""
    return set(map(int, re.findall(r"'num_classes': (\d+)", str([cfg.model, cfg.get('data_preprocessor')]))))


@cache
def shapes(model: nn.Module, side: int) -> list[tuple[int, ...]]:
    """Images and channels of the losses, or of the output of the heads before boxes are chosen."""
    with torch.device('meta'), torch.no_grad():
        images = torch.empty(2, 3, side, side)
        if isinstance(model, BaseSelfSupervisor):
            # BEiT's tokenizer has an image of its own, of half the side
            outputs = model.loss([images, images[..., ::2, ::2]] if isinstance(model, BEiT) else images, None).values()
        elif isinstance(model, ImageClassifier):
            outputs = [model(images)]
        elif hasattr(model, 'decode_head'):
            features = model.extract_feat(images)
            outputs = [model.decode_head(features), model.auxiliary_head(features)]
        else:
            features = model.extract_feat(images)
            dense_head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
            outputs = list(dense_head(features)[0])  # of each level
            if getattr(model, 'with_semantic', False):
                outputs.append(model.roi_head.semantic_head(features)[0])
    return [tuple(output.shape[:2]) for output in outputs]
