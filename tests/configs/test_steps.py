"""A training step and a prediction of a leaf of each method, through its own pipelines, with small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES
from tests.configs.leaves import LEAVES, PRETRAINERS, build_model, build_optimizer, config, is_demo, leaf

SIDE = 128  # pixels of the generated images
PVT = [32, 64, 80, 128]  # channels of the stages of UMPVT-test
VIT = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128, _delete_=True)
MASKED = PRETRAINERS[:3]  # those that reconstruct images
# What makes the models small of those methods that the demo has not
SMALL = {
    'mae_vit-base-p16_8xb128x4-amp-coslr-200e_in1k-224px': {
        'backbone.arch': VIT,
        'neck.in_channels': 64,
        'neck.img_size': SIDE,
    },
    'mae_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px': {
        'backbone.arch': VIT,
        'neck': dict(embed_dim=64, num_patches=(SIDE // 16) ** 2, decoder_depth=1),
    },
    'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px': {
        'backbone.arch': VIT,
        'backbone.img_size': 48,  # of a window
        'window_size': 3,
        'head': dict(embed_dims=64, num_embed=32),
        'target_generator': dict(n_hid=8, n_blk_per_group=1, vocab_size=32),
    },
    'um-pvt-small_8xb128-amp-coslr-100e_in1k-256px': {
        'backbone.arch': 'test',
        'neck.in_channels': PVT[-1],
        'head.in_channels': PVT[-1],
    },
    'gfl_um-pvt-small_fpn_8xb2-amp-lsj-25e_coco': {
        'backbone.arch': 'test',
        'neck.0.in_channels': PVT,
        'data_preprocessor.batch_augments.0.size': (SIDE, SIDE),
        'test_cfg.score_thr': 0.0,  # random weights are sure of nothing
    },
    'upernet_um-pvt-small_8xb2-amp-160k_ade20k-512x512': {
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
    'ResizeEdge': dict(scale=SIDE),
    'CenterCrop': dict(crop_size=SIDE),
    'Resize': dict(scale=(3 * SIDE // 2, 3 * SIDE // 2)),
    'RandomResize': dict(scale=(SIDE, SIDE), ratio_range=(0.5, 2.0)),
    'RandomCrop': dict(crop_size=(SIDE, SIDE)),
    'RandomResizedCropAndInterpolationWithTwoPic': dict(size=SIDE, second_size=SIDE // 2),
}


def use_demo_data(cfg: Config, data: Path) -> None:
    """Read the generated images, in this process."""
    folder = {'mmpretrain': 'imagenet', 'mmdet': 'coco', 'mmseg': 'ade'}[cfg.default_scope]
    classes = {'mmpretrain': PHOTOGRAPH_CLASSES, 'mmdet': DIGIT_CLASSES}.get(cfg.default_scope)
    for loader in filter(None, (cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test'))):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
        loader.dataset.update(data_root=f'{data}/{folder}/', serialize_data=False)
        if loader.dataset.type == 'mm_ummae.PretrainImages':
            loader.dataset.data_prefix = 'unlabelled'
        elif classes:
            loader.dataset.metainfo = dict(classes=classes)


def batch(cfg: Config, split: str) -> dict:
    """The first one of the split's loader."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return next(iter(Runner.build_dataloader(cfg[f'{split}_dataloader'], seed=0)))


@pytest.mark.integration
@pytest.mark.parametrize('path', [*map(leaf, SMALL), *filter(is_demo, LEAVES)], ids=lambda path: path.stem)
def test_one_step_and_one_prediction(path: Path, demo_data: Path, tmp_path: Path) -> None:
    """The losses are finite, the step moves every part, and predictions have the form of the task."""
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = config(path, {'model.backbone.img_size': SIDE, 'model.backbone.init_cfg': None})
    use_demo_data(cfg, demo_data)
    if not is_demo(path):
        cfg.merge_from_dict({f'model.{place}': value for place, value in SMALL[path.stem].items()})
        for split in ('train', 'test'):
            for step in cfg.get(f'{split}_dataloader', {}).get('dataset', {}).get('pipeline', []):
                step.update(SIZES.get(step.type, {}))
    model = build_model(cfg, 'cpu')
    tokenizer = getattr(model, 'target_generator', None)
    if tokenizer is not None:
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

    if cfg.model.type in PRETRAINERS and cfg.model.type not in MASKED:
        return  # MMPretrain's predict nothing
    model.eval()
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        results = model.test_step(batch(cfg, 'test' if cfg.get('test_dataloader') else 'train'))
    assert len(results) == 2
    for result in results:
        check_prediction(cfg.model, result)


