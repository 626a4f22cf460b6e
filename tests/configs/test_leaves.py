"""Every leaf config: its name, comment, data, recipe, model, optimizer, schedule and entry in the model index."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, HOOKS, METRICS, PARAM_SCHEDULERS, DefaultScope
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.selfsup import BEiT
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from torch import nn

from mm_ummae.checkpoints.loading import compare_state
from mm_ummae.models import UMBackbone
from mm_ummae.models.backbones.plain_vit import PlainViT
from tests.configs.leaves import ENTRIES, LEAVES, build_model, build_optimizer, config, full_model, is_small, leaf
from tests.configs.recipes import FACTS, SCHEDULES, WITHOUT_DECAY, rows

LOMAR_BEIT = leaf('lomar-beit_*')
DATA_ROOTS = {'in1k': 'data/imagenet', 'coco': 'data/coco/', 'ade20k': 'data/ade/', 'demo': 'data/demo/'}
ARCHITECTURES = {'S': 'small', 'T': 'tiny', 'B': 'base', 'L': 'large'}  # of the model index


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_leaf(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # does not know `meta`
    for check in (check_comment, check_name, check_data, check_recipe, check_parameters, check_schedule, check_entry):
        check(path, config(path))


def check_comment(path: Path, cfg: Config) -> None:
    """The file holds a difference only, and begins with a command that runs it and says where weights go."""
    text, place = path.read_text(), re.escape(f'configs/{path.parent.name}/{path.name}')
    assert text.count('\n') < 30
    assert re.search(rf'(?m)^#   (python tools/(train|test)\.py|bash tools/dist_train\.sh) {place}\b', text)
    if "checkpoint=''" in str(cfg.model) and 'tools/test.py' not in text:
        assert re.search(r'(?m)^#  .* model\.(backbone|target_generator)\.init_cfg\.checkpoint=[A-Z]+\.pth$', text)


def check_name(path: Path, cfg: Config) -> None:
    """`{method}_{backbone}_{neck}_{batch}-{precision}-{schedule}_{data}`, with the config's numbers."""
    backbone, images, gpus = cfg.model.backbone, cfg.train_dataloader.batch_size, 1 if is_small(path) else 8
    accumulated, length = cfg.optim_wrapper.get('accumulative_counts', 1), duration(cfg)
    if backbone.type == 'mm_ummae.UMBackbone':
        network = f'stock-{stock_name(backbone.network)}'
    else:
        kind = re.search('Swin|PVT|BEiT|ViT', backbone.type)[0].lower()
        patch = '' if is_small(path) or kind in ('swin', 'pvt') else f'-p{backbone.get("patch_size", 16)}'
        network = f'((um|lomar|mae)-)?{kind}-{backbone.arch}{patch}'
    batch = f'{gpus}xb{images}' + (f'x{accumulated}' if accumulated > 1 else '')
    amp = '-amp' if cfg.optim_wrapper.type == 'AmpOptimWrapper' else ''
    lengths = f'({length}it|{length // 1000}k)' if 'max_iters' in cfg.train_cfg else f'({length}e|{length // 12}x)'
    model = rf'([a-z0-9-]+_)?{network}(_[a-z-]+)?'
    name = re.fullmatch(rf'{model}_{batch}{amp}(-coslr|-ms|-lsj)?-{lengths}_(?P<data>[a-z0-9]+)(-.+)?', path.stem)
    assert name, (model, batch, amp, lengths)
    assert all(loader.dataset.data_root.startswith(DATA_ROOTS[name['data']]) for loader in loaders(cfg))
    # MMEngine does not know of accumulation
    assert is_small(path) or cfg.auto_scale_lr.base_batch_size == gpus * images


def stock_name(network: dict[str, Any]) -> str:
    """Name of a network of a host; those with an architecture in numbers are Swin and PVT v2."""
    kind = network.type.partition('.')[2]
    depths = tuple(network.get('depths', network.get('num_layers', ())))
    arch = network.get('arch') or {
        (96, (2, 2, 6, 2)): 'tiny',
        (96, (2, 2, 18, 2)): 'small',
        (128, (2, 2, 18, 2)): 'base',
        (192, (2, 2, 18, 2)): 'large',
        (64, (3, 4, 6, 3)): 'b2',
    }.get((network.get('embed_dims'), depths))
    return {
        'SwinTransformer': f'swin-{arch}-w{network.get("window_size")}',
        'SwinTransformerV2': f'swin-v2-{arch}-w{network.get("window_size")}',
        'PyramidVisionTransformerV2': f'pvt-v2-{arch}',
        'SVT': f'twins-svt-{arch}',
        'ConvNeXt': f'convnext-{arch}',
        'ResNet': f'resnet-{network.get("depth")}',
    }[kind]


