"""The pyramids under the hosts' classifier, detectors and segmentor: training steps, predictions, memory layout."""

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
from tests.builders import ALL, SMALL, VIT, Pyramid, seeded

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = {
    'pretraining': 'ummae_swin-test_1xb64-coslr-20e_demo-128px',
    'classifier': 'um-swin-test_classification_1xb16-100it_demo-128px',
    'detector': 'mask-rcnn_um-swin-test_1xb8-200it_demo-128px',
    'gfl': 'gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco',
    'segmentor': 'upernet_um-swin-test_1xb8-150it_demo-128px',
}
HOSTS = ('classifier', 'detector', 'gfl', 'segmentor')
BACKBONES = {UMSwin: (32, 64, 128, 256), UMPVT: (32, 64, 80, 128)}  # widths of the stages of arch 'test'
SIZES = [(128, 96), (100, 128)]
Box = tuple[float, float, float, float]
BOXES: list[Box] = [(10, 20, 70, 90), (40, 5, 90, 60)]
both_backbones = pytest.mark.parametrize('backbone', BACKBONES, ids=lambda backbone: backbone.__name__)
# Each host with one backbone, where the other would run the same code
one_backbone = pytest.mark.parametrize(
    ('kind', 'backbone'),
    [('classifier', UMSwin), ('detector', UMPVT), ('gfl', UMSwin), ('segmentor', UMPVT)],
    ids=HOSTS,
)


@cache
def read(kind: str) -> Config:
    (path,) = CONFIGS.rglob(f'{NAMES[kind]}.py')
    return Config.fromfile(path)


def shrink(gfl: ConfigDict) -> None:
    """The published detector with the tiny backbone and narrow neck and head."""
    gfl.data_preprocessor.pop('batch_augments')
    gfl.backbone.update(arch='test', img_size=128, drop_path_rate=0.0)
    gfl.neck[0].out_channels = 64
    gfl.neck[1].update(in_channels=[64] * 4, out_channels=64, norm_cfg=dict(type='BN'))
    gfl.bbox_head.update(num_classes=10, in_channels=64, feat_channels=64, stacked_convs=1)


def exchange(model: ConfigDict, backbone: Pyramid) -> None:
    """Put another backbone in, and its widths where the model needs them."""
    model.backbone.type = f'mm_ummae.{backbone.__name__}'
    if backbone is UMPVT:
        model.backbone.pop('window_size', None)
    widths = [BACKBONES[backbone][stage] for stage in model.backbone.get('out_indices', (3,))]
    neck = model.neck[0] if isinstance(model.neck, list) else model.neck
    neck.in_channels = widths if isinstance(neck.in_channels, list) else widths[-1]
    if model.type == 'ImageClassifier':
        model.head.in_channels = widths[-1]


def build(kind: str, backbone: Pyramid = UMSwin, checkpoint: Path | None = None) -> nn.Module:
    """As the runner of a host builds it."""
    torch.manual_seed(0)
    cfg = copy.deepcopy(read(kind))
    if kind == 'gfl':
        shrink(cfg.model)
    exchange(cfg.model, backbone)
    if checkpoint is not None:
        cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    elif kind != 'pretraining':
        cfg.model.backbone.init_cfg = None
    if 'data_preprocessor' in cfg:  # where MMPretrain's runner finds it
        cfg.model.data_preprocessor = dict(type='ClsDataPreprocessor', **cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MMENGINE_MODELS.build(cfg.model)


def data_sample(
    kind: str, size: tuple[int, int], index: int, boxes: list[Box]
) -> DataSample | DetDataSample | SegDataSample:
    """Ground truth of one image."""
    info = dict(img_id=index, img_path=f'{index}.jpg', img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    if kind == 'classifier':
        return DataSample(metainfo=info).set_gt_label(index + 2)
    if kind == 'segmentor':
        sample = SegDataSample(metainfo=info)
        labels = np.random.default_rng(index).integers(0, 20, (1, *size))
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels))
        return sample
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
    sample = DetDataSample(metainfo=info)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4).float(),
        labels=torch.arange(len(boxes)) + 3,
        masks=BitmapMasks(masks, *size),
    )
    return sample


