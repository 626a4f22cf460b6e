"""Conversion between published names and ours: equal outputs, exact round trips, and errors that name what is wrong.

The published names and shapes come from the golden cases. These must never change: a released file that converted
once must go on giving the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MODEL_REGISTRY
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.checkpoints import names as checkpoint_names
from mm_ummae.checkpoints.files import read_checkpoint
from mm_ummae.checkpoints.names import TABLES, recognise
from mm_ummae.checkpoints.conversion import architecture, convert_checkpoint, to_ours, to_published
from mm_ummae.masking import UniformMask, UnitMask, raster_to_cells, take_sampled
from mm_ummae.models import UMMAE, UMPVT, LoMaR, LoMaRHead, LoMaRViT, StageProjection, UMMAEDecoder, UMMAEHead, UMSimMIM, UMSimMIMHead, UMSwin, UMViT, UMViTDecoder
from mm_ummae.masking import sincos_position
from mm_ummae.masking import WindowMask, make_window_mask

from .golden import GoldenCase, made_images

ROOT = Path(__file__).parents[1]
PUBLISHED = ('ummae_swin', 'ummae_swin_nosm', 'ummae_pvt', 'ummae_vit', 'simmim_swin', 'simmim_pvt')
PUBLISHED += ('cls_swin', 'cls_pvt', 'det_swin', 'det_pvt', 'lomar_vit')
PARTS = dict(backbone='backbone.', neck='neck.', head='head.')
State = dict[str, Tensor]


def published(name: str) -> State:
    return GoldenCase(name).published_state()


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def without(state: State, *names: str) -> State:
    assert set(names) <= set(state)
    return {name: value for name, value in state.items() if name not in names}


# Equal outputs, and what a wrong table does to them


def classifier(backbone: nn.Module, channels: int) -> ImageClassifier:
    return ImageClassifier(
        backbone=backbone,
        neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=channels),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=channels),
    )


def simmim(backbone: nn.Module, channels: int) -> UMSimMIM:
    return UMSimMIM(backbone, UMSimMIMHead(channels))


def ummae(backbone: nn.Module, decoder: nn.Module) -> UMMAE:
    return UMMAE(backbone, decoder, UMMAEHead(64))


def lomar(patch_size: int = 16, img_size: int | tuple[int, int] = 160, arch: dict | str | None = None) -> LoMaR:
    backbone = LoMaRViT(arch or VIT, img_size, patch_size, mask_token=True)
    return LoMaR(backbone, LoMaRHead(backbone.embed_dims, patch_size=patch_size), num_windows=2)


def projected(backbone: nn.Module, channels: list[int]) -> nn.ModuleDict:
    return nn.ModuleDict(dict(backbone=backbone, neck=StageProjection(channels, 48)))


VIT = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=384)
DENSE = dict(out_indices=(0, 1, 2, 3), final_norm=False)
DECODER = dict(embed_dims=64, depth=1, num_heads=4, img_size=128)
MODELS: dict[str, Callable[[], nn.Module]] = {
    'ummae_swin': lambda: ummae(
        UMSwin('test', 128, secondary_token=True), UMMAEDecoder(256, published_positions=True, **DECODER)
    ),
    'ummae_pvt': lambda: ummae(
        UMPVT('test', 128, secondary_token=True), UMMAEDecoder(128, published_positions=True, **DECODER)
    ),
    'ummae_vit': lambda: ummae(UMViT(VIT, 128, secondary_token=True), UMViTDecoder(96, **DECODER)),
    'simmim_swin': lambda: simmim(UMSwin('test', 128, mask_token=True), 256),
    'simmim_pvt': lambda: simmim(UMPVT('test', 128, mask_token=True), 128),
    'cls_swin': lambda: classifier(UMSwin('test', 128, final_norm=False), 256),
    'cls_pvt': lambda: classifier(UMPVT('test', 128, final_norm=False), 128),
    'det_swin': lambda: projected(UMSwin('test', 256, window_size=8, **DENSE), [32, 64, 128, 256]),
    'det_pvt': lambda: projected(UMPVT('test', 128, **DENSE), [32, 64, 80, 128]),
    'lomar_vit': lambda: lomar(),
}


def golden_mask(case: GoldenCase) -> UniformMask | UnitMask | WindowMask:
    if 'noise' in case.arrays:
        corners = torch.stack((case.arrays['top'], case.arrays['left']), 1)
        return make_window_mask(corners, case.arrays['noise'], (10, 10), 0.8, 'published')
    if 'offsets' in case.arrays:
        secondary = raster_to_cells(case.arrays['secondary'].view(2, 8, 8))
        return UniformMask(case.arrays['offsets'], take_sampled(secondary, case.arrays['offsets']))
    order = case.arrays['mask'].byte().argsort(dim=1, stable=True)
    return UnitMask(order[:, :16], order[:, 16:], torch.zeros(2, 16, dtype=torch.bool), (8, 8))


@torch.no_grad()
def deviation(name: str) -> float:
    """How far outputs of the converted model are from the published ones, relative to the largest."""
    case, model = GoldenCase(name), MODELS[name]().eval()
    case.load_into(model, PARTS)
    if name.startswith('cls'):
        pairs = [(model(made_images(3, 2, 128, 128)), case.arrays['logits'])]
    elif name.startswith('det'):
        maps = model['neck'](model['backbone'](made_images(5, 2, 160, 224)))
        pairs = [(out, case.arrays[f'out{i}']) for i, out in enumerate(maps)]
    else:
        images = made_images(21, 2, 160, 160) if name == 'lomar_vit' else made_images(0, 2, 128, 128)
        loss = model(images, mode='loss', mask=golden_mask(case))['loss']
        pairs = [(loss, torch.tensor(case.meta['loss']))]
    return max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)


@pytest.mark.parametrize('name', MODELS)
def test_converted_models_give_the_published_outputs(name: str) -> None:
    assert deviation(name) < 1e-5


def swapped(table: tuple, first: str, second: str) -> tuple:
    """The table with our names of two published modules exchanged."""
    ours = {theirs: name for theirs, name, _ in table}
    ours[first], ours[second] = ours[second], ours[first]
    return tuple((theirs, ours[theirs], sizes) for theirs, _, sizes in table)


@pytest.mark.parametrize(
    ('name', 'backbone', 'first', 'second'),
    [
        ('cls_swin', 'swin', 'norm1', 'norm2'),
        ('det_swin', 'swin', 'norm1', 'norm2'),
        ('ummae_swin', 'swin', 'norm1', 'norm2'),
        ('ummae_swin', 'vit', 'norm1', 'norm2'),  # the decoder's blocks
        ('simmim_swin', 'swin', 'norm1', 'norm2'),
        ('cls_pvt', 'pvt', 'attn.q', 'attn.proj'),
        ('cls_pvt', 'pvt', 'attn.q', 'attn.sr'),
        ('det_pvt', 'pvt', 'norm1', 'attn.norm'),
        ('ummae_pvt', 'pvt', 'attn.proj', 'attn.sr'),
        ('simmim_pvt', 'pvt', 'norm1', 'norm2'),
        ('ummae_vit', 'vit', 'norm1', 'norm2'),
        ('lomar_vit', 'lomar', 'norm1', 'norm2'),
    ],
)
def test_a_wrong_table_fails_the_same_check(
    name: str, backbone: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two modules of equal shape exchanged: every strict loader takes it, the outputs tell."""
    monkeypatch.setitem(checkpoint_names.BLOCKS, backbone, swapped(checkpoint_names.BLOCKS[backbone], first, second))
    assert deviation(name) > 1e-4