def check_prediction(model: Any, result: Any) -> None:
    if model.type in MASKED:
        assert result.reconstruction.shape == result.image.shape == (3, SIDE, SIDE)
        assert result.reconstruction.min() >= 0 and result.reconstruction.max() <= 255
    elif model.type == 'ImageClassifier':
        assert result.pred_score.shape == (model.head.num_classes,) and int(result.pred_label) < model.head.num_classes
    elif model.type == 'EncoderDecoder':
        labels = result.pred_sem_seg.data
        assert labels.shape == (1, *result.ori_shape)
        assert 0 <= labels.min() <= labels.max() < model.decode_head.num_classes
    else:
        found, (height, width) = result.pred_instances, result.ori_shape
        assert 0 < len(found) <= 100 and found.bboxes.min() >= 0 and ((found.scores >= 0) & (found.scores <= 1)).all()
        assert found.bboxes[:, 0::2].max() <= width and found.bboxes[:, 1::2].max() <= height
        assert model.type == 'GFL' or found.masks.shape == (len(found), height, width)


# The sides that an image may have in training and in tests
FULL_SIZE = {
    'lomar_vit-base-p16_8xb128x4-amp-coslr-800e_in1k-384px': ({384}, None),
    'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px': ({224}, None),
    'um-vit-base-p16_8xb128-amp-coslr-100e_in1k-224px': ({224}, {224}),
    'gfl_um-pvt-small_fpn_8xb2-amp-lsj-25e_coco': (range(103, 1025), {800}),
    'mask-rcnn_um-pvt-small_fpn_8xb2-amp-ms-3x_coco': (range(480, 801, 32), {800}),
    'htcpp_um-swin-tiny_fpn_8xb2-amp-6x_coco': (range(400, 1401), {800}),
    'htcpp-without-semantic_um-swin-tiny_fpn_8xb2-amp-6x_coco': (range(400, 1401), {800}),
    'mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco': (range(103, 1025), {1024}),
    'upernet_um-swin-tiny_8xb2-amp-160k_ade20k-640x640': (range(320, 641), {640}),
}


@pytest.mark.parametrize('name', FULL_SIZE)
def test_pipelines_at_full_size(name: str, demo_data: Path) -> None:
    """Images come out with the sides that the network is made for, and with what it needs of annotations."""
    np.random.seed(0)
    cfg = config(leaf(name))
    use_demo_data(cfg, demo_data)
    for split, sides in zip(('train', 'test'), FULL_SIZE[name], strict=True):
        if sides is None:
            assert split == 'test' and cfg.get('test_dataloader') is None
            continue
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            sample = DATASETS.build(cfg[f'{split}_dataloader'].dataset)[0]
        image, labels = sample['inputs'], sample['data_samples']
        if cfg.model.type == 'mm_ummae.LoMaRBEiT':  # 14x14 patches, and as many tokens of 8 px
            image, second = image
            assert second.shape == (3, 112, 112)
        assert image.shape[0] == 3 and set(image.shape[1:]) <= set(sides), image.shape
        assert ('gt_label' in labels) == (cfg.model.type == 'ImageClassifier')
        if cfg.default_scope == 'mmseg':
            shape = tuple(image.shape[1:]) if split == 'train' else (SIDE, SIDE)
            assert labels.gt_sem_seg.data.shape[1:] == shape, 'the ground truth of tests is not resized'
        if cfg.default_scope == 'mmdet':
            semantic = split == 'train' and 'semantic_head' in cfg.model.get('roi_head', {})
            assert ('gt_sem_seg' in labels) == semantic
            assert not semantic or labels.gt_sem_seg.sem_seg.shape == (1, *image.shape[1:])
            assert len(labels.gt_instances) >= (cfg.model.type != 'GFL')
            assert ('masks' in labels.gt_instances) == (cfg.model.type != 'GFL')
