"""Layouts of stock networks: the class of each library loads converted weights strictly and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from mmdet.models.backbones.swin import swin_converter
from mmengine.registry import MODELS
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer import checkpoint_filter_fn as filter_swin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from timm.models.swin_transformer_v2 import checkpoint_filter_fn as filter_swin_v2
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from mm_ummae.checkpoints import layouts
from mm_ummae.checkpoints.layouts import LAYOUTS, convert_layout, recognise_layout, resize_table, unwrap
from tests.builders import seeded

DEPTHS, HEADS, DIM, SIDE = [2, 1, 1, 1], [1, 2, 2, 4], 16, 128
SWIN = dict(embed_dims=DIM, depths=DEPTHS, num_heads=HEADS)
DENSE = dict(window_size=4, pad_small_map=True, drop_path_rate=0.0, out_indices=(3,))
NETWORKS: dict[str, dict[str, Any]] = {
    'Swin': dict(type='mmpretrain.SwinTransformer', arch=SWIN, **DENSE),
    'Swin V2': dict(
        type='mmpretrain.SwinTransformerV2', arch=SWIN | dict(extra_norm_every_n_blocks=0), img_size=SIDE, **DENSE
    ),
    'ViT': dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=DIM, num_layers=2, num_heads=2, feedforward_channels=32),
        img_size=SIDE,
        out_type='raw',
    ),
    'ConvNeXt': dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=DEPTHS, channels=[8, 16, 24, 32]),
        gap_before_final_norm=False,
        out_indices=(3,),
    ),
    'ResNet': dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
}


def built(family: str) -> nn.Module:
    """With random weights everywhere."""
    torch.manual_seed(0)
    network = MODELS.build(NETWORKS[family])
    network.eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def rows_first(x: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, C, h, w)."""
    return x.permute(0, 3, 1, 2)