# Exact round trips


@pytest.mark.parametrize('name', PUBLISHED)
def test_round_trip_of_published(name: str) -> None:
    """Every tensor comes back bit for bit, the fixed table too, and none is used twice on the way."""
    state = published(name)
    ours, table = to_ours(state), TABLES.get(recognise(state).kind)
    trained = {key: value for key, value in state.items() if key != table}
    assert len(ours) == len(trained) == len(state) - (table is not None)
    assert sum(value.numel() for value in ours.values()) == sum(value.numel() for value in trained.values())
    back = to_published(ours, img_size=160 if name == 'lomar_vit' else 128)
    assert same(back, state)
    assert same(to_ours(back), ours)


def test_values_are_not_touched() -> None:
    """Other types, infinities and NaN come through: conversion renames, it does not compute."""
    state = {name: value.half() for name, value in published('cls_swin').items()}
    state['head.bias'][0], state['head.bias'][1] = float('inf'), float('nan')
    ours = to_ours(state)
    assert {value.dtype for value in ours.values()} == {torch.float16}
    assert ours['head.fc.bias'].isinf()[0] and ours['head.fc.bias'].isnan()[1]


SIZES = {
    'swin': ('mm_ummae.UMSwin', [32, 64, 128, 256]),
    'pvt': ('mm_ummae.UMPVT', [32, 64, 80, 128]),
}
GFL_HEAD = dict(
    type='GFLHead',
    num_classes=3,
    in_channels=8,
    stacked_convs=1,
    feat_channels=8,
    norm_cfg=dict(type='GN', num_groups=2),
    anchor_generator=dict(
        type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
    ),
    loss_cls=dict(type='QualityFocalLoss'),
    loss_dfl=dict(type='DistributionFocalLoss'),
    reg_max=4,
    loss_bbox=dict(type='GIoULoss'),
)
FPN = dict(
    type='FPN',
    in_channels=[16] * 4,
    start_level=1,
    add_extra_convs='on_output',
    num_outs=5,
    norm_cfg=dict(type='BN'),
)


