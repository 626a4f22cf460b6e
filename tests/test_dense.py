"""The pyramids under the hosts' detectors, segmentor and classifier: training steps, results, and the memory layout."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from mmcv.ops import roi_align
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mm_ummae.models import UMPVT, AvgPoolNorm, StageProjection, UMSwin, UMViT

from tests.builders import SMALL
from .test_um_vit import ARCH

CONFIGS = Path(__file__).parents[1] / 'configs'
NAMES = {
    'pretraining': 'demo/ummae_swin-test_1xb64-coslr-20e_demo-128px',
    'classifier': 'demo/um-swin-test_classification_1xb16-100it_demo-128px',
    'detector': 'demo/mask-rcnn_um-swin-test_1xb8-200it_demo-128px',
    'gfl': 'gfl/gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco',
    'segmentor': 'demo/upernet_um-swin-test_1xb8-150it_demo-128px',
}
HOSTS = ('classifier', 'detector', 'gfl', 'segmentor')
DETECTORS = ('detector', 'gfl')
BACKBONES = {UMSwin: (32, 64, 128, 256), UMPVT: (32, 64, 80, 128)}  # widths of the stages of arch 'test'
SIZES = {'equal': [(128, 128), (128, 128)], 'different': [(128, 96), (100, 128)]}
Box = tuple[float, float, float, float]
BOXES: list[Box] = [(10, 20, 70, 90), (40, 5, 90, 60)]
both_backbones = pytest.mark.parametrize('backbone', BACKBONES, ids=lambda backbone: backbone.__name__)


@cache
def read(kind: str) -> Config:
    return Config.fromfile(CONFIGS / f'{NAMES[kind]}.py')


def shrink(gfl: ConfigDict) -> None:
    """The published detector with the tiny backbone and narrow neck and head."""
    gfl.data_preprocessor.pop('batch_augments')
    gfl.backbone.update(arch='test', img_size=128, drop_path_rate=0.0)
    gfl.neck[0].out_channels = 64
    gfl.neck[1].update(in_channels=[64] * 4, out_channels=64, norm_cfg=dict(type='BN'))
    gfl.bbox_head.update(num_classes=10, in_channels=64, feat_channels=64, stacked_convs=1)


def exchange(model: ConfigDict, backbone: type[nn.Module]) -> None:
    """Put another backbone in, and its widths where the model needs them."""
    model.backbone.type = f'mm_ummae.{backbone.__name__}'
    if backbone is UMPVT:
        model.backbone.pop('window_size', None)
    widths = [BACKBONES[backbone][stage] for stage in model.backbone.get('out_indices', (3,))]
    neck = model.neck[0] if isinstance(model.neck, list) else model.neck
    neck.in_channels = widths if isinstance(neck.in_channels, list) else widths[-1]
    if model.type == 'ImageClassifier':
        model.head.in_channels = widths[-1]


def build(kind: str, backbone: type[nn.Module] = UMSwin, checkpoint: Path | None = None) -> nn.Module:
    """As the host's runner builds it."""
    torch.manual_seed(0)
    cfg = copy.deepcopy(read(kind))
    if kind == 'gfl':
        shrink(cfg.model)
    exchange(cfg.model, backbone)
    if checkpoint is not None:
        cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    elif kind != 'pretraining':
        cfg.model.backbone.init_cfg = None
    if 'data_preprocessor' in cfg:  # mmpretrain's runner finds it there
        cfg.model.data_preprocessor = dict(type='ClsDataPreprocessor', **cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MMENGINE_MODELS.build(cfg.model)


def picture(size: tuple[int, int], seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, *size), dtype=np.uint8))


def metainfo(size: tuple[int, int], index: int) -> dict:
    return dict(img_id=index, img_path=f'{index}.jpg', img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))


