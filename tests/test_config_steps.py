"""Every leaf config trains one step and predicts once, through its own data pipelines, on tiny networks and images.

Only sizes and places are overridden: architectures, widths, image sides and data folders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES
from demo.make_data import make_demo_data

from .leaves import (
    IDS,
    LEAVES,
    MASKED,
    PRETRAINERS,
    WIDTHS,
    backbone_kind,
    build_model,
    build_optimizer,
    config,
    is_demo,
    leaf,
)

SIDE = 64  # pixels of the images and of the networks' inputs
VIT = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128)
# Image sides of a pipeline's steps; segmentors are tested on larger images than their crops.
SIZES = {
    'RandomResizedCrop': dict(scale=SIDE),
    'mm_ummae.TorchRandomResizedCrop': dict(scale=SIDE),
    'ResizeEdge': dict(scale=SIDE),
    'CenterCrop': dict(crop_size=SIDE),
    'Resize': dict(scale=(3 * SIDE // 2, 3 * SIDE // 2)),
    'RandomResize': dict(scale=(SIDE, SIDE), ratio_range=(0.5, 2.0)),
    'RandomChoiceResize': dict(scales=[(2 * SIDE, SIDE), (2 * SIDE, SIDE + 32)]),
    'RandomCrop': dict(crop_size=(SIDE, SIDE)),
    'RandomResizedCropAndInterpolationWithTwoPic': dict(size=SIDE, second_size=SIDE // 2),
}
NARROW = 32  # channels of necks and heads
WITH_MASKS = ('MaskRCNN', 'HybridTaskCascade')

every_leaf = pytest.mark.parametrize('path', LEAVES, ids=IDS)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in the layouts of ImageNet, COCO and ADE20K."""
    counts = dict.fromkeys(('num_coco_train', 'num_coco_val', 'num_ade_train', 'num_ade_val'), 2)
    return make_demo_data(
        tmp_path_factory.mktemp('data') / 'demo',
        image_size=SIDE,
        num_pretrain=4,
        num_labelled_train=10,
        num_labelled_val=10,
        **counts,
    )


