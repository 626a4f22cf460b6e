"""UMBackbone: networks of the hosts as encoders of UM-MAE and SimMIM, unchanged and under their own names."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.backbones import SwinTransformer as DetectionSwin
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor

from mm_ummae.checkpoints import export_checkpoint
from mm_ummae.masking import UNIT, UniformMask, compact
from mm_ummae.models import UMMAE, UMBackbone, UMSimMIM
from mm_ummae.registry import MODELS
from tests.builders import draw, seeded
from tests.conftest import ROOT

RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=16, out_indices=(0, 1, 2, 3))
SWIN = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
# Networks at a small size, and the images of pre-training whose halves they take without padding
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "MMPretrain's Swin": (
        dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
            img_size=128,
            window_size=4,
            out_indices=(0, 1, 2, 3),
        ),
        256,
    ),
    "MMDetection's Swin": (dict(type='mmdet.SwinTransformer', **SWIN), 256),
    "MMSegmentation's Swin": (dict(type='mmseg.SwinTransformer', **SWIN), 256),
    'Swin V2': (
        dict(
            type='mmpretrain.SwinTransformerV2',
            arch=dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), extra_norm_every_n_blocks=0),
            img_size=64,
            window_size=[4, 4, 4, 2],
            out_indices=(0, 1, 2, 3),
        ),
        128,
    ),
    'PVT v2': (dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=32, num_layers=[1, 1, 1, 1]), 128),
    'Twins': (
        dict(
            type='mmpretrain.SVT',
            arch=dict(
                embed_dims=[32, 64, 96, 128],
                depths=[2, 2, 2, 2],
                num_heads=[1, 2, 3, 4],
                window_sizes=[4, 4, 4, 2],
                patch_sizes=[4, 2, 2, 2],
                strides=[4, 2, 2, 2],
                mlp_ratios=[4, 4, 4, 4],
                sr_ratios=[8, 4, 2, 1],
            ),
        ),
        128,
    ),
    'ConvNeXt': (
        dict(
            type='mmpretrain.ConvNeXt',
            arch=dict(depths=[1, 1, 1, 1], channels=[32, 64, 96, 128]),
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
        ),
        128,
    ),
    "timm's Swin": (  # whose maps are channels-last
        dict(
            type='mmpretrain.TIMMBackbone',
            model_name='swin_tiny_patch4_window7_224',
            features_only=True,
            img_size=64,
            strict_img_size=False,
            always_partition=True,
            embed_dim=32,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 4, 8),
            window_size=4,
        ),
        128,
    ),
    'ResNet': (RESNET, 128),
    'ResNet of stride 16': (dict(RESNET, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)), 128),
    'ResNet of stride 8': (dict(RESNET, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), 128),
}
ALL = pytest.mark.parametrize('name', NETWORKS)


def built(name: str, **options: Any) -> UMBackbone:
    torch.manual_seed(0)
    network, size = NETWORKS[name]
    return UMBackbone(network, img_size=size, **options)


def algorithm(kind: type, name: str, stride: int | None = None) -> UMMAE | UMSimMIM:
    network, size = NETWORKS[name]
    backbone = dict(type='mm_ummae.UMBackbone', network=network, img_size=size)
    encoder = built(name)
    first = dict(in_channels=encoder.num_features[-1], stride=stride or encoder.stride)
    if kind is UMSimMIM:
        return UMSimMIM(backbone | dict(mask_token=True), head=dict(type='mm_ummae.UMSimMIMHead', **first))
    return UMMAE(
        backbone | dict(secondary_token=True),
        neck=dict(type='mm_ummae.UMMAEDecoder', embed_dims=32, depth=1, num_heads=2, img_size=size, **first),
        head=dict(type='mm_ummae.UMMAEHead', in_channels=32),
    )


def channels_first(name: str, maps: Sequence[Tensor]) -> list[Tensor]:
    return [each.permute(0, 3, 1, 2) if name == "timm's Swin" else each for each in maps]


def filled(images: Tensor, units: Tensor, token: Tensor) -> Tensor:
    """Unit by unit."""
    images = images.clone()
    for image, row, column in units.nonzero().tolist():
        images[image, :, UNIT * row : UNIT * (row + 1), UNIT * column : UNIT * (column + 1)] = token
    return images


@ALL
@torch.no_grad()
def test_the_network_sees_the_compact_image(name: str) -> None:
    """With hidden units filled in the image; without a mask the whole image at other sizes, as the network does it."""
    model = built(name, secondary_token=True, mask_token=True).eval()
    size = model.img_size
    for token in (model.secondary_token, model.mask_token):
        token.normal_()
    images, mask = seeded(2, 3, *size), draw(2, size)
    assert mask.secondary.any()
    expected = model.network(filled(compact(images, mask.offsets), mask.secondary, model.secondary_token))
    for ours, theirs in zip(model(images, mask), channels_first(name, expected), strict=True):
        assert torch.equal(ours, theirs)
    hidden = mask.unsampled().view(2, size[0] // UNIT, size[1] // UNIT)
    expected = model.network(filled(images, hidden, model.mask_token))
    for ours, theirs in zip(model(images, replaced=hidden), channels_first(name, expected), strict=True):
        assert torch.equal(ours, theirs)
    whole = seeded(1, 3, size[0] + 64, size[1])
    assert all(map(torch.equal, model(whole), channels_first(name, model.network(whole))))
    assert [each.shape[1] for each in model(whole)] == model.num_features


@pytest.mark.parametrize('kind', [UMMAE, UMSimMIM])
@ALL
def test_pretraining_reaches_every_parameter(kind: type, name: str) -> None:
    """Of the network, the token, the decoder and the head, but for norms of stages that pre-training does not use."""
    model = algorithm(kind, name).train()
    loss = model.loss(seeded(2, 3, *model.backbone.img_size))['loss']
    loss.backward()
    unused = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())}
    assert loss.isfinite() and all('norm' in each and '.stages.' not in each for each in unused), unused
    model.eval()
    samples = model.predict(seeded(2, 3, *model.backbone.img_size))
    assert samples[0].reconstruction.shape == (3, *model.backbone.img_size)


@ALL
def test_a_checkpoint_has_the_names_of_the_network(name: str, tmp_path: Path) -> None:
    """Its own class loads it strictly, and a file of its own class starts the backbone."""
    model = algorithm(UMMAE, name)
    model.init_weights()
    state = model.state_dict()
    stock = MODELS.build(NETWORKS[name][0])
    inside = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    token = inside.pop('secondary_token')
    stock.load_state_dict(inside, strict=name != 'Swin V2')  # MMPretrain's drops tables that it computes
    assert token.shape == (3, UNIT, UNIT) and inside.keys() == stock.state_dict().keys()

    again = algorithm(UMMAE, name)
    again.load_state_dict(state, strict=name != 'Swin V2')
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    backbone = built(name, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth')))
    backbone.init_weights()
    assert all(torch.equal(value, inside[key]) for key, value in backbone.state_dict().items())


def test_a_detector_of_the_host_starts_from_the_file(tmp_path: Path) -> None:
    """MMDetection's own class, through its own ``init_cfg``."""
    model = algorithm(UMMAE, "MMDetection's Swin")
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'pretrained.pth')
    start = ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'))
    stock = DetectionSwin(**SWIN, init_cfg=start)
    stock.init_weights()
    ours = model.backbone.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in stock.state_dict().items())