def batch(kind: str, sizes: list[tuple[int, int]] = SIZES, boxes: list[list[Box]] | None = None) -> dict[str, list]:
    """Output of a data loader of the host."""
    boxes = boxes or [BOXES for _ in sizes]
    images = [np.random.default_rng(i).integers(0, 256, (3, *size), dtype=np.uint8) for i, size in enumerate(sizes)]
    samples = [data_sample(kind, size, i, boxes[i]) for i, size in enumerate(sizes)]
    return dict(inputs=[torch.from_numpy(image) for image in images], data_samples=samples)


def train_step(model: nn.Module, data: dict) -> dict[str, Tensor]:
    """Loss terms of one step, with gradients in the model."""
    processed = model.train().data_preprocessor(data, True)
    total, terms = model.parse_losses(model(processed['inputs'], processed['data_samples'], mode='loss'))
    total.backward()
    assert all(torch.isfinite(value) for value in terms.values()), terms
    return terms


# Memory layout: MMCV's RoIAlign reads channels-last memory as if it were contiguous, without an error


@both_backbones
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('kwargs', [dict(final_norm=False), dict(with_cp=True)], ids=str)
def test_maps_are_contiguous(kwargs: dict, memory_format: torch.memory_format, backbone: Pyramid) -> None:
    """In both modes and for images of either layout, from the backbone and from the projections after it."""
    model = backbone('test', img_size=128, out_indices=ALL, **kwargs)
    necks = [StageProjection(model.num_features, 16, with_norm=norm) for norm in (True, False)]
    images = seeded(2, 3, 128, 96).contiguous(memory_format=memory_format)
    for mode in (True, False):
        maps = model.train(mode)(images)
        for outs in (maps, *(neck(maps) for neck in necks)):
            assert len(outs) == 4
            for x in outs:
                assert x.is_contiguous(), x.stride()
                assert x.shape[1] > 1 and x.shape[2] > 1, 'a map this small is contiguous in both layouts'


@pytest.mark.integration
@torch.no_grad()
def test_roi_align_reads_the_maps_of_a_detector() -> None:
    """Features of boxes are those of the map's values, at each level before and after the FPN."""
    model, images = build('detector').eval(), seeded(2, 3, 128, 128)
    maps = model.backbone(images)
    strides = model.roi_head.bbox_roi_extractor.featmap_strides
    rois = torch.tensor([[0, 8, 16, 72, 80], [1, 30, 2, 100, 50]], dtype=torch.float32)
    for stage in (maps, model.neck[0](maps), model.neck(maps)):
        for stride, x in zip(strides, stage, strict=True):
            expected = torchvision.ops.roi_align(x, rois, 7, 1 / stride, aligned=True)
            assert torch.allclose(roi_align(x, rois, 7, 1 / stride, 0), expected, atol=1e-4)


# Necks


def test_average_pooling_neck() -> None:
    neck, x = AvgPoolNorm(8), seeded(2, 8, 3, 5)
    expected = nn.functional.layer_norm(x.flatten(2).mean(2), (8,), eps=1e-6)
    torch.testing.assert_close(neck((seeded(2, 4, 6, 10), x))[0], expected)


def test_stage_projection() -> None:
    """LayerNorm and a linear layer per position, after the extra layer of the last stage."""
    extra = dict(type='mm_ummae.GlobalAttention', in_channels=8, num_heads=2)
    neck, maps = StageProjection([4, 8], 6, extra_layer=extra), (seeded(2, 4, 4, 6), seeded(2, 8, 2, 3))
    nn.init.normal_(neck.extra_layer.proj.weight)
    inputs = (maps[0], neck.extra_layer(maps[1]))
    for i, out in enumerate(neck(maps)):
        x = neck.norms[i](inputs[i][1, :, 1, 2])
        torch.testing.assert_close(out[1, :, 1, 2], neck.projections[i](x))
    with pytest.raises(ValueError, match='3 maps came, but in_channels has 2 entries'):
        neck((*maps, maps[1]))


# Training steps and predictions


@pytest.mark.integration
@both_backbones
@pytest.mark.parametrize('kind', HOSTS)
def test_a_step_reaches_every_parameter(kind: str, backbone: Pyramid) -> None:
    """Images of different sizes in one padded batch.

    With several GPUs a parameter without a gradient stops the second step, unless the config allows unused ones.
    """
    model = build(kind, backbone)
    assert type(model.backbone) is backbone
    terms = train_step(model, batch(kind))
    assert len(terms) > 1 or kind == 'classifier'
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # The last bias of the position MLP adds a constant to all logits of a head, which softmax takes out
        assert parameter.grad.any() or name.endswith('position_bias.fc2.bias'), f'{name} has no effect'
    unused = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not unused or read(kind).get('find_unused_parameters'), unused