def detection_sample(size: tuple[int, int], index: int, boxes: list[Box]) -> DetDataSample:
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
    sample = DetDataSample(metainfo=metainfo(size, index))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4).float(),
        labels=torch.arange(len(boxes)) + 3,
        masks=BitmapMasks(masks, *size),
    )
    return sample


def segmentation_sample(size: tuple[int, int], index: int) -> SegDataSample:
    sample = SegDataSample(metainfo=metainfo(size, index))
    labels = torch.from_numpy(np.random.default_rng(index).integers(0, 20, (1, *size)))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def batch(kind: str, sizes: list[tuple[int, int]], boxes: list[list[Box]] | None = None) -> dict[str, list]:
    """What the host's loader would give its data preprocessor."""
    boxes = boxes or [BOXES for _ in sizes]
    make = {
        'classifier': lambda i: DataSample(metainfo=metainfo(sizes[i], i)).set_gt_label(i + 2),
        'detector': lambda i: detection_sample(sizes[i], i, boxes[i]),
        'gfl': lambda i: detection_sample(sizes[i], i, boxes[i]),
        'segmentor': lambda i: segmentation_sample(sizes[i], i),
    }[kind]
    return dict(
        inputs=[picture(size, seed) for seed, size in enumerate(sizes)],
        data_samples=[make(i) for i in range(len(sizes))],
    )


def train_step(model: nn.Module, data: dict) -> dict[str, Tensor]:
    """Loss terms of one step, with gradients in the model."""
    model.train()
    processed = model.data_preprocessor(data, True)
    losses = model(processed['inputs'], processed['data_samples'], mode='loss')
    total, terms = model.parse_losses(losses)
    total.backward()
    return terms


# Training steps and results


@both_backbones
@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('kind', HOSTS)
def test_a_step_reaches_every_parameter_of_the_backbone(kind: str, sizes: str, backbone: type[nn.Module]) -> None:
    """Losses are finite, also where the data preprocessor pads images of different sizes."""
    model = build(kind, backbone)
    assert type(model.backbone) is backbone
    terms = train_step(model, batch(kind, SIZES[sizes]))
    assert len(terms) > 1 or kind == 'classifier'
    assert all(torch.isfinite(value) for value in terms.values()), terms
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # The last bias of the position MLP adds a constant to all logits of a head, which softmax takes out
        assert parameter.grad.any() or name.endswith('position_bias.fc2.bias'), f'{name} has no effect'


@pytest.mark.parametrize('kind', HOSTS)
def test_several_gpus_can_train(kind: str) -> None:
    """There a parameter without a gradient stops the second step, unless the config says that some are unused."""
    model = build(kind)
    train_step(model, batch(kind, SIZES['equal']))
    unused = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not unused or read(kind).get('find_unused_parameters'), unused


@pytest.mark.parametrize('kind', ['classifier', 'detector'])
def test_images_of_different_sizes_share_a_padded_batch(kind: str) -> None:
    """The smaller image's own pixels are as if it were alone: padding stands on the right and below."""
    model = build(kind)
    both = model.data_preprocessor(batch(kind, SIZES['different']), True)['inputs']
    alone = model.data_preprocessor(batch(kind, SIZES['different'][:1]), True)['inputs']
    assert both.shape == (2, 3, 128, 128)
    assert torch.equal(both[0, :, :, :96], alone[0, :, :, :96])
    assert not both[0, :, :, 96:].any()


@both_backbones
@torch.no_grad()
def test_classifier_predicts(backbone: type[nn.Module]) -> None:
    model = build('classifier', backbone).eval()
    data = model.data_preprocessor(batch('classifier', SIZES['equal']), False)
    results = model(data['inputs'], data['data_samples'], mode='predict')
    assert len(results) == 2
    for result in results:
        assert result.pred_score.shape == (10,) and float(result.pred_score.sum()) == pytest.approx(1, abs=1e-5)
        assert int(result.pred_label) == int(result.pred_score.argmax())


