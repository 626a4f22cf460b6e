"""Every leaf config: its name, comment, data, schedule, start, model and entry in the model index agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
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
from torch import Tensor, nn

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SEGMENTATION_CLASSES, SEGMENTATION_PALETTE
from mm_ummae.checkpoints.loading import compare_state
from mm_ummae.models.backbones.plain_vit import PlainViT
from mm_ummae.models.backbones.pyramid import PyramidBackbone
from tests.configs.leaves import (
    CONFIGS,
    LEAVES,
    PRETRAINERS,
    ROOT,
    WIDTHS,
    backbone_kind,
    build_model,
    config,
    full_model,
    is_demo,
    leaf,
)

DEMO_PRETRAIN = leaf('ummae_swin-test_1xb64-coslr-20e_demo-128px')
DEMO_HTCPP = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
SWIN = leaf('um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px')
BEIT = leaf('lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px')
EPOCHS_OF_1X = 12
NETWORKS = {'UMSwin': 'swin', 'UMPVT': 'pvt', 'BEiTPretrainViT': 'beit'}  # as names call them; the others are ViTs
DATA_ROOTS = {'in1k': 'data/imagenet', 'coco': 'data/coco/', 'ade20k': 'data/ade/', 'demo': 'data/demo/'}
BACKBONES = {  # of the model index, as names of configs call them
    'Swin-test': 'swin-test',
    'Swin-T': 'swin-tiny',
    'Swin-B': 'swin-base',
    'Swin-L': 'swin-large',
    'PVT-S': 'pvt-small',
    'ViT-test': 'vit-test',
    'ViT-B/16': 'vit-base-p16',
    'ViT-B/8': 'vit-base-p8',
    'BEiT-B/16': 'beit-base-p16',
}
ENTRIES = {
    entry['Name']: entry
    for file in CONFIGS.glob('*/metafile.yml')
    for entry in yaml.safe_load(file.read_text())['Models']
}


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_leaf(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(path)
    check_comment(path, cfg)
    check_name(path, cfg)
    check_data(path, cfg)
    check_schedule(path, cfg)
    check_start(path, cfg)
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # does not know `meta`
    check_model(path, cfg)
    check_entry(path, cfg)


def check_comment(path: Path, cfg: Config) -> None:
    """The file holds a difference only, and begins with a command that runs it and says where weights go."""
    text = path.read_text()
    assert len(text.splitlines()) < 30
    comment = text.partition('_base_ =')[0]
    place = re.escape(str(path.relative_to(ROOT)))
    command = re.search(
        rf'^#   (?:python (tools/\w+\.py) {place}|bash (tools/dist_train\.sh) {place} 8)', comment, re.M
    )
    assert command is not None, comment
    assert (ROOT / (command[1] or command[2])).is_file()
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
    assert name is not None, path.stem
    length = int(name['length'])
    expected = {'e': length, 'x': EPOCHS_OF_1X * length, 'k': 1000 * length, 'it': length}[name['unit']]
    assert duration(cfg) == expected and ('max_iters' in cfg.train_cfg) == (name['unit'] in ('k', 'it'))
    assert (cfg.optim_wrapper.type == 'AmpOptimWrapper') == bool(name['amp'])
    data = str(cfg.train_dataloader)
    assert (name['words'] == '-ms') == ('RandomChoiceResize' in data)
    assert (name['words'] == '-lsj') == ('FilterAnnotations' in data)
    assert name['words'] != '-coslr' or cfg.param_scheduler[-1].type == 'CosineAnnealingLR'
    assert cfg.train_dataloader.batch_size == int(name['images'])
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == int(name['accumulated'] or 1)
    # MMEngine does not know of accumulation
    assert is_demo(path) or cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['images'])
    side = re.search(r'-(\d+)px$', path.stem)
    if side and path != BEIT:  # whose network takes a local window
        assert cfg.model.backbone.img_size == int(side[1])
    kind, arch = backbone_kind(cfg)
    patch = '' if kind in ('UMSwin', 'UMPVT') or is_demo(path) else f'-p{cfg.model.backbone.get("patch_size", 16)}'
    assert f'{NETWORKS.get(kind, "vit")}-{arch}{patch}' in name['model']
    roots = [loader.dataset.data_root for loader in loaders(cfg)]
    assert all(root.startswith(DATA_ROOTS[name['data']]) for root in roots), roots


def check_data(path: Path, cfg: Config) -> None:
    """Every type of the data path and of the hooks has an owner; the demo's classes are those of its images."""
    hooks = [*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])]
    evaluators = [cfg[f'{split}_evaluator'] for split in ('val', 'test') if cfg.get(f'{split}_evaluator')]
    used = [(HOOKS, hooks), (METRICS, evaluators), (DATASETS, [loader.dataset for loader in loaders(cfg)])]
    used += [(TRANSFORMS, steps(loader.dataset.pipeline)) for loader in loaders(cfg)]
    used += [(TRANSFORMS, steps(cfg.get('tta_pipeline', [])))]
    for registry, parts in used:
        with registry.switch_scope_and_registry(cfg.default_scope) as host:
            assert [part['type'] for part in parts if host.get(part['type']) is None] == []
    if not is_demo(path) or cfg.model.type in PRETRAINERS:
        return
    assert 'SyncBN' not in str(cfg.model), 'needs a GPU'
    classes = {'mmpretrain': PHOTOGRAPH_CLASSES, 'mmdet': DIGIT_CLASSES, 'mmseg': SEGMENTATION_CLASSES}[
        cfg.default_scope
    ]
    assert numbers_of_classes(cfg) == {len(classes)}
    for loader in loaders(cfg):
        metainfo = loader.dataset.get('metainfo', dict(classes=classes))  # a classifier's are folders
        assert tuple(metainfo['classes']) == classes
        assert [tuple(colour) for colour in metainfo.get('palette', SEGMENTATION_PALETTE)] == list(SEGMENTATION_PALETTE)