@pytest.mark.integration
@one_backbone
@torch.no_grad()
def test_predictions(kind: str, backbone: Pyramid) -> None:
    """Results have the size of each image, also where images of a batch differ in size."""
    model = build(kind, backbone).eval()
    sizes = [(96, 128)] * 2 if kind == 'segmentor' else SIZES
    if kind in ('detector', 'gfl'):  # scores of an untrained model are low
        (model.bbox_head if kind == 'gfl' else model.roi_head).test_cfg.score_thr = 0.0
    data = model.data_preprocessor(batch(kind, sizes), False)
    results = model(data['inputs'], data['data_samples'], mode='predict')
    assert len(results) == 2
    for result, (height, width) in zip(results, sizes, strict=True):
        if kind == 'classifier':
            assert result.pred_score.shape == (10,) and float(result.pred_score.sum()) == pytest.approx(1, abs=1e-5)
            assert int(result.pred_label) == int(result.pred_score.argmax())
        elif kind == 'segmentor':
            assert result.seg_logits.data.shape == (20, height, width)
            assert torch.equal(result.pred_sem_seg.data[0], result.seg_logits.data.argmax(0))
        else:
            found = result.pred_instances
            assert len(found) > 0 and set(found.labels.tolist()) <= set(range(10))
            assert kind == 'gfl' or found.masks.shape == (len(found), height, width)
            assert found.bboxes.min() >= 0
            assert found.bboxes[:, 2].max() <= width and found.bboxes[:, 3].max() <= height


@pytest.mark.integration
@pytest.mark.parametrize(('kind', 'backbone'), [('detector', UMSwin), ('gfl', UMPVT)])
@pytest.mark.parametrize(
    'boxes',
    [[[], BOXES], [[], []], [[(50, 50, 51, 51)], [(0, 0, 1, 1), (127, 127, 128, 128)]]],
    ids=['one-empty', 'all-empty', 'one-pixel'],
)
def test_detector_trains_on_hard_annotations(boxes: list[list[Box]], kind: str, backbone: Pyramid) -> None:
    model = build(kind, backbone)
    train_step(model, batch(kind, [(128, 128)] * 2, boxes))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert model.backbone.patch_embed.projection.weight.grad.any()


# Pre-trained weights


@pytest.mark.integration
@one_backbone
def test_pretrained_weights_are_loaded_in_the_host(kind: str, backbone: Pyramid, tmp_path: Path) -> None:
    """Through ``init_cfg`` of the leaf config, except what only pre-training has; another arch is refused."""
    source = build('pretraining', backbone)
    for parameter in source.parameters():  # no value is one that a new model has by chance
        parameter.data.normal_()
    state = source.state_dict()
    torch.save(dict(state_dict=state, meta=dict(epoch=24)), tmp_path / 'epoch_20.pth')
    model = build(kind, backbone, tmp_path / 'epoch_20.pth')
    model.init_weights()
    own = model.backbone.state_dict()
    assert own and all(torch.equal(value, state[f'backbone.{name}']) for name, value in own.items())
    surplus = {name.removeprefix('backbone.') for name in state if name.startswith('backbone.')} - own.keys()
    assert surplus == {'secondary_token', 'norm.weight', 'norm.bias'}

    other = backbone(SMALL[backbone], img_size=128).state_dict()
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in other.items()}), tmp_path / 'other.pth')
    message = rf'the checkpoint .*other\.pth does not fit {backbone.__name__}.*other shape: '
    with pytest.raises(ValueError, match=message):
        build(kind, backbone, tmp_path / 'other.pth').init_weights()


# Scopes

PARTS: list[tuple[dict[str, Any], type[nn.Module]]] = [
    (dict(type='mm_ummae.UMSwin', arch=SMALL[UMSwin]), UMSwin),
    (dict(type='mm_ummae.UMPVT', arch=SMALL[UMPVT]), UMPVT),
    (dict(type='mm_ummae.UMViT', arch=VIT), UMViT),
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


@pytest.mark.integration
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