def check_data(path: Path, cfg: Config) -> None:
    """Pipelines can be built; every other type of the data path and of the hooks has an owner."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for pipeline in (cfg.get('tta_pipeline', []), *(loader.dataset.pipeline for loader in loaders(cfg))):
            Compose(pipeline)
    assert cfg.train_dataloader.dataset.pipeline[0].type == 'mm_ummae.LoadCompleteImage'  # rejects truncated files
    assert 'mm_ummae.CheckpointKeysHook' in [hook.type for hook in cfg.custom_hooks]
    used = {
        DATASETS: [loader.dataset.type for loader in loaders(cfg)],
        METRICS: [cfg.val_evaluator.type] if cfg.get('val_evaluator') else [],
        HOOKS: [hook.type for hook in (*cfg.default_hooks.values(), *cfg.get('custom_hooks', []))],
    }
    for registry, types in used.items():
        with registry.switch_scope_and_registry(cfg.default_scope) as host:
            assert all(host.get(name) for name in types), types
    assert cfg.get('test_dataloader') == cfg.get('val_dataloader')
    assert cfg.get('test_evaluator') == cfg.get('val_evaluator')
    assert not cfg.get('val_dataloader') or cfg.val_dataloader.sampler.shuffle is False
    assert not is_small(path) or 'SyncBN' not in str(cfg.model), 'the demo runs without a GPU'


def check_recipe(path: Path, cfg: Config) -> None:
    """The published values, and widths of stages, necks and heads that fit in a forward pass of shapes."""
    root = dict(cfg.items(), net=full_model(path))
    for split in ('train', 'val'):
        pipeline = cfg.get(f'{split}_dataloader', {}).get('dataset', {}).get('pipeline', [])
        root[split] = {step.type.removeprefix('mm_ummae.'): step for step in pipeline}
    root['order'] = ' '.join(list(root['train'])[1:-1])
    root['batch'] = 8 * cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    root['outputs'] = output_shapes(full_model(path), 224 if path.stem == LOMAR_BEIT.stem else image_side(cfg))
    facts = rows(FACTS, path)
    assert any('outputs' in row for row in facts)
    for row in facts:
        assert found(root, row) == row


def value(part: Any, place: str) -> Any:
    """What is at a dotted place of a config or a model; None where a dict has no such key."""
    key, _, rest = place.partition('.')
    if key == '*':
        return [value(item, rest) for item in part]
    if isinstance(part, dict):
        part = part.get(key)
    elif key.isdigit():
        part = part[int(key)]
    else:
        part = getattr(part, key)
    return value(part, rest) if rest else part


def found(part: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The values of a part at the places of the facts, and of its own parts where a fact is a dict."""
    values = {place: value(part, place) for place in facts}
    return {place: found(x, facts[place]) if isinstance(facts[place], dict) else x for place, x in values.items()}


@cache
def output_shapes(model: nn.Module, side: int) -> list[tuple[int, ...]]:
    """Images and channels of the losses, or of the output of the heads before boxes are chosen."""
    with torch.device('meta'), torch.no_grad():
        images = torch.empty(2, 3, side, side)
        if isinstance(model, BaseSelfSupervisor):
            # BEiT's tokenizer has an image of its own, of half the side
            inputs = [images, images[..., ::2, ::2]] if isinstance(model, BEiT) else images
            outputs = list(model.loss(inputs, None).values())
        elif isinstance(model, ImageClassifier):
            outputs = [model(images)]
        else:
            features = model.extract_feat(images)
            if hasattr(model, 'decode_head'):
                outputs = [model.decode_head(features), model.auxiliary_head(features)]
            else:
                dense_head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
                outputs = list(dense_head(features)[0])  # of each level
            if getattr(model, 'with_semantic', False):
                outputs.append(model.roi_head.semantic_head(features)[0])
    return [tuple(output.shape[:2]) for output in outputs]