def use_demo_data(cfg: Config, data: Path) -> None:
    """Read the generated images, in this process."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        loader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
        dataset = loader.dataset
        if dataset.type in ('CocoDataset', 'mm_ummae.CocoStuffDataset'):
            dataset.update(data_root=f'{data}/coco/', metainfo=dict(classes=DIGIT_CLASSES))
        elif dataset.type in ('ADE20KDataset', 'BaseSegDataset'):
            dataset.data_root = f'{data}/ade/'
        elif dataset.type == 'mm_ummae.PretrainImages':
            dataset.update(data_root=f'{data}/imagenet/', data_prefix='unlabelled')
        else:
            dataset.data_root = f'{data}/imagenet/'
            dataset.metainfo = dict(classes=PHOTOGRAPH_CLASSES)


def use_small_pictures(cfg: Config) -> None:
    for split in ('train', 'val', 'test'):
        for step in cfg.get(f'{split}_dataloader', {}).get('dataset', {}).get('pipeline', []):
            step.update(SIZES.get(step.type, {}))


def use_small_network(cfg: Config) -> None:
    """The smallest network of the family; what follows it gets its widths."""
    model, (kind, arch) = cfg.model, backbone_kind(cfg)
    if arch != 'test':
        model.backbone.arch = 'test' if (kind, 'test') in WIDTHS else VIT
        set_widths(cfg, WIDTHS.get((kind, 'test'), [VIT['embed_dims']]))
    model.backbone.update(img_size=SIDE, init_cfg=None)
    if model.backbone.get('global_layers'):
        model.backbone.update(window_size=3, global_layers=[1, 3])
        model.data_preprocessor.pad_size_divisor = SIDE
    if model.type == 'mm_ummae.UMMAE':
        model.neck.img_size = SIDE
    elif model.type == 'mm_ummae.LoMaR':
        model.update(window_size=3, num_windows=2)
    elif model.type == 'mm_ummae.LoMaRBEiT':
        model.update(window_size=3, num_windows=2)
        model.backbone.img_size = 3 * 16
    elif model.type == 'MAE':
        model.neck.num_patches = (SIDE // 16) ** 2
    elif model.type == 'EncoderDecoder':
        model.data_preprocessor.size = (SIDE, SIDE)
        if model.test_cfg.mode == 'slide':
            model.test_cfg.update(crop_size=(SIDE, SIDE), stride=(43, 43))
    elif model.type in WITH_MASKS:
        model.test_cfg.rcnn.score_thr = 0.0  # random weights are sure of nothing
    elif model.type == 'GFL':
        model.data_preprocessor.batch_augments[0].size = (SIDE, SIDE)
        model.test_cfg.score_thr = 0.0


def set_widths(cfg: Config, widths: list[int]) -> None:
    model = cfg.model
    if model.type == 'mm_ummae.UMMAE':
        model.neck.update(in_channels=widths[-1], embed_dims=NARROW, num_heads=4)
        model.head.in_channels = NARROW
    elif model.type in ('mm_ummae.UMSimMIM', 'mm_ummae.LoMaR'):
        model.head.in_channels = widths[-1]
    elif model.type == 'mm_ummae.LoMaRBEiT':
        model.target_generator.update(n_hid=8, n_blk_per_group=1, vocab_size=NARROW)
        model.head.update(embed_dims=widths[-1], num_embed=NARROW)
    elif model.type == 'MAE':
        model.neck.update(embed_dim=widths[-1], decoder_embed_dim=NARROW, decoder_depth=1, decoder_num_heads=4)
    elif model.type == 'ImageClassifier':
        model.neck.in_channels = model.head.in_channels = widths[-1]
    elif model.type == 'EncoderDecoder':
        model.neck.update(in_channels=widths, out_channels=NARROW)
        model.decode_head.update(in_channels=4 * [NARROW], channels=NARROW)
        model.auxiliary_head.update(in_channels=NARROW, channels=NARROW)
    else:
        if isinstance(model.neck, dict):  # of a plain ViT
            model.neck.update(in_channels=widths[-1], out_channels=NARROW)
        else:
            projection, fpn = model.neck
            projection.update(in_channels=widths, out_channels=NARROW)
            if 'extra_layer' in projection:
                projection.extra_layer.update(in_channels=widths[-1], num_heads=4)
            fpn.update(in_channels=4 * [NARROW], out_channels=NARROW)
        (model.bbox_head if model.type == 'GFL' else model.rpn_head).update(in_channels=NARROW, feat_channels=NARROW)
    if model.type in WITH_MASKS:
        set_roi_widths(model)


def set_roi_widths(model: ConfigDict) -> None:
    """Of one head, or one for each stage of a cascade."""
    head = model.roi_head
    for name in ('bbox_roi_extractor', 'mask_roi_extractor', 'semantic_roi_extractor'):
        if name in head:
            head[name].out_channels = NARROW
    for part in listed(head.bbox_head):
        part.update(in_channels=NARROW, fc_out_channels=NARROW)
        if 'conv_out_channels' in part:
            part.conv_out_channels = NARROW
    for part in [*listed(head.mask_head), *listed(head.get('semantic_head', []))]:
        part.update(in_channels=NARROW, conv_out_channels=NARROW)
    for stage in listed(model.train_cfg.rcnn):
        stage.sampler.num = 32
    model.test_cfg.rcnn.max_per_img = 10


def listed(value: list | ConfigDict) -> list:
    return value if isinstance(value, list) else [value]


def batch(cfg: Config, split: str) -> dict:
    """The first one of the split's loader."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return next(iter(Runner.build_dataloader(cfg[f'{split}_dataloader'], seed=0)))


@every_leaf
def test_one_step_and_one_prediction(path: Path, data: Path, tmp_path: Path) -> None:
    """The losses are finite, the step moves the network, and predictions have the form of the task."""
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = config(path)
    use_demo_data(cfg, data)
    use_small_pictures(cfg)
    use_small_network(cfg)
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
    # The last bias of a position MLP adds a constant to all logits of a head, which softmax takes out.
    still = {name for name in before.keys() - moved - fixed - unused if not name.endswith('position_bias.fc2.bias')}
    assert len(still) < 0.1 * len(before), still
    parts = {name.split('.')[0] for name in before.keys() - fixed}
    assert {name.split('.')[0] for name in moved} == parts, 'a part did not move'

    model.eval()
    source = 'test' if cfg.get('test_dataloader') else 'train'
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        if cfg.model.type in PRETRAINERS and cfg.model.type not in MASKED:  # MMPretrain's: only features
            images = model.data_preprocessor(batch(cfg, source), False)['inputs']
            if tokenizer is not None:  # of a window
                images = images[0][..., : 3 * 16, : 3 * 16]
            (features,) = model.extract_feat(images)
            assert len(features) == 2 and features.isfinite().all()
            return
        results = model.test_step(batch(cfg, source))
    assert len(results) == 2
    for result in results:
        check_prediction(cfg, result)