def check_schedule(path: Path, cfg: Config) -> None:
    """Learning rates end where the training ends, and everything counts as the training does."""
    last = cfg.param_scheduler[-1]
    assert last.end == duration(cfg) and 'T_max' not in last, 'MMEngine takes end - begin'
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert cfg.default_hooks.checkpoint.get('by_epoch', True) is by_epoch
    assert cfg.get('log_processor', {}).get('by_epoch', True) is by_epoch
    assert cfg.default_hooks.logger.get('log_metric_by_epoch', True) is by_epoch
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    assert is_demo(path) or hooks.count('mm_ummae.CheckpointKeysHook') == 1, 'a checkpoint that does not fit would load'
    assert is_demo(path) or 1 <= cfg.default_hooks.checkpoint.max_keep_ckpts <= 3, 'a full-size run would fill a disk'


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
    source = leaf(Path(checkpoint).parent.name)
    epochs, interval = config(source).train_cfg.max_epochs, config(source).default_hooks.checkpoint.interval
    assert checkpoint == f'work_dirs/{source.stem}/epoch_{epochs}.pth' and epochs % interval == 0
    assert cfg.default_hooks.checkpoint.save_last


def check_model(path: Path, cfg: Config) -> None:
    """Widths of stages, necks and heads fit in a forward pass of shapes; all is trained but for fixed positions."""
    model = full_model(path)
    backbone = model.backbone
    widths = backbone.num_features if isinstance(backbone, PyramidBackbone) else [backbone.embed_dims]
    assert list(widths) == WIDTHS[backbone_kind(cfg)]
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    positions = [name for name, _ in model.named_parameters() if name.endswith('pos_embed')]
    tokenizer = [name for name, _ in model.named_parameters() if name.startswith('target_generator.')]
    assert sorted(fixed) == sorted(tokenizer + (positions if cfg.model.type in PRETRAINERS else []))
    side = 224 if path == BEIT else cfg.model.backbone.img_size
    with torch.device('meta'), torch.no_grad():
        shapes = [tuple(output.shape[:2]) for output in outputs(model, torch.empty(2, 3, side, side))]
    demo = is_demo(path)
    expected = {
        **{kind: [()] for kind in PRETRAINERS},
        'ImageClassifier': [(2, 10 if demo else 1000)],
        'EncoderDecoder': 2 * [(2, 20 if demo else 150)],
        'MaskRCNN': (3 if demo else 5) * [(2, 3)],  # three anchors at each place
        'HybridTaskCascade': (3 if demo else 5) * [(2, 3)]
        + ([] if 'without-semantic' in path.stem else [(2, 20 if demo else 183)]),
        'GFL': 5 * [(2, 80)],
    }
    assert shapes == expected[cfg.model.type]


def check_entry(path: Path, cfg: Config) -> None:
    """The metafile has the config's numbers, and what it calls downstream takes the backbone's weights."""
    entry, model = ENTRIES[path.stem], full_model(path)
    metadata = entry['Metadata']
    assert entry['Config'] == str(path.relative_to(ROOT))
    assert metadata['Parameters'] == sum(parameter.numel() for parameter in model.parameters())
    assert metadata['Iterations' if 'max_iters' in cfg.train_cfg else 'Epochs'] == duration(cfg)
    gpus = 1 if is_demo(path) else 8
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    assert metadata['Batch Size'] == gpus * cfg.train_dataloader.batch_size * accumulated
    assert BACKBONES[metadata['Backbone']] in path.stem
    sizes = str([cfg.get('crop_size'), *(loader.dataset.pipeline for loader in loaders(cfg))])
    for side in re.findall(r'\d+', str(metadata['Image Size'])):
        assert re.search(rf'\b{side}\b', sizes), side
    for name in entry.get('Downstream', []):
        target = leaf(name)
        first, second = cfg.model.backbone, config(target).model.backbone
        backbone, state = full_model(target).backbone, model.backbone.state_dict()
        if isinstance(backbone, PlainViT):
            state = backbone.adapt_state(state)
            assert first.get('patch_size', 16) == second.get('patch_size', 16)
        else:
            assert first.window_size == second.window_size if 'window_size' in first else 'window_size' not in second
        assert compare_state(backbone.state_dict(), state, backbone.PRETRAINING_ONLY) == ''
        assert first.type == second.type or first.type == 'MAEViT', 'MAE has no fine-tuned backbone of its own'