def check_parameters(path: Path, cfg: Config) -> None:
    """All but fixed positions and the tokenizer is trained, with its weight decay; learning rates fall by block."""
    model = full_model(path)
    fixed = r'target_generator\.|.*pos_embed$' if isinstance(model, BaseSelfSupervisor) else 'none'
    names = {parameter: name for name, parameter in model.named_parameters() if not re.match(fixed, name)}
    assert all(parameter.requires_grad == (parameter in names) for parameter in model.parameters())
    optimizer = build_optimizer(cfg, model).optimizer
    free = [word for words in rows(WITHOUT_DECAY, path) for word in words]
    lr, weight_decay = optimizer.defaults['lr'], optimizer.defaults['weight_decay']
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names.pop(parameter)
            exempt = parameter.ndim == 1 or name.endswith('bias') or any(word in name for word in free)
            assert group['weight_decay'] == (0 if exempt else weight_decay), name
    assert not names
    layer_decay = cfg.optim_wrapper.get('paramwise_cfg', {}).get('layer_decay_rate', 1.0)
    network = getattr(model.backbone, 'network', model.backbone)
    blocks = 0 if layer_decay == 1 else sum(getattr(network, 'depths', ())) or len(network.layers)
    expected = np.unique(lr * layer_decay ** np.arange(blocks + 2))
    assert sorted({group['lr'] for group in optimizer.param_groups}) == pytest.approx(expected, rel=1e-9)


def check_schedule(path: Path, cfg: Config) -> None:
    """As MMEngine's runner steps the schedulers, the same for two layers of different learning rates."""
    assert cfg.param_scheduler[-1].end == duration(cfg) and 'T_max' not in cfg.param_scheduler[-1]
    schedules = rows(SCHEDULES, path)
    assert len(schedules) == (not is_small(path) and not re.match('upernet|lomar-beit', path.stem))
    for factors in schedules:
        length = 16 if cfg.param_scheduler[0].by_epoch else 250  # iterations of an epoch
        optimizer = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in (1.0, 0.1)])
        default = dict(optimizer=optimizer, epoch_length=length)
        schedulers = [PARAM_SCHEDULERS.build(dict(part), default_args=default) for part in cfg.param_scheduler]
        rates = []
        optimizer.step()  # PyTorch asks for one before the first step of a schedule
        for iteration in range(1, cfg.train_cfg.max_epochs * length + 1):
            rates.append([group['lr'] for group in optimizer.param_groups])
            for scheduler in schedulers:
                if not scheduler.by_epoch or iteration % length == 0:
                    scheduler.step()
        for epoch, factor in factors.items():
            lrs = rates[min(round(epoch * length), len(rates) - 1)]
            assert lrs == pytest.approx([factor, 0.1 * factor], rel=0.02, abs=1e-5), epoch


def check_entry(path: Path, cfg: Config) -> None:
    """The metafile has the config's numbers, and what it calls downstream takes the backbone's weights."""
    entry, model = ENTRIES[path.stem], full_model(path)
    metadata = entry['Metadata']
    assert entry['Config'] == f'configs/{path.parent.name}/{path.name}'
    assert metadata['Parameters'] == sum(parameter.numel() for parameter in model.parameters())
    assert metadata['Iterations' if 'max_iters' in cfg.train_cfg else 'Epochs'] == duration(cfg)
    images = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    assert metadata['Batch Size'] == images * (1 if is_small(path) else 8)
    if metadata['Backbone'].startswith('stock '):
        assert f'{metadata["Backbone"].replace(" ", "-")}_' in path.stem
    else:
        network, arch, *patch = re.split('[-/]', metadata['Backbone'])
        assert '-'.join([network.lower(), ARCHITECTURES.get(arch, arch), *(f'p{side}' for side in patch)]) in path.stem
    sizes = re.findall(r'\d+', str([cfg.get('crop_size'), *(loader.dataset.pipeline for loader in loaders(cfg))]))
    assert set(re.findall(r'\d+', str(metadata['Image Size']))) <= set(sizes)
    for target in map(leaf, entry.get('Downstream', [])):
        first, second = cfg.model.backbone, config(target).model.backbone
        backbone, state = full_model(target).backbone, model.backbone.state_dict()
        assert first.type in (second.type, 'MAEViT')  # MAE has no fine-tuned backbone of its own
        assert first.get('patch_size', 16) == second.get('patch_size', 16)
        if isinstance(backbone, (PlainViT, UMBackbone)):
            state = backbone.adapt_state(state)
        else:
            assert first.get('window_size') == second.get('window_size')
        assert compare_state(backbone.state_dict(), state, backbone.PRETRAINING_ONLY) == ''