def host_model(kind: str, backbone: str) -> nn.Module:
    """A model as a host's runner builds it, none of its values at their start."""
    name, channels = SIZES[backbone]
    trunk = dict(type=name, arch='test', img_size=128, out_indices=(0, 1, 2, 3), final_norm=False)
    projection = dict(type='mm_ummae.StageProjection', in_channels=channels, out_channels=16)
    if kind == 'gfl':
        cfg = dict(type='GFL', backbone=trunk, neck=[projection, dict(FPN, out_channels=8)], bbox_head=GFL_HEAD)
    elif kind == 'mask-rcnn':
        cfg = Config.fromfile(ROOT / 'configs/_base_/models/mask-rcnn_um-swin.py').model
        cfg.neck[0], cfg.neck[1].in_channels = projection, [16] * 4
    else:
        cfg = Config.fromfile(ROOT / 'configs/_base_/models/upernet_um-swin.py').model
        cfg.neck = dict(projection, with_norm=False)
        for head in (cfg.decode_head, cfg.auxiliary_head):
            head.update(channels=8, norm_cfg=dict(type='BN'), num_classes=3)
        cfg.decode_head.in_channels, cfg.auxiliary_head.in_channels = [16] * 4, 16
    cfg['backbone'] = trunk
    torch.manual_seed(3)
    with DefaultScope.overwrite_default_scope('mmseg' if kind == 'upernet' else 'mmdet'):
        model = MODEL_REGISTRY.build(cfg)
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.full_like(value, 7))
    return model


# What MMDetection 2.x, with which the released detectors were made, calls these parts
MMDET_2 = {
    'gfl': {
        'neck.lateral_convs.2.bn.running_mean',
        'neck.fpn_convs.4.conv.weight',
        'bbox_head.cls_convs.0.gn.weight',
        'bbox_head.reg_convs.0.conv.weight',
        'bbox_head.gfl_cls.bias',
        'bbox_head.gfl_reg.weight',
        'bbox_head.scales.4.scale',
        'bbox_head.integral.project',
    },
    'mask-rcnn': {
        'neck.lateral_convs.3.conv.weight',
        'rpn_head.rpn_conv.weight',
        'rpn_head.rpn_cls.bias',
        'rpn_head.rpn_reg.weight',
        'roi_head.bbox_head.shared_fcs.1.weight',
        'roi_head.bbox_head.fc_cls.weight',
        'roi_head.bbox_head.fc_reg.bias',
        'roi_head.mask_head.convs.3.conv.weight',
        'roi_head.mask_head.upsample.weight',
        'roi_head.mask_head.conv_logits.bias',
    },
    'upernet': {
        'decode_head.psp_modules.3.1.conv.weight',
        'decode_head.lateral_convs.0.bn.running_var',
        'decode_head.fpn_bottleneck.conv.weight',
        'decode_head.conv_seg.bias',
        'auxiliary_head.convs.0.bn.num_batches_tracked',
        'auxiliary_head.conv_seg.weight',
    },
}


@pytest.mark.parametrize('backbone', ['swin', 'pvt'])
@pytest.mark.parametrize('kind', ['gfl', 'mask-rcnn', 'upernet'])
def test_round_trip_of_host_models(kind: str, backbone: str) -> None:
    """Detectors and segmentors as the hosts build them, counters and running statistics included."""
    state = host_model(kind, backbone).state_dict()
    theirs = to_published(state)
    layout = recognise(theirs)
    expected = 'segmentor' if kind == 'upernet' else 'detector'
    assert (layout.kind, layout.backbone, layout.naming) == (expected, backbone, 'published')
    assert MMDET_2[kind] <= theirs.keys()
    projections = {f'backbone.fpn{i}.weight' for i in range(1, 5)}
    if expected == 'detector':
        projections = {f'backbone.up{i}.{j}.weight' for i in range(1, 5) for j in (0, 1)}
    assert projections <= theirs.keys() and 'backbone.blocks.1.norm1.weight' in theirs
    back = to_ours(theirs)
    assert same(back, state)
    assert same(to_published(back), theirs)