def test_the_example_of_the_page(tmp_path: Path) -> None:
    """Pre-training with Swin-T, and MMDetection's unchanged Mask R-CNN that starts from the exported file."""
    text = (ROOT / 'docs' / 'user_guides' / 'stock_networks.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    cfg, stock = (Config.fromstring(block, '.py') for block in blocks)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    state = model.state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'epoch_200.pth')
    export_checkpoint(tmp_path / 'epoch_200.pth', tmp_path / 'swin.pth', 'mmdet')
    names = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    torch.save(dict(state_dict=names), tmp_path / 'own_names.pth')

    def backbone(name: str) -> torch.nn.Module:
        network = copy.deepcopy(stock.model.backbone)
        network.init_cfg.checkpoint = str(tmp_path / name)
        with DefaultScope.overwrite_default_scope('mmdet'):
            built = MODELS.build(network)
        built.init_weights()
        return built

    def missing(name: str) -> list[str]:
        return [
            key for key, value in backbone(name).state_dict().items() if not torch.equal(value, names.get(key, value))
        ]

    assert stock.model.backbone.convert_weights and stock.model.backbone.init_cfg.checkpoint == 'swin.pth'
    assert len(names.keys() & backbone('swin.pth').state_dict().keys()) > 150 and not missing('swin.pth')
    # What the page says of other names
    with pytest.raises(KeyError, match='relative_position_bias_table'):
        backbone('epoch_200.pth')
    assert missing('own_names.pth') == ['patch_embed.projection.weight', 'patch_embed.projection.bias']


def test_weights_that_the_network_has_are_kept(tmp_path: Path) -> None:
    """``init_cfg`` of the network, as in its host."""
    stock = DetectionSwin(**SWIN)
    torch.save(
        dict(state_dict={f'backbone.{key}': value for key, value in stock.state_dict().items()}), tmp_path / 'a.pth'
    )
    start = ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    backbone = UMBackbone(
        dict(type='mmdet.SwinTransformer', init_cfg=start, **SWIN), img_size=256, secondary_token=True
    )
    backbone.init_weights()
    state = backbone.state_dict()
    assert state.pop('secondary_token').any() and state.keys() == stock.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in stock.state_dict().items())