@pytest.mark.parametrize(
    'path', sorted((CONFIGS / 'classification').glob('*-100e_in1k-2*.py')), ids=lambda path: path.stem
)
def test_a_forgotten_checkpoint_or_a_misspelt_key_stops_the_run(path: Path) -> None:
    model = build_model(config(path))
    with pytest.raises(ValueError, match=r'init_cfg\.checkpoint is empty.*--cfg-options.*init_cfg=None'):
        model.backbone.init_weights()
    with pytest.raises(TypeError, match='windw_size'):
        build_model(config(path, {'model.backbone.windw_size': 16}))


def test_a_forgotten_tokenizer_stops_the_run() -> None:
    with pytest.raises(ValueError, match=r"init_cfg is .*'checkpoint': ''.*--cfg"):
        build_model(config(BEIT)).init_weights()


# A leaf of each method, and the template for own data that takes the place of its data set
OWN_DATA = {
    'um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px': 'demo_classification',
    'gfl_um-pvt-small_fpn_8xb2-amp-lsj-25e_coco': 'demo_coco',
    'mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco': 'demo_coco',
    'mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco': 'demo_coco',
    'htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco': 'demo_coco_htcpp',
    'htcpp-without-semantic_um-swin-tiny_fpn_8xb2-amp-6x_coco': 'demo_coco',
    'upernet_um-pvt-small_8xb2-amp-160k_ade20k-512x512': 'demo_ade20k',
}
# What a template lacks because its own leaf has no use for it
GIVEN = {'gfl': 'crop_size = (128, 128)', 'vitdet': 'image_size = 128'}


@pytest.mark.parametrize(('name', 'template'), OWN_DATA.items(), ids=OWN_DATA)
def test_classes_and_sizes_come_from_the_data(name: str, template: str, tmp_path: Path) -> None:
    """Another data set in one line of a leaf changes the classes and image sizes of the model as well."""
    path = leaf(name)
    data = f"_base_ = ['{CONFIGS}/_base_/datasets/{template}.py']\n{GIVEN.get(path.parent.name, '')}"
    (tmp_path / 'data.py').write_text(data)
    text, count = re.subn(r"'\.\./_base_/datasets/[\w.-]+'", "'./data.py'", path.read_text())
    assert count == 1
    (tmp_path / 'mine.py').write_text(text.replace("'../_base_", f"'{CONFIGS}/_base_"))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert numbers_of_classes(cfg) == {20 if cfg.default_scope == 'mmseg' else 10}
    if template == 'demo_coco_htcpp':
        assert cfg.model.roi_head.semantic_head.num_classes == 20
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


def loaders(cfg: Config) -> list[Any]:
    names = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    return [cfg[name] for name in names if cfg.get(name)]


def steps(pipeline: Any) -> Iterator[dict]:
    """All steps, also those inside of TestTimeAug."""
    if isinstance(pipeline, dict):
        yield pipeline
        pipeline = pipeline.get('transforms', [])
    for step in pipeline:
        yield from steps(step)


def numbers_of_classes(cfg: Config) -> set[int]:
    """Of the heads that tell the annotated classes apart."""
    model = cfg.model
    heads = [model.get(name) for name in ('head', 'bbox_head', 'decode_head', 'auxiliary_head')]
    heads += [model.get('roi_head', {}).get(name) for name in ('bbox_head', 'mask_head')]
    if cfg.default_scope == 'mmpretrain':
        heads.append(model.get('data_preprocessor') or cfg.data_preprocessor)
    flat = [part for head in heads if head for part in (head if isinstance(head, list) else [head])]
    return {part.num_classes for part in flat}


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The losses, or the output of the heads before boxes are chosen."""
    if isinstance(model, BaseSelfSupervisor):
        # BEiT's tokenizer has an image of its own, of half the side
        inputs = [images, images[..., ::2, ::2]] if isinstance(model, BEiT) else images
        return list(model.loss(inputs, None).values())
    if isinstance(model, ImageClassifier):
        return [model(images)]
    features = model.extract_feat(images)
    if hasattr(model, 'decode_head'):
        return [model.decode_head(features), model.auxiliary_head(features)]
    dense_head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
    scores = list(dense_head(features)[0])  # of each level
    return scores + ([model.roi_head.semantic_head(features)[0]] if getattr(model, 'with_semantic', False) else [])