@both_backbones
@pytest.mark.parametrize('kind', DETECTORS)
@torch.no_grad()
def test_detector_predicts(kind: str, backbone: type[nn.Module]) -> None:
    model = build(kind, backbone).eval()
    test_cfg = model.bbox_head.test_cfg if kind == 'gfl' else model.roi_head.test_cfg
    test_cfg.score_thr = 0.0  # untrained scores are low
    data = model.data_preprocessor(batch(kind, SIZES['different']), False)
    results = model(data['inputs'], data['data_samples'], mode='predict')
    assert len(results) == 2
    for result, (height, width) in zip(results, SIZES['different'], strict=True):
        found = result.pred_instances
        assert len(found) > 0
        assert kind == 'gfl' or found.masks.shape == (len(found), height, width)
        assert found.bboxes.min() >= 0 and found.bboxes[:, 2].max() <= width and found.bboxes[:, 3].max() <= height
        assert set(found.labels.tolist()) <= set(range(10))


@both_backbones
@torch.no_grad()
def test_segmentor_predicts(backbone: type[nn.Module]) -> None:
    model = build('segmentor', backbone).eval()
    data = model.data_preprocessor(batch('segmentor', [(96, 128), (96, 128)]), False)
    results = model(data['inputs'], data['data_samples'], mode='predict')
    for result in results:
        assert result.seg_logits.data.shape == (20, 96, 128)
        assert torch.equal(result.pred_sem_seg.data[0], result.seg_logits.data.argmax(0))


@pytest.mark.parametrize(('kind', 'backbone'), [('detector', UMSwin), ('detector', UMPVT), ('gfl', UMPVT)])
@pytest.mark.parametrize(
    'boxes',
    [[[], BOXES], [[], []], [[(50, 50, 51, 51)], [(0, 0, 1, 1), (127, 127, 128, 128)]]],
    ids=['one-empty', 'all-empty', 'one-pixel'],
)
def test_detector_trains_on_hard_annotations(boxes: list[list[Box]], kind: str, backbone: type[nn.Module]) -> None:
    model = build(kind, backbone)
    terms = train_step(model, batch(kind, SIZES['equal'], boxes))
    assert all(torch.isfinite(value) for value in terms.values()), terms
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert model.backbone.patch_embed.projection.weight.grad.any()


@both_backbones
def test_detector_learns_one_picture(backbone: type[nn.Module]) -> None:
    """A dozen steps on one image: the whole chain of head, neck and backbone pulls the loss down."""
    model, data = build('detector', backbone), batch('detector', SIZES['equal'])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(train_step(model, copy.deepcopy(data))['loss'].item())
        optimizer.step()
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3]), losses


# Memory layout: MMCV's RoIAlign reads channels-last memory as if it were contiguous, without an error


def assert_contiguous(maps: tuple[Tensor, ...]) -> None:
    assert len(maps) == 4
    for x in maps:
        assert x.is_contiguous(), x.stride()
        assert x.shape[1] > 1 and x.shape[2] > 1, 'a map this small is contiguous in both layouts'


@both_backbones
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('kwargs', [dict(final_norm=False), dict(), dict(with_cp=True)], ids=str)
def test_maps_are_contiguous(kwargs: dict, memory_format: torch.memory_format, backbone: type[nn.Module]) -> None:
    """In both modes and for images of either layout, from the backbone and from the projections behind it."""
    model = backbone('test', img_size=128, out_indices=(0, 1, 2, 3), **kwargs)
    necks = [StageProjection(model.num_features, 16, with_norm=norm) for norm in (True, False)]
    images = torch.randn(2, 3, 128, 96).contiguous(memory_format=memory_format)
    for mode in (True, False):
        maps = model.train(mode)(images)
        assert_contiguous(maps)
        for neck in necks:
            assert_contiguous(neck(maps))