def image_side(cfg: Config) -> int:
    """The smaller nominal side."""
    size = cfg.model.backbone.get('img_size', 224)  # the default of networks of hosts
    return size if isinstance(size, int) else min(size)


def duration(cfg: Config) -> int:
    """Iterations or epochs."""
    return cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs


def loaders(cfg: Config) -> list[Any]:
    return [cfg[name] for name in ('train_dataloader', 'val_dataloader') if cfg.get(name)]


# Options of configs/README.md


def test_ablations_of_lomar_are_options() -> None:
    """Windows, mask ratios, positions and architectures of the paper, from one config."""
    options = {
        'model': dict(window_size=5, num_windows=8, mask_ratio=0.6, pairing='published'),
        'model.backbone': dict(positions='absolute', learn_positions=False, mask_token=False),
        'model.neck': dict(type='mm_ummae.LoMaRDecoder', in_channels=768, positions='absolute'),
        'model.head.in_channels': 512,
    }
    model = build_model(config(leaf('lomar_vit-base-p16_*-400e_in1k-224px'), options))
    assert model.sampler == (5, 8, 0.6, 'published') and model.neck and model.backbone.pos_embed is not None
    assert output_shapes(model, 224) == [()]


def test_a_smaller_backbone_of_htcpp_is_an_option() -> None:
    """The open box heads, of which there is a leaf for UMSwin-L, on UMSwin-T."""
    options = {
        'model.backbone': dict(arch='tiny', drop_path_rate=0.2, with_cp=False),
        'model.neck.0.in_channels': [96, 192, 384, 768],
        'model.neck.0.extra_layer': dict(in_channels=768, num_heads=24, with_cp=False),
    }
    models = build_model(config(leaf('htcpp-giou-4conv1fc_*'), options)), full_model(leaf('htcpp_um-swin-tiny_*'))
    ours, tiny = ([x.shape for x in (*model.backbone.parameters(), *model.neck.parameters())] for model in models)
    assert ours == tiny


# A leaf of each method, the template for own data that takes the place of its data set, and the numbers of classes
OWN_DATA = [
    ('um-swin-tiny_8xb128-*', 'demo_classification', {10}),
    ('gfl_um-pvt-small_*', 'demo_coco', {10}),
    ('gfl_um-swin-tiny_*', 'demo_coco', {10}),
    ('mask-rcnn_um-swin-tiny_*-1x_coco', 'demo_coco', {10}),
    ('mask-rcnn_lomar-*', 'demo_coco', {10}),
    ('htcpp_um-swin-tiny_*', 'demo_coco_htcpp', {10, 20}),
    ('upernet_um-pvt-small_*-512x512', 'demo_ade20k', {10}),
    ('upernet_um-swin-tiny_*-512x512', 'demo_ade20k', {10}),
]
GIVEN = {'gfl': 'crop_size = (128, 128)', 'vitdet': 'image_size = 128'}  # of no use to the template's own leaf


@pytest.mark.parametrize(('pattern', 'template', 'classes'), OWN_DATA)
def test_classes_and_sizes_come_from_the_data(pattern: str, template: str, classes: set[int], tmp_path: Path) -> None:
    """Another data set in one line of a leaf changes the classes and image sizes of the model as well."""
    path = leaf(pattern)
    folder, base = path.parent.name, path.parents[1] / '_base_'
    (tmp_path / 'data.py').write_text(f"_base_ = ['{base}/datasets/{template}.py']\n{GIVEN.get(folder, '')}")
    text, count = re.subn(r"'\.\./_base_/datasets/[\w.-]+'", "'./data.py'", path.read_text())
    assert count == 1
    (tmp_path / 'mine.py').write_text(text.replace("'../_base_", f"'{base}"))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    numbers = re.findall(r"'num_classes': (\d+)", str([cfg.model, cfg.get('data_preprocessor')]))
    assert set(map(int, numbers)) == classes
    if folder in ('classification', 'vitdet') or re.match('(gfl|upernet)_um-swin', path.stem):
        assert image_side(cfg) == 128
    if folder == 'upernet':
        assert cfg.model.data_preprocessor.size == cfg.model.test_cfg.crop_size == (128, 128)