def tokens(x: Tensor) -> Tensor:
    """(N, h * w, C) -> (N, C, h, w)."""
    return x.transpose(1, 2).unflatten(2, (SIDE // 32, SIDE // 32))


def vision_swin(block: type | None = None, **options: Any) -> nn.Module:
    if block:
        options |= dict(block=block, downsample_layer=PatchMergingV2)
    return SwinTransformer([4, 4], DIM, DEPTHS, HEADS, [4, 4], **options)


def vision_vit() -> nn.Module:
    network = torchvision.models.VisionTransformer(SIDE, 16, 2, 2, DIM, 32)
    network.encoder.ln.eps = 1e-6
    return network


def vision_convnext() -> nn.Module:
    widths = [8, 16, 24, 32, None]
    return ConvNeXt([CNBlockConfig(a, b, d) for a, b, d in zip(widths, widths[1:], DEPTHS, strict=False)])


def hugging(kind: str, **options: Any) -> nn.Module:
    """``SwinModel`` and its like."""
    return getattr(transformers, f'{kind}Model')(getattr(transformers, f'{kind}Config')(**options))


TIMM_SWIN = dict(img_size=SIDE, window_size=4, embed_dim=DIM, depths=DEPTHS, num_heads=HEADS, num_classes=0)
HF_SWIN = dict(image_size=SIDE, embed_dim=DIM, depths=DEPTHS, num_heads=HEADS, window_size=4)
HF_VIT = dict(hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIDE)
TIMM_VIT = dict(img_size=SIDE, embed_dim=DIM, depth=2, num_heads=2, mlp_ratio=2, num_classes=0)
# (family, layout): the class of the library, its features as a map or tokens, names of heads that it has beside them
TARGETS: dict[tuple[str, str], tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    ('Swin', 'timm'): (partial(TimmSwin, **TIMM_SWIN), lambda m, x: rows_first(m.forward_features(x))),
    ('Swin', 'torchvision'): (vision_swin, lambda m, x: rows_first(m.norm(m.features(x)))),
    ('Swin', 'transformers'): (partial(hugging, 'Swin', **HF_SWIN), lambda m, x: tokens(m(x).last_hidden_state)),
    ('Swin V2', 'timm'): (partial(TimmSwinV2, **TIMM_SWIN), lambda m, x: rows_first(m.forward_features(x))),
    ('Swin V2', 'torchvision'): (
        partial(vision_swin, SwinTransformerBlockV2),
        lambda m, x: rows_first(m.norm(m.features(x))),
    ),
    ('Swin V2', 'transformers'): (partial(hugging, 'Swinv2', **HF_SWIN), lambda m, x: tokens(m(x).last_hidden_state)),
    ('ViT', 'timm'): (
        partial(timm.models.vision_transformer.VisionTransformer, **TIMM_VIT),
        lambda m, x: m.forward_features(x),
    ),
    ('ViT', 'torchvision'): (vision_vit, lambda m, x: vision_tokens(m, x)),
    ('ViT', 'transformers'): (
        partial(hugging, 'ViT', layer_norm_eps=1e-6, **HF_VIT),
        lambda m, x: m(x).last_hidden_state,
    ),
    ('ConvNeXt', 'timm'): (
        partial(TimmConvNeXt, depths=DEPTHS, dims=(8, 16, 24, 32), num_classes=0),
        lambda m, x: m.head.norm(m.forward_features(x)),
    ),
    ('ConvNeXt', 'torchvision'): (vision_convnext, lambda m, x: m.classifier[0](m.features(x))),
    ('ConvNeXt', 'transformers'): (
        partial(hugging, 'ConvNext', depths=DEPTHS, hidden_sizes=[8, 16, 24, 32]),
        # Its norm follows the pooling, as MMPretrain's does elsewhere
        lambda m, x: rows_first(m.layernorm(m(x).last_hidden_state.permute(0, 2, 3, 1))),
    ),
}
ALL = pytest.mark.parametrize(('family', 'layout'), TARGETS, ids=str)


def vision_tokens(network: nn.Module, x: Tensor) -> Tensor:
    x = network._process_input(x)
    return network.encoder(torch.cat((network.class_token.expand(len(x), -1, -1), x), 1))


def target(family: str, layout: str) -> nn.Module:
    """The class of the library, without its head."""
    make, _ = TARGETS[family, layout]
    network = make().eval()
    for name in ('head', 'heads'):
        if layout == 'torchvision' and hasattr(network, name):
            setattr(network, name, nn.Identity())
    if layout == 'torchvision' and family == 'ConvNeXt':
        network.classifier = network.classifier[:1]
    if layout == 'transformers' and getattr(network, 'pooler', None) is not None and family == 'ViT':
        network.pooler = None
    return network


@torch.no_grad()
def difference(family: str, layout: str, state: dict[str, Tensor]) -> float:
    """Between the class of the library with a state, and MMPretrain's."""
    network, (_, features) = target(family, layout), TARGETS[family, layout]
    network.load_state_dict(state)
    images, source = seeded(2, 3, SIDE, SIDE), built(family)
    return (features(network, images) - source(images)[0]).abs().max().item()


@ALL
def test_the_class_of_the_library_computes_the_same(family: str, layout: str) -> None:
    """Loaded strictly; the way back gives the same bits; swapped channels or heads would be found."""
    source = built(family).state_dict()
    state, left_out = convert_layout(source, layout)
    found = recognise_layout(state)
    assert found.family == recognise_layout(source).family and not left_out
    assert found.name == ('official' if (family, layout) == ('ViT', 'timm') else layout)  # the same names
    assert difference(family, layout, state) < 1e-4 * max(1, built(family)(seeded(2, 3, SIDE, SIDE))[0].abs().max())
    back, _ = convert_layout(state, 'openmmlab')
    constant = {name for name in source if 'relative_' in name and 'bias_table' not in name}
    assert back.keys() | constant == source.keys()
    assert all(torch.equal(value, source[name]) for name, value in back.items())


@pytest.mark.parametrize(('family', 'layout'), [('Swin', 'timm'), ('Swin V2', 'torchvision'), ('ViT', 'transformers')])
def test_a_wrong_mapping_fails_that_check(family: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of merged tokens in the order of the source; keys and values swapped."""
    if family == 'ViT':
        monkeypatch.setattr(layouts, 'THIRDS', dict(q=0, k=2, v=1))
    else:
        read = layouts._read
        monkeypatch.setattr(layouts, '_read', lambda value, name: read(value, name.rstrip('^')))
    state, _ = convert_layout(built(family).state_dict(), layout)
    assert difference(family, layout, state) > 1e-2


@pytest.mark.parametrize('family', ['Swin', 'Swin V2'])
def test_official_names_are_what_two_readers_expect(family: str) -> None:
    """MMDetection's converter, and timm's filter for files of the official repository."""
    source = built(family)
    state, _ = convert_layout(source.state_dict(), 'official')
    names = {'patch_embed.proj.weight', 'layers.2.downsample.reduction.weight', 'norm.weight'}
    assert names <= state.keys() and ('layers.0.blocks.1.attn.relative_position_index' in state) == (family == 'Swin')
    network = target(family, 'timm')
    # timm finds its own files by this name, which the official ones have not
    filtered = (filter_swin if family == 'Swin' else filter_swin_v2)(dict(model=state), network)
    assert difference(family, 'timm', filtered) < 1e-3
    if family == 'Swin':
        ours = source.state_dict()
        theirs = {name.removeprefix('backbone.'): value for name, value in swin_converter(state).items()}
        theirs = {
            name.replace('norm.', 'norm3.') if name.startswith('norm.') else name: v for name, v in theirs.items()
        }
        assert theirs.keys() == ours.keys() and all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_resnet_has_the_same_names() -> None:
    source = built('ResNet').state_dict()
    for layout in ('official', 'timm', 'torchvision'):
        state, left_out = convert_layout(source, layout)
        assert state.keys() == source.keys() and not left_out
    network = torchvision.models.resnet18().state_dict()
    assert set(network) - set(source) == {'fc.weight', 'fc.bias'}
    with_head = {**source, 'head.fc.weight': torch.zeros(1)}
    assert 'fc.weight' in convert_layout(with_head, 'timm')[0]
    with pytest.raises(ValueError, match='ResNet cannot be converted to the layout of transformers'):
        convert_layout(source, 'transformers')


def test_heads_go_along_where_there_is_a_place() -> None:
    state = {**built('Swin').state_dict(), 'head.fc.weight': torch.ones(5, 128), 'head.fc.bias': torch.zeros(5)}
    for layout, name in (
        ('official', 'head.weight'),
        ('timm', 'head.fc.weight'),
        ('transformers', 'classifier.weight'),
    ):
        assert convert_layout(state, layout)[0][name].shape == (5, 128)
    whole = transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=5, **HF_SWIN)).state_dict()
    inside, left_out = unwrap(whole)
    assert 'head.fc.weight' in convert_layout(inside, 'openmmlab')[0] and not left_out


@pytest.mark.parametrize('family', ['Swin', 'Swin V2', 'ViT', 'ConvNeXt'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_missing_and_unexpected_names_are_listed(family: str, layout: str) -> None:
    state, _ = convert_layout(built(family).state_dict(), layout)
    name = list(state)[len(state) // 2 - 1]
    state['surplus.weight'] = state.pop(name)
    with pytest.raises(
        ValueError, match=rf'{family} in the layout of \w+, .*missing: {name}.*unexpected: surplus.weight'
    ):
        recognise_layout(state)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match='none of Swin, Swin V2, ViT, ConvNeXt in the layouts openmmlab'):
        recognise_layout(['conv.weight', 'fc.weight'])
    state = built('Swin').state_dict()
    state['stages.0.downsample.reduction.weight'] = torch.zeros(32, 63)
    with pytest.raises(ValueError, match=r'stages.0.downsample.reduction.weight has shape \(32, 63\).*2x2 tokens'):
        convert_layout(state, 'timm')
    state = convert_layout(built('Swin V2').state_dict(), 'timm')[0]
    with pytest.raises(ValueError, match='window_size is not given'):
        convert_layout(state, 'torchvision')
    assert difference('Swin V2', 'torchvision', convert_layout(state, 'torchvision', window_size=4)[0]) < 1e-3


def test_simmim_and_pretraining_tokens_are_taken_off() -> None:
    """Names of the released SimMIM files, and of a pre-training of ours."""
    official, _ = convert_layout(built('Swin').state_dict(), 'official')
    simmim = {f'encoder.{name}': value for name, value in official.items()}
    simmim |= {'encoder.mask_token': torch.zeros(1), 'decoder.0.weight': torch.zeros(1)}
    inside, left_out = unwrap(simmim)
    assert inside.keys() == official.keys() and left_out == ['decoder.0.weight', 'encoder.mask_token']
    ours = {f'backbone.{name}': value for name, value in built('Swin').state_dict().items()}
    ours |= {'backbone.secondary_token': torch.zeros(1), 'neck.norm.weight': torch.zeros(1)}
    inside, left_out = unwrap(ours)
    assert recognise_layout(inside).name == 'openmmlab' and left_out == ['backbone.secondary_token', 'neck.norm.weight']


def test_tables_are_resized_as_images() -> None:
    """A constant stays constant, a line a line; the same size gives the same bits; channels are heads."""
    table = torch.stack((torch.full((49,), 3.0), torch.arange(7.0).repeat(7)), 1)
    larger = resize_table(table, 169)
    torch.testing.assert_close(larger[:, 0], torch.full((169,), 3.0))
    rows = larger[:, 1].view(13, 13)
    torch.testing.assert_close(rows[0], rows[12])
    assert (rows[0].diff() > 0).all() and abs(rows[0, 6] - 3) < 1e-5
    torch.testing.assert_close(resize_table(table, 49), table)
    with pytest.raises(ValueError, match='table of 48 relative positions cannot be resized to 169'):
        resize_table(table[:48], 169)
