"""Every leaf config: it builds, its parts fit each other, and its name and head comment say what it does."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.selfsup import BEiT, MAEViT
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.models.selfsup.beit import BEiTPretrainViT
from torch import Tensor, nn

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SEGMENTATION_CLASSES, SEGMENTATION_PALETTE
from mm_ummae.models import UMPVT, LoMaRViT, UMSwin, UMViT
from mm_ummae.models.backbones.pyramid import PyramidBackbone

from .leaves import (
    CONFIGS,
    IDS,
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
DEMO_CLASSIFICATION = leaf('um-swin-test_classification_1xb16-100it_demo-128px')
DEMO_DETECTION = leaf('mask-rcnn_um-swin-test_1xb8-200it_demo-128px')
DEMO_HTCPP = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
DEMO_SEGMENTATION = leaf('upernet_um-swin-test_1xb8-150it_demo-128px')
NETWORKS = {'UMSwin': 'swin', 'UMPVT': 'pvt', 'BEiTPretrainViT': 'beit'}  # as names say them; the others are ViTs
LINES = 30  # of a leaf that only tells its difference
EPOCHS_OF_1X = 12

every_leaf = pytest.mark.parametrize('path', LEAVES, ids=IDS)


def test_there_are_leaves_of_every_kind() -> None:
    """The published recipes and the demo."""
    names = {folder.name: {path.stem for path in folder.glob('*.py')} for folder in CONFIGS.iterdir()}
    backbones = {'pvt-small', 'swin-tiny', 'swin-large'}
    assert names['mae'] == {
        f'mae_vit-base-p16_8xb128x4-amp-coslr-{epochs}e_in1k-{side}px'
        for epochs, side in ((200, 224), (400, 224), (800, 224), (1600, 224), (800, 384), (400, 448))
    }
    assert names['lomar'] == {
        f'lomar_vit-base-p{patch}_8xb128x4-amp-coslr-{epochs}e_in1k-{side}px'
        for patch, epochs, side in (
            *((16, epochs, 224) for epochs in (300, 400, 800, 1600)),
            (8, 400, 224),
            (16, 800, 384),
            (16, 1600, 384),
            (16, 400, 448),
        )
    } | {'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px'}
    assert names['vitdet'] == {
        f'vitdet_mask-rcnn_{start}-vit-base-p16_8xb8-amp-lsj-25e_coco' for start in ('lomar', 'mae')
    }
    assert names['ummae'] == {
        'ummae_vit-base-p16_8xb128x4-amp-coslr-200e_in1k-224px',
        'ummae_pvt-small_8xb128x4-amp-coslr-200e_in1k-256px',
        'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px',
        'ummae_swin-base_8xb64x8-amp-coslr-800e_in1k-256px',
        'ummae_swin-large_8xb64x8-amp-coslr-800e_in1k-256px',
    }
    assert names['simmim'] == {
        'simmim_pvt-small_8xb128x4-amp-coslr-200e_in1k-256px',
        'simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px',
    }
    assert names['imagenet'] == {f'um-{name}_8xb128-amp-coslr-100e_in1k-256px' for name in backbones} | {
        'um-vit-base-p16_8xb128-amp-coslr-100e_in1k-224px',
        'lomar-vit-base-p16_8xb128-amp-coslr-100e_in1k-224px',
        'lomar-vit-base-p16_8xb64x2-amp-coslr-100e_in1k-384px',
        'lomar-vit-base-p8_8xb32x4-amp-coslr-100e_in1k-224px',
    }
    assert names['gfl'] == {f'gfl_um-{name}_fpn_8xb2-amp-lsj-25e_coco' for name in backbones - {'swin-large'}}
    assert names['mask_rcnn'] == {
        f'mask-rcnn_um-{name}_fpn_amp-{schedule}_coco' for name in backbones for schedule in ('1x', 'ms-3x')
    }
    assert names['upernet'] == {
        f'upernet_um-{name}_8xb2-amp-160k_ade20k-512x512{test}' for name in backbones for test in ('', '-whole')
    } | {f'upernet_um-{name}_8xb2-amp-160k_ade20k-640x640' for name in ('swin-tiny', 'swin-large')}
    sizes = ('tiny', 'base', 'large')
    assert names['htc'] == {
        f'{kind}_um-swin-{size}_fpn_8xb2-amp-{schedule}_coco'
        for kind in ('htcpp', 'htcpp-without-semantic')
        for size in sizes
        for schedule in ('1x', '3x', '6x')
    } | {f'htcpp-giou-4conv1fc_um-swin-{size}_fpn_8xb2-amp-6x_coco' for size in sizes} | {DEMO_HTCPP.stem}
    assert len(names['demo']) >= 4


# Models


@every_leaf
def test_model_builds_and_trains_its_backbone(path: Path) -> None:
    """All of it, but for positions, which pre-training keeps at their sine-cosine values, and BEiT's tokenizer."""
    model = full_model(path)
    assert type(model.backbone) in (UMSwin, UMPVT, UMViT, LoMaRViT, MAEViT, BEiTPretrainViT)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    pretraining = config(path).model.type in PRETRAINERS
    positions = [name for name, _ in model.named_parameters() if name.endswith('pos_embed')]
    fixed = [name for name in fixed if not name.startswith('target_generator.')]
    assert fixed == (positions if pretraining else [])