def check_prediction(cfg: Config, result: object) -> None:
    kind = cfg.model.type
    if kind in MASKED:
        assert result.reconstruction.shape == result.image.shape == (3, SIDE, SIDE)
        assert result.reconstruction.isfinite().all()
        assert result.reconstruction.min() >= 0 and result.reconstruction.max() <= 255
        patch = cfg.model.backbone.get('patch_size', 16)
        assert result.unsampled.shape == (SIDE // patch, SIDE // patch) == result.hidden.shape
        if kind == 'mm_ummae.LoMaR':
            assert result.window_masked.shape == (2, 3, 3) and result.window_masked.sum() == 2 * 7
            assert result.window_reconstruction.shape == (2, 3, 3 * patch, 3 * patch)
        else:
            assert result.unsampled.sum() == 12
            assert result.hidden.sum() == 12 + (cfg.model.get('secondary_ratio', 0) > 0)
    elif kind == 'ImageClassifier':
        scores = result.pred_score
        assert scores.shape == (cfg.model.head.num_classes,) and float(scores.sum()) == pytest.approx(1, abs=1e-5)
        assert int(result.pred_label) == int(scores.argmax())
    elif kind == 'EncoderDecoder':
        classes = cfg.model.decode_head.num_classes
        assert result.pred_sem_seg.data.shape == (1, *result.ori_shape)
        assert result.pred_sem_seg.data.min() >= 0 and result.pred_sem_seg.data.max() < classes
        assert result.seg_logits.data.shape == (classes, *result.ori_shape)
    else:
        check_instances(cfg, result)


def check_instances(cfg: Config, result: object) -> None:
    height, width = result.ori_shape
    found: dict[str, Tensor] = result.pred_instances
    heads = cfg.model.bbox_head if cfg.model.type == 'GFL' else cfg.model.roi_head.bbox_head
    classes = listed(heads)[-1].num_classes
    assert 0 < len(found) <= 100
    assert found.bboxes.shape == (len(found), 4) and found.bboxes.min() >= 0
    assert (found.bboxes[:, 0::2] <= width).all() and (found.bboxes[:, 1::2] <= height).all()
    assert ((found.labels >= 0) & (found.labels < classes)).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    if cfg.model.type in WITH_MASKS:
        assert found.masks.shape == (len(found), height, width) and found.masks.dtype == torch.bool


# Data at full size


def dataset_of(cfg: Config, split: str) -> BaseDataset:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


@every_leaf
def test_pipelines_run_at_full_size(path: Path, data: Path) -> None:
    """Each image comes out with the side that its network is made for, and with its annotations."""
    np.random.seed(0)
    cfg = config(path)
    use_demo_data(cfg, data)
    folder = path.parent.name
    for split in ('train', 'test'):
        if cfg.get(f'{split}_dataloader') is None:
            assert split == 'test' and cfg.model.type in PRETRAINERS
            continue
        sample = dataset_of(cfg, split)[0]
        inputs = sample['inputs']
        if cfg.model.type == 'mm_ummae.LoMaRBEiT':  # 14x14 patches, and as many tokens of 8 px
            inputs, second = inputs
            assert inputs.shape == (3, 224, 224) and second.shape == (3, 112, 112)
            continue
        channels, height, width = inputs.shape
        labels = sample['data_samples']
        assert channels == 3
        if cfg.default_scope == 'mmpretrain' and not is_demo(path):
            assert height == width == cfg.model.backbone.img_size
            assert ('gt_label' in labels) == (folder == 'imagenet')
        elif folder == 'upernet':
            side = int(path.stem.removesuffix('-whole').rpartition('x')[2])
            assert (height, width) == (side, side) or (split == 'train' and max(height, width) <= side)
            assert labels.gt_sem_seg.data.shape[1:] == ((height, width) if split == 'train' else (SIDE, SIDE))
        elif folder == 'gfl':
            assert (height, width) == (800, 800) if split == 'test' else max(height, width) <= 1024
        elif folder == 'vitdet':
            assert max(height, width) == 1024 if split == 'test' else max(height, width) <= 1024
        elif folder == 'mask_rcnn':
            assert (height, width) == (800, 800) or (split == 'train' and height in range(480, 801, 32))
        elif folder == 'htc' and not is_demo(path):
            assert height == width and (height == 800 if split == 'test' else 400 <= height <= 1400)
        semantic = split == 'train' and 'semantic_head' in cfg.model.get('roi_head', {})
        if semantic:
            assert labels.gt_sem_seg.sem_seg.shape == (1, height, width)
        if cfg.default_scope == 'mmdet':
            assert len(labels.gt_instances) >= (folder != 'gfl')
            assert ('masks' in labels.gt_instances) == (cfg.model.type in WITH_MASKS)
            assert ('gt_sem_seg' in labels) == semantic


def test_a_typo_in_a_pipeline_would_be_noticed(data: Path) -> None:
    cfg = config(leaf('um-swin-tiny_8xb128-amp-coslr-100e_in1k-256px'))
    use_demo_data(cfg, data)
    cfg.train_dataloader.dataset.pipeline[2].type = 'RandomFlop'
    with pytest.raises(KeyError, match='RandomFlop'):
        dataset_of(cfg, 'train')