@both_backbones
@torch.no_grad()
def test_roi_align_reads_the_maps_of_a_detector(backbone: type[nn.Module]) -> None:
    """Features of boxes are those of the map's values, at each level before and behind the FPN."""
    model = build('detector', backbone).eval()
    images = torch.randn(2, 3, 128, 128)
    maps = model.backbone(images)
    strides = model.roi_head.bbox_roi_extractor.featmap_strides
    rois = torch.tensor([[0, 8, 16, 72, 80], [1, 30, 2, 100, 50]], dtype=torch.float32)
    for stage in (maps, model.neck[0](maps), model.neck(maps)):
        assert len(stage) == len(strides)
        for stride, x in zip(strides, stage, strict=True):
            expected = roi_align(x.clone(memory_format=torch.contiguous_format), rois, 7, 1 / stride, 0)
            assert torch.equal(roi_align(x, rois, 7, 1 / stride, 0), expected)
            other = torchvision.ops.roi_align(x, rois, 7, 1 / stride, aligned=True)
            assert torch.allclose(expected, other, atol=1e-4)


# Pre-trained weights


def randomised(model: nn.Module) -> nn.Module:
    """No value is one that a new model has by chance."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@both_backbones
@pytest.mark.parametrize('kind', HOSTS)
def test_pretrained_weights_arrive_in_the_host(kind: str, backbone: type[nn.Module], tmp_path: Path) -> None:
    state = randomised(build('pretraining', backbone)).state_dict()
    torch.save(dict(state_dict=state, meta=dict(epoch=24)), tmp_path / 'epoch_20.pth')
    model = build(kind, backbone, tmp_path / 'epoch_20.pth')
    model.init_weights()
    own = model.backbone.state_dict()
    assert own and all(torch.equal(value, state[f'backbone.{name}']) for name, value in own.items())
    surplus = {name.removeprefix('backbone.') for name in state if name.startswith('backbone.')} - own.keys()
    assert surplus == {'secondary_token', 'norm.weight', 'norm.bias'}


@both_backbones
@pytest.mark.parametrize('kind', HOSTS)
def test_weights_of_another_arch_are_refused(kind: str, backbone: type[nn.Module], tmp_path: Path) -> None:
    other = backbone(SMALL[backbone], img_size=128).state_dict()
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in other.items()}), tmp_path / 'other.pth')
    model = build(kind, backbone, tmp_path / 'other.pth')
    message = rf'the checkpoint .*other\.pth does not fit {backbone.__name__}.*other shape: '
    with pytest.raises(ValueError, match=message):
        model.init_weights()


# Scopes

PARTS: list[tuple[dict[str, Any], type[nn.Module]]] = [
    (dict(type='mm_ummae.UMSwin', arch='test', img_size=128), UMSwin),
    (dict(type='mm_ummae.UMPVT', arch='test', img_size=128), UMPVT),
    (dict(type='mm_ummae.UMViT', arch=ARCH, img_size=128), UMViT),
    (dict(type='mm_ummae.StageProjection', in_channels=[8, 16]), StageProjection),
    (dict(type='mm_ummae.AvgPoolNorm', in_channels=8), AvgPoolNorm),
]


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_the_prefix_builds_under_each_host(scope: str) -> None:
    """From MMEngine's registry, as the runner does, and from the host's own, as its models do."""
    host = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    for cfg, kind in PARTS:
        with DefaultScope.overwrite_default_scope(scope):
            assert type(MMENGINE_MODELS.build(dict(cfg))) is kind
            assert type(host.build(dict(cfg))) is kind


def test_the_prefix_alone_imports_the_package() -> None:
    """No custom_imports: a new process that has imported nothing of mm_ummae builds its models by name."""
    code = (
        'import sys\n'
        'from mmdet.registry import MODELS\n'
        'from mmengine.registry import init_default_scope\n'
        'init_default_scope("mmdet")\n'
        'assert "mm_ummae" not in sys.modules\n'
        'print(type(MODELS.build(dict(type="mm_ummae.StageProjection", in_channels=[8]))).__name__)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == 'StageProjection'