def heads(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the losses or the heads before any choice of boxes make of the images."""
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


@every_leaf
def test_parts_fit_each_other_at_full_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths of stages, necks and heads, in a forward pass that computes shapes only."""
    cfg, model = config(path), full_model(path)
    backbone = model.backbone
    widths = backbone.num_features if isinstance(backbone, PyramidBackbone) else [backbone.embed_dims]
    assert list(widths) == WIDTHS[backbone_kind(cfg)]
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # does not know `meta`
    side = 224 if isinstance(model, BEiT) else cfg.model.backbone.img_size  # BEiT's is that of a window
    with torch.device('meta'), torch.no_grad():  # activation checkpointing does not know it either
        shapes = [tuple(output.shape[:2]) for output in heads(model, torch.empty(2, 3, side, side))]
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


@every_leaf
def test_unknown_key_is_named(path: Path) -> None:
    cfg = config(path)
    cfg.merge_from_dict({'model.backbone.windw_size': 16})
    with pytest.raises(TypeError, match=r'windw_size'):
        build_model(cfg)


@pytest.mark.parametrize('ratio', [0.0, 0.5])
@pytest.mark.parametrize('path', [path for path in LEAVES if path.parent.name == 'ummae'], ids=lambda path: path.stem)
def test_secondary_masking_is_one_option(path: Path, ratio: float) -> None:
    """As an ablation sets it: ``--cfg-options model.secondary_ratio=...``, and for ViT ``model.sampling=random``."""
    cfg = config(path)
    cfg.merge_from_dict({'model.secondary_ratio': ratio})
    assert build_model(cfg).secondary_ratio == ratio
    cfg.merge_from_dict({'model.sampling': 'random'})
    if backbone_kind(cfg)[0] == 'UMViT':
        assert build_model(cfg).sampling == 'random'
    else:
        with pytest.raises(ValueError, match=r"sampling is 'random', but UM(Swin|PVT) takes uniform"):
            build_model(cfg)


def start(cfg: Config) -> tuple[str, ConfigDict | None]:
    """The part of the model that weights are given for, and its ``init_cfg``: BEiT's is the tokenizer."""
    part = 'target_generator' if cfg.model.type == 'mm_ummae.LoMaRBEiT' else 'backbone'
    return part, cfg.model[part].get('init_cfg')


# Names and head comments


@every_leaf
def test_leaf_is_short_and_starts_with_its_command(path: Path) -> None:
    """A comment from the first line on, with a command that names this file and one of the project's scripts."""
    lines = path.read_text().splitlines()
    assert len(lines) < (110 if is_demo(path) else LINES)
    comment = []
    for line in lines:
        if not line.startswith('#'):
            break
        comment.append(line)
    text = '\n'.join(comment)
    place = re.escape(str(path.relative_to(ROOT)))
    command = re.search(rf'^#   (?:python (tools/\w+\.py) {place}|bash (tools/dist_train\.sh) {place} 8)', text, re.M)
    assert command is not None, comment
    assert (ROOT / (command[1] or command[2])).is_file()
    # A command that cannot run without weights says where they go.
    part, init_cfg = start(config(path))
    if init_cfg and init_cfg.checkpoint == '' and 'train' in command[0]:
        assert re.search(rf'--cfg-options model\.{part}\.init_cfg\.checkpoint=[A-Z]+\.pth', text)


@pytest.mark.parametrize(
    'path',
    [path for path in LEAVES if not is_demo(path) and not path.stem.endswith('-whole')],
    ids=lambda path: path.stem,
)
def test_head_comment_says_that_nothing_was_trained(path: Path) -> None:
    assert re.search(r'^# .*[Rr]ecipe only', path.read_text(), re.M)


def duration(cfg: Config) -> tuple[str, int]:
    """('epochs' or 'iterations', how many)."""
    if 'max_iters' in cfg.train_cfg:
        return 'iterations', cfg.train_cfg.max_iters
    return 'epochs', cfg.train_cfg.max_epochs


@every_leaf
def test_name_says_what_the_config_does(path: Path) -> None:
    """OpenMMLab's pattern, model_module_training_data, with numbers that are those of the config."""
    # A classifier's module part may be left out, as MMPretrain does.
    assert re.fullmatch(r'[a-z0-9]+(-[a-z0-9]+)*(_[a-z0-9]+(-[a-z0-9]+)*){2,4}', path.stem), path.stem
    cfg = config(path)
    training, data = path.stem.split('_')[-2:]
    words = training.split('-')
    length = re.fullmatch(r'(?:(\d+)e|(\d+)k|(\d+)it|(\d)x)', words[-1])
    assert length is not None, training
    epochs, thousands, iterations, times = (int(number) if number else None for number in length.groups())
    if thousands or iterations:
        assert duration(cfg) == ('iterations', iterations or 1000 * thousands)
    else:
        assert duration(cfg) == ('epochs', epochs or EPOCHS_OF_1X * times)
    assert ('amp' in words) == (cfg.optim_wrapper.type == 'AmpOptimWrapper')
    if 'coslr' in words:
        assert cfg.param_scheduler[-1].type == 'CosineAnnealingLR'
    batch = re.search(r'(\d+)xb(\d+)(?:x(\d+))?', training)
    gpus, images, accumulated = (int(number or 1) for number in batch.groups()) if batch else (8, 2, 1)
    assert cfg.train_dataloader.batch_size == images
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == accumulated
    if not is_demo(path):
        assert cfg.auto_scale_lr.base_batch_size == gpus * images
    side = re.search(r'(\d+)px', data)
    if side and cfg.model.type != 'mm_ummae.LoMaRBEiT':  # whose images are windows
        assert cfg.model.backbone.img_size == int(side[1])
    kind, arch = backbone_kind(cfg)
    patch = '' if kind in ('UMSwin', 'UMPVT') or is_demo(path) else f'-p{cfg.model.backbone.get("patch_size", 16)}'
    assert f'{NETWORKS.get(kind, "vit")}-{arch}{patch}' in path.stem


@every_leaf
def test_name_says_which_data_are_used(path: Path) -> None:
    cfg = config(path)
    source = {'in1k': 'data/imagenet', 'coco': 'data/coco/', 'ade20k': 'data/ade/', 'demo': 'data/demo/'}
    data = path.stem.split('_')[-1].split('-')[0]
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is not None:
            assert loader.dataset.data_root.startswith(source[data])
    assert ('ms' in path.stem.split('_')[-2].split('-')) == ('RandomChoiceResize' in str(cfg.train_dataloader))
    assert ('lsj' in path.stem.split('_')[-2].split('-')) == ('FilterAnnotations' in str(cfg.train_dataloader))


# Schedules and checkpoints


@every_leaf
def test_rates_end_where_the_training_ends(path: Path) -> None:
    cfg = config(path)
    *_, last = cfg.param_scheduler
    assert last.end == duration(cfg)[1]
    if last.type == 'CosineAnnealingLR':
        assert last.begin + last.get('T_max', last.end - last.begin) == last.end


@every_leaf
def test_steps_are_counted_as_the_training_counts_them(path: Path) -> None:
    """Else logs say "epoch 1" throughout and metrics belong to step 0; checkpoints too."""
    cfg = config(path)
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert cfg.default_hooks.checkpoint.get('by_epoch', True) is by_epoch
    assert cfg.get('log_processor', {}).get('by_epoch', True) is by_epoch
    assert cfg.default_hooks.logger.get('log_metric_by_epoch', True) is by_epoch


@pytest.mark.parametrize('path', [path for path in LEAVES if not is_demo(path)], ids=lambda path: path.stem)
def test_old_checkpoints_are_deleted(path: Path) -> None:
    """A full-size run would fill a disk."""
    assert 1 <= config(path).default_hooks.checkpoint.max_keep_ckpts <= 3


@every_leaf
def test_checkpoints_that_do_not_fit_are_refused(path: Path) -> None:
    """By the backbone where one starts it, and by the hook, or no checkpoint is ever loaded as a whole."""
    cfg = config(path)
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    part, init_cfg = start(cfg)
    assert 'mm_ummae.CheckpointKeysHook' in hooks or is_demo(path)
    assert (not init_cfg) == ((cfg.model.type in PRETRAINERS and part == 'backbone') or path == DEMO_HTCPP)
    if init_cfg:
        assert init_cfg.type == 'Pretrained' and init_cfg.get('prefix') == ('backbone' if part == 'backbone' else None)


@every_leaf
def test_a_forgotten_checkpoint_stops_the_run(path: Path) -> None:
    """Nothing fine-tunes from random weights by accident; the small HTC++ does on purpose, and says so."""
    cfg = config(path)
    part, init_cfg = start(cfg)
    if cfg.model.type in PRETRAINERS and part == 'backbone':
        assert not init_cfg
        return
    if path == DEMO_HTCPP:
        assert not cfg.model.backbone.init_cfg and 'from scratch' in path.read_text().splitlines()[0]
        return
    demo = is_demo(path)
    assert (init_cfg.checkpoint == '') is not demo
    if demo:
        init_cfg.checkpoint = ''
    # A tokenizer from scratch would be no tokenizer
    message = r'init_cfg\.checkpoint is empty.*--cfg-options.*init_cfg=None'
    with pytest.raises(ValueError, match=message if part == 'backbone' else r"init_cfg is .*'checkpoint': ''.*--cfg"):
        model = build_model(cfg)
        (model.backbone if part == 'backbone' else model).init_weights()


# The demo's data


def test_demo_segmentation_agrees_with_the_pictures() -> None:
    cfg = config(DEMO_SEGMENTATION)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert tuple(dataset.metainfo.classes) == SEGMENTATION_CLASSES
        assert [tuple(colour) for colour in dataset.metainfo.palette] == list(SEGMENTATION_PALETTE)
        assert dataset.reduce_zero_label
    assert cfg.model.decode_head.num_classes == len(SEGMENTATION_CLASSES) == cfg.model.auxiliary_head.num_classes
    assert cfg.model.test_cfg == dict(mode='whole')


def test_demo_detection_agrees_with_the_pictures() -> None:
    cfg = config(DEMO_DETECTION)
    for split in ('train', 'val', 'test'):
        assert tuple(cfg[f'{split}_dataloader'].dataset.metainfo.classes) == DIGIT_CLASSES
    roi_head = cfg.model.roi_head
    assert roi_head.bbox_head.num_classes == roi_head.mask_head.num_classes == len(DIGIT_CLASSES)


def test_demo_htcpp_agrees_with_the_pictures() -> None:
    """Ten digits, and twenty kinds of things and stuff in the maps."""
    cfg = config(DEMO_HTCPP)
    for split in ('train', 'val', 'test'):
        assert tuple(cfg[f'{split}_dataloader'].dataset.metainfo.classes) == DIGIT_CLASSES
    roi_head = cfg.model.roi_head
    assert {head.num_classes for head in [*roi_head.bbox_head, *roi_head.mask_head]} == {len(DIGIT_CLASSES)}
    assert roi_head.semantic_head.num_classes == len(SEGMENTATION_CLASSES)


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


@pytest.mark.parametrize('path', [path for path in LEAVES if is_demo(path)], ids=lambda path: path.stem)
def test_demo_trains_without_a_gpu(path: Path) -> None:
    cfg = config(path)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert 'SyncBN' not in cfg.pretty_text
