"""The leaf configs beside the hosts' own recipes with the same heads and data: only the listed values differ."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from tests.configs.leaves import LEAVES, config

# By patterns of leaves: the host, its recipe, and what is compared beside data and metrics of validation
RECIPES = {
    r'^lomar-beit_': (
        'mmpretrain',
        'beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k',
        ['model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'],
    ),
    r'^(um|stock)-': (
        'mmpretrain',
        'mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k',
        ['model', 'train_dataloader'],
    ),
    r'^gfl_': ('mmdet', 'gfl/gfl_r50_fpn_1x_coco', ['model']),
    r'^mask-rcnn_(um|stock)': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco', ['model', 'train_dataloader']),
    r'^htcpp_': ('mmdet', 'htc/htc_r50_fpn_1x_coco', ['model']),
    r'^htcpp-without': ('mmdet', 'htc/htc-without-semantic_r50_fpn_1x_coco', ['model']),
    r'^upernet_': (
        'mmseg',
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
        ['model', 'train_dataloader', 'param_scheduler', 'train_cfg'],
    ),
}
FULL = [path for path in LEAVES if path.parent.name != 'demo']
COMPARED = [path for path in FULL if any(re.search(pattern, path.stem) for pattern in RECIPES)]
# Not compared: this project's networks, which are in recipes.py, the cost of loading, and a default that is written out
OWN = (
    r'model\.(type$|backbone|neck|pretrained|head\.in_channels|head\.init_cfg)'
    r'|model\.(decode|auxiliary)_head\.(in_)?channels$'
    r'|.*\b(_scope_|num_workers|persistent_workers|pin_memory|collate_fn\.type|backend_args|pipeline\.2\.direction)$'
)
# What the leaves have that the hosts' recipes have not, by patterns of leaves; None: the leaf has no such value
DIFFERENCES: dict[str, dict[str, Any]] = {
    # This project's loader, no smaller batch at the end of an epoch, and masks that the model draws
    r'^lomar-beit_': {
        'train_dataloader.drop_last': True,
        'train_dataloader.dataset.type': 'mm_ummae.PretrainImages',
        'train_dataloader.dataset.max_bad_share': 0.01,
        'train_dataloader.dataset.data_prefix': 'train',
        'train_dataloader.dataset.pipeline.0.type': 'mm_ummae.LoadCompleteImage',
        'train_dataloader.dataset.ann_file': None,
        'train_dataloader.dataset.data_prefix.img_path': None,
        'train_dataloader.dataset.pipeline.4.type': 'PackInputs',
        'train_dataloader.dataset.pipeline.4.input_size': None,
        'train_dataloader.dataset.pipeline.4.num_masking_patches': None,
        'train_dataloader.dataset.pipeline.4.min_num_patches': None,
        'train_dataloader.dataset.pipeline.5.type': None,
        'model.target_generator.init_cfg.checkpoint': '',
        'model.window_size': 7,
        'model.num_windows': 4,
        'model.mask_ratio': 0.8,
    },
    # Loaded strictly in training, with the same pixels
    r'^(mask-rcnn_(um|stock)|upernet_)': {
        'train_dataloader.dataset.pipeline.0.type': 'mm_ummae.LoadCompleteImage',
        'train_dataloader.dataset.pipeline.0.imdecode_backend': 'cv2',
    },
    # Decoded and resized by Pillow, as the published code does; no smaller batch at the end of an epoch
    r'^(um|stock)-': {
        'train_dataloader.drop_last': True,
        'train_dataloader.dataset.pipeline.0.type': 'mm_ummae.LoadCompleteImage',
        'val_dataloader.dataset.pipeline.0.imdecode_backend': 'pillow',
        'model.data_preprocessor.type': 'ClsDataPreprocessor',  # the default
    },
    r'^(um|stock)-.*-256px$': {
        'train_dataloader.dataset.pipeline.1.scale': 256,
        'val_dataloader.dataset.pipeline.2.crop_size': 256,
    },
    r'^gfl_': {
        'model.data_preprocessor.batch_augments.0.type': 'BatchFixedSizePad',
        'model.data_preprocessor.batch_augments.0.size': (1024, 1024),
    },
    r'^mask-rcnn_um.*-3x': {
        'train_dataloader.dataset.pipeline.2.type': 'RandomChoiceResize',
        'train_dataloader.dataset.pipeline.2.scale': None,
        'train_dataloader.dataset.pipeline.2.scales': [(1333, side) for side in range(480, 801, 32)],
    },
    r'^htcpp': {
        'model.roi_head.type': 'mm_ummae.HTCRoIHead',  # masks of all stages in tests
        'model.data_preprocessor.pad_mask': True,
        'model.train_cfg.rpn.allowed_border': -1,
        'model.train_cfg.rpn.assigner.match_low_quality': True,  # the default
        **{f'model.train_cfg.rcnn.{i}.assigner.match_low_quality': False for i in range(3)},
        'model.test_cfg.rcnn.nms.type': 'soft_nms',
    },
    r'^upernet_': {
        'model.test_cfg.mode': 'slide',
        'model.test_cfg.stride': (341, 341),
        'model.test_cfg.crop_size': (512, 512),
    },
    r'^upernet_.*-whole$': {
        'model.test_cfg.mode': 'whole',
        'model.test_cfg.stride': None,
        'model.test_cfg.crop_size': None,
    },
    r'^upernet_.*-640x640$': {
        'model.data_preprocessor.size': (640, 640),
        'train_dataloader.dataset.pipeline.2.scale': (2560, 640),
        'train_dataloader.dataset.pipeline.3.crop_size': (640, 640),
        'val_dataloader.dataset.pipeline.1.scale': (2560, 640),
        'model.test_cfg.stride': (426, 426),
        'model.test_cfg.crop_size': (640, 640),
    },
}


@cache
def recipe(host: str, name: str) -> Config:
    return Config.fromfile(Path(import_module(host).__file__).parent / '.mim' / 'configs' / f'{name}.py')


def values_by_place(cfg: Config, parts: list[str]) -> dict[str, Any]:
    """What is compared."""
    if 'data_preprocessor' in cfg:  # the runner puts it into the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    values = {}
    for part in ('val_dataloader', 'val_evaluator', *parts):
        values |= flat(cfg.get(part, {}), part)
    return {place: value for place, value in values.items() if not re.match(OWN, place)}


def flat(part: Any, place: str) -> dict[str, Any]:
    """Values by dotted place."""
    if isinstance(part, dict):
        items = part.items()
    elif isinstance(part, (list, tuple)) and any(isinstance(item, dict) for item in part):
        items = enumerate(part)
    else:
        return {place: part}
    return {name: value for key, item in items for name, value in flat(item, f'{place}.{key}').items()}


@pytest.mark.parametrize('path', COMPARED, ids=lambda path: path.stem)
def test_only_these_values_differ_from_the_recipe_of_the_host(path: Path) -> None:
    ((host, name, parts),) = [row for pattern, row in RECIPES.items() if re.search(pattern, path.stem)]
    ours, theirs = (values_by_place(cfg, parts) for cfg in (config(path), recipe(host, name)))
    expected = {}
    for pattern, values in DIFFERENCES.items():
        expected |= values if re.search(pattern, path.stem) else {}
    places = ours.keys() | theirs.keys()
    differing = {place: ours.get(place) for place in places if ours.get(place) != theirs.get(place)}
    assert differing == {place: value for place, value in expected.items() if value != theirs.get(place)}