def test_published_projections_of_segmentors() -> None:
    """There is no golden segmentor: the published 1x1 convolution is computed here, on golden maps."""
    state = {name: value for name, value in published('det_swin').items() if not name.startswith('up')}
    torch.manual_seed(0)
    for i, channels in enumerate([32, 64, 128, 256]):
        state[f'fpn{i + 1}.weight'], state[f'fpn{i + 1}.bias'] = torch.randn(48, channels, 1, 1), torch.randn(48)
    assert recognise(state).kind == 'segmentor'
    backbone = UMSwin('test', 256, window_size=8, **DENSE)
    model = nn.ModuleDict(dict(backbone=backbone, neck=StageProjection([32, 64, 128, 256], 48, with_norm=False))).eval()
    ours = to_ours(state)
    model.load_state_dict(ours)
    with torch.no_grad():
        maps = model['backbone'](made_images(5, 1, 160, 224))
        for i, (out, x) in enumerate(zip(model['neck'](maps), maps, strict=True), 1):
            torch.testing.assert_close(out, nn.functional.conv2d(x, state[f'fpn{i}.weight'], state[f'fpn{i}.bias']))
    assert same(to_published(ours), state)


def test_vit_fits_the_stock_network() -> None:
    """MMPretrain's ViT takes a converted encoder as it is and computes the same."""
    state = {name[9:]: value for name, value in to_ours(published('ummae_vit')).items() if name.startswith('backbone.')}
    ours, stock = UMViT(VIT, 128, secondary_token=True), VisionTransformer(VIT, 128, out_type='featmap')
    ours.load_state_dict(state)
    stock.load_state_dict(without(state, 'secondary_token'))
    images = made_images(3, 2, 128, 128)
    for model in (ours, stock):
        model.eval()
    with torch.no_grad():
        assert torch.equal(stock(images)[0], ours(images)[0])


def test_other_sizes() -> None:
    """Depths, widths, heads and the decoder are read from the names and shapes, whatever they are."""
    arch = dict(embed_dims=24, depths=(1, 3, 2, 4), num_heads=(1, 2, 3, 6), position_dims=5)
    swin = ummae(UMSwin(arch, 64, secondary_token=True), UMMAEDecoder(192, 64, depth=3, num_heads=2, img_size=96))
    theirs = to_published(swin.state_dict(), img_size=(96, 64))
    assert theirs['decoder_pos_embed'].shape == (1, 24, 64)
    assert same(to_ours(theirs, img_size=(96, 64)), swin.state_dict())
    with pytest.raises(ValueError, match=r'decoder_pos_embed differs by'):
        to_ours(theirs, img_size=(64, 96))
    assert theirs['blocks.4.downsample.norm.weight'].shape == (48,) and 'blocks.9.norm1.weight' in theirs
    found = architecture(swin.state_dict(), recognise(swin.state_dict()))
    assert {key: tuple(found[key]) for key in ('depths', 'num_heads')} == {
        key: arch[key] for key in ('depths', 'num_heads')
    }
    assert found['embed_dims'] == [24, 48, 96, 192] and found['position_dims'] == 5
    assert (found['decoder_embed_dims'], found['decoder_depth']) == (64, 3)

    arch = dict(embed_dims=(16, 24, 40, 40), depths=(2, 1, 1, 3), num_heads=(1, 2, 2, 5), mlp_ratios=(4, 3, 2, 1))
    pvt = classifier(UMPVT(arch, 64, final_norm=False), 40)
    theirs = to_published(pvt.state_dict())
    assert same(to_ours(theirs), pvt.state_dict())
    found = architecture(theirs, recognise(theirs))
    assert found['embed_dims'] == [16, 24, 40, 40] and found['mlp_ratios'] == [4, 3, 2, 1] and found['img_size'] == 64

    vit = classifier(UMViT(VIT, 96, final_norm=False), 96)
    theirs = to_published(vit.state_dict())
    assert {'cls_token', 'pos_embed', 'blocks.1.mlp.fc2.bias', 'fc_norm.weight', 'head.weight'} <= theirs.keys()
    assert same(to_ours(theirs), vit.state_dict())


