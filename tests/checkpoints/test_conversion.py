"""Conversion between published names and ours: exact round trips, and errors that name what is wrong.

The golden tests of the models hold the outputs of converted weights against those of the published code. A published
file that converted once must always give the same outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mm_ummae.checkpoints import convert_checkpoint, names, read_checkpoint, to_ours, to_published
from mm_ummae.checkpoints.names import TABLES, recognise
from mm_ummae.models import LoMaR, LoMaRDecoder, LoMaRHead, LoMaRViT, StageProjection, UMSwin
from tests.builders import made_ummae
from tests.golden import TINY, GoldenCase, made_images, published, same

ROOT = Path(__file__).parents[2]
State = dict[str, Tensor]
VIT = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=384)
PVT = dict(embed_dims=(32, 64, 80, 128), depths=(1, 1, 2, 1), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
RPE = 'blocks.1.attn.rpe_k.lookup_table_weight'


def without(state: State, *prefixes: str) -> State:
    left = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    assert len(left) < len(state)
    return left


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, name: change(state[name])}


def classifier(backbone: str, arch: dict, channels: int, size: int) -> nn.Module:
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type=f'mm_ummae.{backbone}', arch=arch, img_size=size, final_norm=False),
            neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=channels),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=channels),
        )
    )


def segmentor(widths: list[int], channels: int, **kwargs: Any) -> nn.ModuleDict:
    """Backbone and projections alone."""
    backbone = UMSwin(out_indices=(0, 1, 2, 3), final_norm=False, **kwargs)
    return nn.ModuleDict(dict(backbone=backbone, neck=StageProjection(widths, channels, with_norm=False)))


def lomar(patch_size: int, img_size: int | tuple[int, int] = 160, arch: dict = VIT) -> LoMaR:
    backbone = LoMaRViT(arch, img_size, patch_size, mask_token=True)
    return LoMaR(backbone, LoMaRHead(backbone.embed_dims, patch_size=patch_size), num_windows=2)


# Round trips


@pytest.mark.parametrize(
    ('name', 'kind', 'backbone', 'depths'),
    [
        ('ummae_swin', 'um-mae', 'swin', (2, 2, 2, 2)),
        ('ummae_swin_nosm', 'um-mae', 'swin', (2, 2, 2, 2)),
        ('ummae_pvt', 'um-mae', 'pvt', (1, 1, 2, 1)),
        ('ummae_vit', 'um-mae', 'vit', (2,)),
        ('simmim_swin', 'simmim', 'swin', (2, 2, 2, 2)),
        ('simmim_pvt', 'simmim', 'pvt', (1, 1, 2, 1)),
        ('cls_swin', 'classifier', 'swin', (2, 2, 2, 2)),
        ('cls_pvt', 'classifier', 'pvt', (1, 1, 2, 1)),
        ('det_swin', 'detector', 'swin', (2, 2, 2, 2)),
        ('det_pvt', 'detector', 'pvt', (1, 1, 2, 1)),
        ('lomar_vit', 'lomar', 'lomar', (2,)),
    ],
)
def test_round_trip_of_published(name: str, kind: str, backbone: str, depths: tuple[int, ...]) -> None:
    """Models are recognised in both namings; every tensor is restored exactly, and none is used twice."""
    state, img_size = published(name), 160 if name == 'lomar_vit' else 128
    ours = to_ours(state)
    for naming, parameters in (('published', state), ('ours', ours)):
        assert recognise(parameters)[:4] == (naming, kind, backbone, depths)
    trained = {key: value for key, value in state.items() if key != TABLES.get(kind)}
    assert len(ours) == len(trained) == len(state) - (kind in TABLES)
    assert sum(value.numel() for value in ours.values()) == sum(value.numel() for value in trained.values())
    assert same(to_published(ours, img_size), state)
    if backbone in ('pvt', 'vit') or kind not in TABLES:  # position embeddings give the image size
        assert same(to_published(ours), state)


def test_values_are_not_touched() -> None:
    """Other types, infinities and NaN are kept: conversion renames, it does not compute."""
    state = {name: value.half() for name, value in published('cls_swin').items()}
    state['head.bias'][0], state['head.bias'][1] = float('inf'), float('nan')
    ours = to_ours(state)
    assert {value.dtype for value in ours.values()} == {torch.float16}
    assert ours['head.fc.bias'].isinf()[0] and ours['head.fc.bias'].isnan()[1]


SWIN = dict(embed_dims=24, depths=(1, 3, 2, 4), num_heads=(1, 2, 3, 6), position_dims=5)
WIDE_PVT = dict(embed_dims=(16, 24, 40, 40), depths=(2, 1, 1, 3), num_heads=(1, 2, 2, 5), mlp_ratios=(4, 3, 2, 1))
SMALL_VIT = dict(embed_dims=48, num_layers=3, num_heads=6, feedforward_channels=96)
FLAT = dict(depths=[2], embed_dims=[96], mlp_ratios=[4], img_size=96)
LOMAR = dict(depths=[3], embed_dims=[48], mlp_ratios=[2], num_heads=[6])
PYRAMID = dict(depths=[1, 3, 2, 4], embed_dims=[24, 48, 96, 192], mlp_ratios=[4] * 4, num_heads=[1, 2, 3, 6])


@pytest.mark.parametrize(
    ('model', 'img_size', 'arch'),
    [
        (
            lambda: made_ummae('swin', backbone=dict(arch=SWIN), neck=dict(in_channels=192, depth=3)),
            (96, 64),
            PYRAMID | dict(position_dims=5, img_size=(96, 64), decoder_embed_dims=32, decoder_depth=3),
        ),
        (
            lambda: made_ummae('vit', backbone=dict(arch=VIT, img_size=96), neck=dict(in_channels=96, img_size=96)),
            None,
            FLAT | dict(decoder_embed_dims=32, decoder_depth=1),
        ),
        (
            lambda: classifier('UMPVT', WIDE_PVT, 40, 64),
            None,
            dict(
                depths=[2, 1, 1, 3], embed_dims=[16, 24, 40, 40], mlp_ratios=[4, 3, 2, 1], img_size=64, num_classes=10
            ),
        ),
        (lambda: classifier('UMViT', VIT, 96, 96), None, FLAT | dict(num_classes=10)),
        (lambda: lomar(8, 224, SMALL_VIT), 224, LOMAR | dict(patch_size=8, img_size=224)),
        (lambda: lomar(16, (160, 128), SMALL_VIT), (160, 128), LOMAR | dict(patch_size=16, img_size=(160, 128))),
        (lambda: segmentor([24, 48, 96, 192], 5, arch=SWIN), None, PYRAMID | dict(position_dims=5, out_channels=5)),
    ],
    ids=['um-mae-swin', 'um-mae-vit', 'pvt', 'vit', 'lomar-8px', 'lomar-wide', 'segmentor'],
)
def test_other_sizes(
    model: Callable[[], nn.Module], img_size: int | tuple[int, int] | None, arch: dict, tmp_path: Path
) -> None:
    """Sizes are read from names and shapes, whatever they are, and are stated in the meta of both files."""
    state = model().state_dict()
    torch.save(state, tmp_path / 'ours.pth')
    theirs = convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'theirs.pth', img_size=img_size)
    back = convert_checkpoint(theirs, tmp_path / 'back.pth')
    assert same(read_checkpoint(theirs)['model'], to_published(state, img_size))
    assert same(read_checkpoint(back)['state_dict'], state)
    assert [read_checkpoint(path)['meta']['arch'] for path in (theirs, back)] == [arch, arch]


def test_published_blocks_are_counted_through_the_stages() -> None:
    theirs = to_published(classifier('UMSwin', SWIN, 192, 64).state_dict())
    assert theirs['blocks.4.downsample.norm.weight'].shape == (48,) and 'blocks.9.norm1.weight' in theirs
    assert {name.split('.')[1] for name in theirs if 'downsample' in name} == {'1', '4', '6'}
    assert theirs['blocks.0.attn.posmlp.0.weight'].shape == (5, 2, 1, 1)


# A wrong table


@torch.no_grad()
def deviation(name: str) -> float:
    """Largest difference of the converted model's outputs from the published ones, relative to the largest."""
    case = GoldenCase(name)
    model = classifier(*(('UMSwin', TINY, 256) if name == 'cls_swin' else ('UMPVT', PVT, 128)), 128)
    case.load_into(model.eval(), dict(backbone='backbone.', neck='neck.', head='head.'))
    found, expected = model(made_images(3, 2, 128, 128)), case.arrays['logits']
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ('name', 'first', 'second'),
    [
        ('cls_swin', 'norm1.*', 'norm2.*'),
        ('cls_pvt', 'attn.q.*', 'attn.proj.*'),
        ('cls_pvt', 'norm1.*', 'attn.norm.*'),
    ],
)
def test_a_wrong_table_changes_the_outputs(name: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict loading accepts two exchanged modules of equal shape; the outputs show them."""
    assert deviation(name) < 1e-5
    other = {first: second, second: first}
    monkeypatch.setattr(names, 'BLOCK', [(other.get(row[0], row[0]), *row[1:]) for row in names.BLOCK])
    assert deviation(name) > 1e-4


# Detectors and segmentors

# Names of these parts in MMDetection 2 and MMSegmentation 0, with which the published models were trained
HOST_NAMES = {
    'gfl': 'neck.lateral_convs.2.bn.running_mean neck.fpn_convs.4.conv.weight bbox_head.cls_convs.0.gn.weight '
    'bbox_head.gfl_cls.bias bbox_head.gfl_reg.weight bbox_head.scales.4.scale bbox_head.integral.project '
    'backbone.up1.0.weight backbone.up4.1.bias backbone.blocks.1.norm1.weight',
    'mask-rcnn': 'neck.lateral_convs.3.conv.weight rpn_head.rpn_conv.weight rpn_head.rpn_cls.bias '
    'roi_head.bbox_head.shared_fcs.1.weight roi_head.bbox_head.fc_cls.weight roi_head.mask_head.convs.3.conv.weight '
    'roi_head.mask_head.upsample.weight roi_head.mask_head.conv_logits.bias backbone.up4.1.bias',
    'upernet': 'decode_head.psp_modules.3.1.conv.weight decode_head.lateral_convs.0.bn.running_var '
    'decode_head.conv_seg.bias auxiliary_head.convs.0.bn.num_batches_tracked backbone.fpn1.weight',
}


@pytest.mark.parametrize(('kind', 'backbone'), [('gfl', 'swin'), ('mask-rcnn', 'pvt'), ('upernet', 'pvt')])
def test_round_trip_of_host_models(kind: str, backbone: str) -> None:
    """Detectors and segmentors of the hosts, counters and running statistics included."""
    cfg = Config.fromfile(ROOT / f'configs/_base_/models/{kind}_um-{backbone}.py').model
    for head in {'bbox_head', 'decode_head', 'auxiliary_head'} & cfg.keys():
        cfg[head]['num_classes'] = 3
    with DefaultScope.overwrite_default_scope('mmseg' if kind == 'upernet' else 'mmdet'):
        state = MODELS.build(cfg).state_dict()
    for value in state.values():  # no initial values
        value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.full_like(value, 7))
    theirs = to_published(state)
    expected = 'segmentor' if kind == 'upernet' else 'detector'
    assert recognise(theirs)[:3] == ('published', expected, backbone)
    assert set(HOST_NAMES[kind].split()) <= theirs.keys()
    assert same(to_ours(theirs), state)


def test_published_projections_of_segmentors() -> None:
    """There is no golden segmentor: the published 1x1 convolution is computed here, on golden maps."""
    state, widths = without(published('det_swin'), 'up'), [32, 64, 128, 256]
    torch.manual_seed(0)
    for i, channels in enumerate(widths, 1):
        state[f'fpn{i}.weight'], state[f'fpn{i}.bias'] = torch.randn(48, channels, 1, 1), torch.randn(48)
    model = segmentor(widths, 48, arch=TINY, img_size=256, window_size=8).eval()
    ours = to_ours(state)
    model.load_state_dict(ours)
    with torch.no_grad():
        maps = model['backbone'](made_images(5, 1, 160, 224))
        for i, (out, x) in enumerate(zip(model['neck'](maps), maps, strict=True), 1):
            torch.testing.assert_close(out, nn.functional.conv2d(x, state[f'fpn{i}.weight'], state[f'fpn{i}.bias']))
    assert recognise(state).kind == 'segmentor' and same(to_published(ours), state)


# Errors

ERRORS: dict[str, tuple[str, Callable[[State], State], str]] = {
    'missing': (
        'cls_swin',
        lambda state: without(state, 'blocks.3.attn.proj.bias'),
        r'^This is classifier with a swin backbone in published naming\. missing: blocks\.3\.attn\.proj\.bias$',
    ),
    'head': ('cls_pvt', lambda state: without(state, 'head.bias'), r'missing: head\.bias$'),
    'token': ('simmim_pvt', lambda state: without(state, 'mask_token'), r'missing: mask_token$'),
    'positions': ('ummae_pvt', lambda state: without(state, 'pos_embed'), r'missing: pos_embed$'),
    'table': ('ummae_vit', lambda state: without(state, 'decoder_pos'), r'missing: decoder_pos_embed$'),
    'projection': ('det_pvt', lambda state: without(state, 'up3.1.bias'), r'missing: up3\.1\.bias$'),
    'decoder': (
        'ummae_swin',
        lambda state: without(state, 'decoder_bl'),
        r'missing: decoder_blocks\.0\..* and 4 more$',
    ),
    'block': ('cls_swin', lambda state: without(state, 'blocks.3.'), r'missing: blocks\.3\.norm1\..* and 8 more$'),
    'lomar': ('lomar_vit', lambda state: without(state, 'pos_embed', RPE), rf'missing: {re.escape(RPE)}, pos_embed$'),
    'unknown': ('ummae_vit', lambda state: {**state, 'blocks.1.x': torch.ones(1)}, r'naming\. unknown: blocks\.1\.x$'),
    'both': (
        'cls_pvt',
        lambda state: {**without(state, 'fc_norm.bias'), 'x': torch.ones(1)},
        r'naming\. missing: fc_norm\.bias; unknown: x$',
    ),
    'both-namings': (
        'cls_swin',
        lambda state: {**to_ours(state), **state},
        r'unknown: backbone\.patch_embed\.norm\.bias, .* and 140 more$',
    ),
    'no-convolution': (
        'cls_swin',
        changed('blocks.0.attn.posmlp.2.weight', lambda x: x.flatten(1)),
        r'blocks\.0\.attn\.posmlp\.2\.weight has shape \(2, 8\), but it must be the weight of a 1x1 convolution',
    ),
    'stages': (
        'cls_swin',
        lambda state: without(state, 'blocks.4.downsample'),
        r'the stages have \[2, 4, 2\] blocks, but a pyramid has 4 stages with blocks in each',
    ),
    'huge-number': (
        'cls_swin',
        lambda state: {**state, 'blocks.999999999999.norm1.bias': torch.ones(32)},
        r'there is a block 999999999999 .* but there are 149 parameters in all',
    ),
    'other-table': (
        'ummae_swin',
        changed('decoder_pos_embed', lambda x: x + 1e-4),
        r'decoder_pos_embed differs by 1\.0e-04 from the fixed sine-cosine table, .* at most 1e-05$',
    ),
    'lomar-table': ('lomar_vit', changed('pos_embed', lambda x: x + 1e-4), r'pos_embed differs by 1\.0e-04 from'),
    'table-nan': ('ummae_swin', changed('decoder_pos_embed', lambda x: x * float('nan')), r'embed differs by nan'),
    'table-not-square': (
        'ummae_swin',
        changed('decoder_pos_embed', lambda x: x[:, :60]),
        r'there are positions of 60 units of 16 px, but an image of 112x112 px has 49 \(img_size is None; None takes',
    ),
    'table-length': (
        'ummae_vit',
        changed('decoder_pos_embed', lambda x: x[:, :50]),
        r'decoder_pos_embed has shape \(1, 50, 64\), but that of these images has \(1, 65, 64\)',
    ),
    'table-rank': (
        'ummae_swin',
        changed('decoder_pos_embed', lambda x: x[0]),
        r'shape \(64, 64\), but .*\(1, 64, 64\)',
    ),
    'table-axis': ('ummae_swin', changed('decoder_pos_embed', lambda x: x[0, 0]), r'\(64,\), which has no axis 1$'),
    'backbone-with-a-hole': (
        'cls_swin',
        lambda state: without(state, 'fc_norm', 'head', 'blocks.3.attn.qkv'),
        r'This is encoder with a swin backbone in published naming\. missing: blocks\.3\.attn\.qkv\.weight, ',
    ),
    'no-such-kind': (
        'ummae_vit',
        lambda state: without(state, 'decoder_e', 'decoder_b', 'decoder_n'),
        r'the names are those of kind simmim with backbone vit, but .* simmim \(swin, pvt\)',
    ),
    'other-network': (
        'cls_swin',
        lambda state: nn.Linear(2, 2).state_dict(),
        r'neither patch_embed\.proj \(published naming\) nor backbone\.patch_embed\.projection .* are bias, weight$',
    ),
}


@pytest.mark.parametrize('case', ERRORS)
def test_errors_of_published_checkpoints(case: str) -> None:
    name, damage, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        to_ours(damage(published(name)))


@pytest.mark.parametrize(
    ('name', 'damage', 'message'),
    [
        ('cls_swin', lambda state: without(state, 'neck.norm.bias'), r'in our naming\. missing: neck\.norm\.bias$'),
        ('cls_pvt', lambda state: {**state, 'backbone.norm.bias': torch.ones(128)}, r'unknown: backbone\.norm\.bias$'),
        ('det_swin', lambda state: without(state, 'backbone.stages.1.'), r'missing: backbone\.stages\.1\.downsample\.'),
        (
            'det_swin',
            lambda state: {name.replace('k.0.', 'k.'): x for name, x in state.items()},
            r'unknown: neck\.norms',
        ),
        ('cls_swin', lambda state: {name[9:]: x for name, x in state.items()}, r'there is neither patch_embed\.proj'),
        (
            'lomar_vit',
            lambda state: without(state, 'head.pred.bias'),
            r'lomar .* our naming\. missing: head\.pred\.bias$',
        ),
        (
            'cls_pvt',
            changed('backbone.stages.0.blocks.0.attn.reduction.weight', lambda x: x[..., None]),
            r'reduction\.weight has shape \(32, 32, 1\), but it must be the weight of a linear layer, \(out, in\)$',
        ),
    ],
)
def test_errors_of_our_checkpoints(name: str, damage: Callable[[State], State], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_published(damage(to_ours(published(name))), img_size=128)


@pytest.mark.parametrize(
    ('name', 'img_size', 'message'),
    [
        ('ummae_swin', None, r'img_size is not given, but the published decoder_pos_embed depends on the image size'),
        ('lomar_vit', None, r'img_size is not given, but the published pos_embed depends on the image size'),
        ('lomar_vit', 120, r'img_size is 120, but sides must be positive multiples of 16'),
        ('ummae_swin', (128, 0), r'img_size is \(128, 0\), but sides must be positive multiples of 16'),
        ('ummae_pvt', 160, r'positions of 64 units of 16 px, but an image of 160x160 px has 100 \(img_size is 160; '),
        (
            'ummae_vit',
            (64, 128),
            r'positions of 64 units of 16 px, but an image of 64x128 px has 32 \(img_size is \(64',
        ),
    ],
)
def test_illegal_image_sizes(name: str, img_size: int | tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_published(to_ours(published(name)), img_size)


def test_image_sizes_that_do_not_fit_the_table() -> None:
    with pytest.raises(ValueError, match=r'positions of 100 units of 16 px, but an image of 224x224 px has 196 '):
        to_ours(published('lomar_vit'), 224)
    with pytest.raises(ValueError, match='img_size is 164, but sides must be positive multiples of 8'):
        to_published(lomar(patch_size=8).state_dict(), 164)
    wide = to_published(to_ours(published('ummae_pvt')), img_size=(64, 256))  # as many units as 128x128
    assert same(to_ours(wide, (64, 256)), to_ours(published('ummae_pvt')))
    with pytest.raises(ValueError, match='decoder_pos_embed differs by'):
        to_ours(wide, (256, 64))


@pytest.mark.parametrize(('convert', 'naming'), [(to_published, 'published'), (to_ours, 'our')])
def test_wrong_direction(convert: Callable[[State], State], naming: str) -> None:
    state = published('cls_swin') if naming == 'published' else to_ours(published('cls_swin'))
    message = f'this is classifier with a swin backbone in {naming} naming, there is nothing to convert'
    with pytest.raises(ValueError, match=message):
        convert(state)


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (dict(type='mmpretrain.SwinTransformer', arch='tiny'), 'the stock Swin of mmpretrain'),
        (dict(type='mmdet.SwinTransformer', depths=(1, 1, 1, 1)), 'the stock Swin of mmpretrain'),
        (dict(type='mmdet.PyramidVisionTransformer', num_layers=[1, 1, 1, 1]), 'the stock PVT or ViT of mmdet'),
    ],
)
def test_stock_networks_are_refused_by_name(network: dict, message: str) -> None:
    state = {f'backbone.{name}': value for name, value in MODELS.build(network).state_dict().items()}
    for convert in (to_ours, to_published):
        with pytest.raises(ValueError, match=rf'these are weights of {message}.*cannot be converted'):
            convert(state)


def test_other_forms_of_lomar_are_refused() -> None:
    """Fine-tuned classifiers and models with a decoder have no published form."""
    message = r'of kind classifier with backbone lomar, but .* classifier \(swin, pvt, vit\)'
    with pytest.raises(ValueError, match=message):
        to_published(classifier('LoMaRViT', VIT, 96, 64).state_dict())
    model = lomar(patch_size=16)
    model.neck = LoMaRDecoder(96, embed_dims=16, depth=1, num_heads=2, img_size=160)
    with pytest.raises(ValueError, match=r'unknown: neck\.blocks\.0\.attn\.position_table, '):
        to_published(model.state_dict(), 160)
