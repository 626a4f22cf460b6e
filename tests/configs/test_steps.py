"""A training step and a prediction of a leaf of each method, through its own pipelines, with small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES
from tests.configs.leaves import LEAVES, build_model, build_optimizer, config, is_small, leaf

SIDE = 128  # pixels of the generated images
PVT = [32, 64, 80, 128]  # channels of the stages of UMPVT-test
VIT = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128, _delete_=True)
# Of the methods that the demo has not: what makes the model small
SMALL = {
    'mae_*-200e_*': {'backbone.arch': VIT, 'neck.in_channels': 64, 'neck.img_size': SIDE},
    'mae_*-400e_*-224px': {'backbone.arch': VIT, 'neck': dict(embed_dim=64, num_patches=64, decoder_depth=1)},
    'lomar-beit_*': {
        'backbone': dict(arch=VIT, img_size=48),  # of a window
        'window_size': 3,
        'head': dict(embed_dims=64, num_embed=32),
        'target_generator': dict(n_hid=8, n_blk_per_group=1, vocab_size=32),
    },
    'um-pvt-small_*': {'backbone.arch': 'test', 'neck.in_channels': PVT[-1], 'head.in_channels': PVT[-1]},
    'gfl_um-pvt-small_*': {
        'backbone.arch': 'test',
        'neck.0.in_channels': PVT,
        'data_preprocessor.batch_augments.0.size': (SIDE, SIDE),
        'test_cfg.score_thr': 0.0,  # random weights are sure of nothing
    },
    'upernet_um-pvt-small_*-512x512': {
        'backbone.arch': 'test',
        'neck': dict(in_channels=PVT, out_channels=32),
        'decode_head': dict(in_channels=[32, 32, 32, 32], channels=32),
        'auxiliary_head': dict(in_channels=32, channels=32),
        'data_preprocessor.size': (SIDE, SIDE),
        'test_cfg': dict(crop_size=(SIDE, SIDE), stride=(85, 85)),
    },
}
SIZES = {  # image sides of a pipeline's steps; segmentors are tested on larger images than their crops
    'RandomResizedCrop': dict(scale=SIDE),
    'mm_ummae.TorchRandomResizedCrop': dict(scale=SIDE),
    'Resize': dict(scale=(3 * SIDE // 2, 3 * SIDE // 2)),
    'RandomResize': dict(scale=(SIDE, SIDE), ratio_range=(0.5, 2.0)),
    'RandomCrop': dict(crop_size=(SIDE, SIDE)),
    'RandomResizedCropAndInterpolationWithTwoPic': dict(size=SIDE, second_size=SIDE // 2),
}


def use_demo_data(loader: Any, scope: str, data: Path, small: bool) -> None:
    """Read the generated images, in this process, and make them small where the pipeline does not."""
    folder = {'mmpretrain': 'imagenet', 'mmdet': 'coco', 'mmseg': 'ade'}[scope]
    loader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
    loader.dataset.update(data_root=f'{data}/{folder}/', serialize_data=False)
    if loader.dataset.type == 'mm_ummae.PretrainImages':
        loader.dataset.data_prefix = 'unlabelled'
    elif scope != 'mmseg':
        loader.dataset.metainfo = dict(classes=PHOTOGRAPH_CLASSES if scope == 'mmpretrain' else DIGIT_CLASSES)
    for step in loader.dataset.pipeline:
        step.update(SIZES.get(step.type, {}) if small else {})


def batch(cfg: Config, split: str) -> dict:
    """The first one of the split's loader."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return next(iter(Runner.build_dataloader(cfg[f'{split}_dataloader'], seed=0)))


@pytest.mark.integration
@pytest.mark.parametrize('pattern', [*SMALL, *(path.stem for path in LEAVES if is_small(path))])
def test_one_step_and_one_prediction(pattern: str, demo_data: Path, tmp_path: Path) -> None:
    """The losses are finite, the step moves every part, and predictions have the form of the task."""
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = config(leaf(pattern), {'model.backbone.img_size': SIDE, 'model.backbone.init_cfg': None})
    cfg.merge_from_dict({f'model.{place}': value for place, value in SMALL.get(pattern, {}).items()})
    for loader in filter(None, map(cfg.get, ('train_dataloader', 'val_dataloader', 'test_dataloader'))):
        use_demo_data(loader, cfg.default_scope, demo_data, small=pattern in SMALL)
    model = build_model(cfg, 'cpu')
    if tokenizer := getattr(model, 'target_generator', None):
        torch.save(tokenizer.state_dict(), tmp_path / 'tokenizer.pth')
        tokenizer.init_cfg['checkpoint'] = str(tmp_path / 'tokenizer.pth')
    model.init_weights()
    cfg.optim_wrapper.pop('accumulative_counts', None)
    wrapper = build_optimizer(cfg, model)
    wrapper.zero_grad = lambda **kwargs: None  # gradients are looked at below
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    model.train()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        losses = model.train_step(batch(cfg, 'train'), wrapper)
    assert losses and all(torch.isfinite(value).all() for value in losses.values()), losses
    parameters = dict(model.named_parameters())
    fixed = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    unused = {name for name, parameter in parameters.items() if parameter.grad is None} - fixed
    # Else distributed training stops at its second step
    assert bool(unused) == cfg.get('find_unused_parameters', False), unused
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    assert not moved & fixed
    assert {name.split('.')[0] for name in moved} == {name.split('.')[0] for name in before.keys() - fixed}
    # The last bias of a position MLP adds a constant to all logits of a head, which softmax takes out
    still = {name for name in before.keys() - moved - fixed - unused if not name.endswith('position_bias.fc2.bias')}
    assert len(still) < 0.1 * len(before), still

    if cfg.model.type in ('MAE', 'mm_ummae.LoMaRBEiT'):
        return  # MMPretrain's algorithms predict nothing
    model.eval()
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        results = model.test_step(batch(cfg, 'test' if cfg.get('test_dataloader') else 'train'))
    assert len(results) == 2
    for result in results:
        check_prediction(cfg.model, result)


def check_prediction(model: Any, result: Any) -> None:
    if model.type.startswith('mm_ummae.'):
        assert result.reconstruction.shape == result.image.shape == (3, SIDE, SIDE)
        assert 0 <= result.reconstruction.min() <= result.reconstruction.max() <= 255
    elif model.type == 'ImageClassifier':
        assert result.pred_score.shape == (model.head.num_classes,)
    elif model.type == 'EncoderDecoder':
        labels = result.pred_sem_seg.data
        assert labels.shape == (1, *result.ori_shape) and labels.max() < model.decode_head.num_classes
    else:
        found, (height, width) = result.pred_instances, result.ori_shape
        assert 0 < len(found) <= 100 and found.bboxes.min() >= 0 and 0 <= found.scores.min() <= found.scores.max() <= 1
        assert found.bboxes[:, 0::2].max() <= width and found.bboxes[:, 1::2].max() <= height
        assert model.type == 'GFL' or found.masks.shape == (len(found), height, width)