@pytest.mark.parametrize('name', PUBLISHED)
def test_what_is_recognised(name: str) -> None:
    kinds = dict(ummae='um-mae', simmim='simmim', cls='classifier', det='detector', lomar='lomar')
    kind, backbone = ('lomar', 'lomar') if name == 'lomar_vit' else name.split('_')[:2]
    for naming, state in (('published', published(name)), ('ours', to_ours(published(name)))):
        layout = recognise(state)
        assert (layout.naming, layout.kind, layout.backbone) == (naming, kinds[kind], backbone)
        assert layout.depths == dict(swin=(2, 2, 2, 2), pvt=(1, 1, 2, 1), vit=(2,), lomar=(2,))[backbone]
        assert layout.secondary == (kind == 'ummae' and not name.endswith('nosm'))


# LoMaR


@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('img_size', [224, (160, 128)], ids=str)
def test_lomar_of_other_sizes(img_size: int | tuple[int, int], patch_size: int) -> None:
    """Patch, depth, width and heads are read from names and shapes; the fixed table is made for the image."""
    arch = dict(embed_dims=48, num_layers=3, num_heads=6, feedforward_channels=96)
    state = lomar(patch_size, img_size, arch).state_dict()
    theirs = to_published(state, img_size)
    rows, columns = (side // patch_size for side in (img_size if isinstance(img_size, tuple) else (224, 224)))
    table = sincos_position(rows, columns, 48).flatten(0, 1)
    assert torch.equal(theirs['pos_embed'], nn.functional.pad(table, (0, 0, 1, 0))[None])
    assert theirs['blocks.2.attn.rpe_k.lookup_table_weight'].shape == (1, 8, 50)
    assert theirs['encoder_pred.weight'].shape == (3 * patch_size**2, 48)
    assert same(to_ours(theirs, img_size), state)
    expected = dict(depths=[3], embed_dims=[48], num_heads=[6], mlp_ratios=[2], patch_size=patch_size)
    for naming in (state, theirs):
        found = architecture(naming, recognise(naming))
        assert {key: found[key] for key in expected} == expected
    assert found['img_size'] == (224 if img_size == 224 else None)


def released_lomar(path: Path) -> State:
    """Our names of what is written: a file as an MAE-style script leaves it."""
    state = published('lomar_vit')
    torch.save(dict(model=state, epoch=1599), path)
    return {name.removeprefix('backbone.'): value for name, value in to_ours(state).items() if 'head.' not in name}


def test_lomar_file_to_file(tmp_path: Path) -> None:
    """Bit for bit, and what the file alone tells later: patch, heads and image size."""
    released_lomar(tmp_path / 'released.pth')
    ours = convert_checkpoint(tmp_path / 'released.pth', tmp_path / 'ours.pth')
    back = convert_checkpoint(ours, tmp_path / 'back.pth')
    assert same(read_checkpoint(back)['model'], published('lomar_vit'))
    for path in (ours, back):
        meta = read_checkpoint(path)['meta']
        assert (meta['kind'], meta['backbone']) == ('lomar', 'lomar')
        assert meta['licence'] == 'CC BY-NC 4.0 for the released weights'
        assert meta['arch'] == dict(
            depths=[2], embed_dims=[96], mlp_ratios=[4], num_heads=[4], patch_size=16, img_size=160
        )


@pytest.mark.parametrize('img_size', [96, (160, 384), 384], ids=str)
@torch.no_grad()
def test_a_released_lomar_starts_fine_tuning(img_size: int | tuple[int, int], tmp_path: Path) -> None:
    """Of any size, inside a classifier: every value as it is, the mask token and the fixed table are left."""
    expected = released_lomar(tmp_path / 'released.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'released.pth'))
    model = classifier(LoMaRViT(VIT, img_size, final_norm=False, init_cfg=init_cfg), 96)
    model.init_weights()
    state = model.backbone.state_dict()
    assert same(state, without(expected, 'mask_token', 'ln1.weight', 'ln1.bias'))
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    assert model.backbone(torch.zeros(1, 3, height, width))[0].shape == (1, 96, height // 16, width // 16)


@pytest.mark.parametrize('mask_token', [True, False])
def test_a_released_lomar_starts_pretraining(mask_token: bool, tmp_path: Path) -> None:
    expected = released_lomar(tmp_path / 'released.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'released.pth'))
    model = LoMaRViT(VIT, 224, mask_token=mask_token, init_cfg=init_cfg)
    model.init_weights()
    assert same(model.state_dict(), expected if mask_token else without(expected, 'mask_token'))