def test_layers_for_decay_are_those_of_the_network() -> None:
    backbone = built("MMPretrain's Swin", secondary_token=True)
    layers = {
        name: backbone.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in backbone.named_parameters()
    }
    own = {f'network.{name}': backbone.network.get_layer_depth(name) for name, _ in backbone.network.named_parameters()}
    number = own['network.patch_embed.projection.weight'][1]
    assert layers == own | dict(secondary_token=(0, number))
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (number - 1, number)
    with pytest.raises(ValueError, match='ResNet does not count layers'):
        built('ResNet').get_layer_depth('conv1.weight')


@pytest.mark.parametrize(
    ('network', 'size', 'text'),
    [
        (
            dict(type='mmdet.SwinTransformer', **SWIN | dict(window_size=7)),
            128,
            'padding for the most part at 64x64 px',
        ),
        (
            dict(type='mmdet.ResNet', depth=18, out_indices=(0,)),
            128,
            r'is \(1, 64, 16, 16\) for .* 64x64 px.* one of 8, 16, 32.* out_indices',
        ),
        (NETWORKS['ConvNeXt'][0], 224, r'is \(1, 128, 3, 3\).* no multiples of its stride'),
        (dict(type='mmpretrain.ConvNeXt', arch='atto'), 128, r'ConvNeXt returns \[\(1, 320\)\].*gap_before'),
        (NETWORKS['ResNet'][0], 144, 'multiples of 32'),
        (dict(depth=18), 128, 'must be a config'),
    ],
    ids=['windows', 'stride', 'rest', 'vector', 'size', 'type'],
)
def test_what_cannot_work_is_refused_at_build(network: dict, size: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        UMBackbone(network, img_size=size, secondary_token=True)


@pytest.mark.parametrize('part', ['neck', 'head'])
def test_a_part_for_another_stride_is_refused(part: str) -> None:
    kind = UMMAE if part == 'neck' else UMSimMIM
    with pytest.raises(ValueError, match=rf'{part}.stride is 32, .* has stride 16: set model.{part}.stride=16'):
        algorithm(kind, 'ResNet of stride 16', 32)


def test_other_refusals() -> None:
    with pytest.raises(ImportError, match=r"network.type is 'nowhere.Net', but nowhere cannot be imported"):
        UMBackbone(dict(type='nowhere.Net'))
    backbone = built('ResNet')
    mask = UniformMask(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match='mask is for'):
        backbone(seeded(1, 3, 128, 128), mask)
    with pytest.raises(ValueError, match='set mask_token=True'):
        backbone(seeded(1, 3, 128, 128), replaced=torch.zeros(1, 8, 8, dtype=torch.bool))
