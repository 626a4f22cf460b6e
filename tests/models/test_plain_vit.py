"""UMViT and LoMaRViT: MMPretrain's ViT on whole images, positions, MAE's initialisation, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier

from mm_ummae.masking import sincos_position
from mm_ummae.models import LoMaRBEiTViT, LoMaRViT, PlainViT, UMViT
from tests.builders import VIT, disturbed, draw_mask, draw_windows, layers, maps, seeded

KINDS = {
    'um': (UMViT, dict(secondary_token=True)),
    'absolute': (LoMaRViT, dict(mask_token=True, positions='absolute')),
    'both': (LoMaRViT, dict(mask_token=True, positions='both')),
}
TOKENS = {'um': 'secondary_token', 'both': 'mask_token', 'absolute': 'mask_token'}
every_kind = pytest.mark.parametrize('kind', KINDS)
um_and_both = pytest.mark.parametrize('kind', ['um', 'both'])


def vit(kind: str, img_size: int | tuple[int, int] = 64, **kwargs) -> PlainViT:
    network, options = KINDS[kind]
    return network(VIT, img_size, **{**options, **kwargs})


@every_kind
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'raw', 'avg_featmap'])
@torch.no_grad()
def test_whole_images_are_encoded_as_in_mmpretrain(out_type: str, kind: str) -> None:
    """With the same names, also at sizes that resize positions or pad patches. Tables of zeros have no effect."""
    options = dict(img_size=(64, 96), out_type=out_type, out_indices=[0, 1])
    ours, theirs = disturbed(vit(kind, **options)), VisionTransformer(VIT, **options)
    tolerance = 0 if kind == 'um' else 1e-5
    state = {name: value for name, value in ours.state_dict().items() if name != TOKENS[kind]}
    for name in [name for name in state if name.endswith('position_table')]:
        state.pop(name).zero_()
    theirs.load_state_dict(state, strict=True)
    for size in ((64, 96), (96, 48), (100, 70)):
        images = seeded(2, 3, *size)
        found, expected = maps(ours, images), maps(theirs, images)
        assert len(found) == 2
        for out, other in zip(found, expected, strict=True):
            torch.testing.assert_close(out, other, atol=tolerance, rtol=tolerance)


@every_kind
def test_maps_are_the_default(kind: str) -> None:
    """As from pyramids, so that the same necks fit; MMPretrain's default is the class token."""
    assert maps(vit(kind), seeded(2, 3, 64, 96))[0].shape == (2, 16, 4, 6)


@um_and_both
@pytest.mark.parametrize('learn', [True, False])
def test_learn_positions(learn: bool, kind: str) -> None:
    """Sine-cosine values from the start, zero for the class token; trained or fixed with and without a mask."""
    model = vit(kind, (64, 96), learn_positions=learn)
    expected = F.pad(sincos_position(4, 6, 16).flatten(0, 1), (0, 0, 1, 0))[None]
    assert torch.equal(model.pos_embed, expected)
    model.init_weights()
    assert torch.equal(model.pos_embed, expected)
    for mask in (None, draw_mask('random', 1, (64, 96)) if kind == 'um' else draw_windows(1, (4, 6), 3, 1, 0.5)):
        model.zero_grad()
        model(seeded(1, 3, 64, 96), mask)[0].square().sum().backward()
        assert (model.pos_embed.grad is not None) == model.pos_embed.requires_grad == learn


@um_and_both
@pytest.mark.parametrize('frozen', [1, 2])
def test_frozen_stages(frozen: int, kind: str) -> None:
    """MMPretrain counts layers from 1; tables are frozen with their layer, positions despite ``learn_positions``."""
    fixed = ('patch_embed.', 'pos_embed', 'cls_token', *(f'layers.{i}.' for i in range(frozen)))
    fixed += ('ln1.',) if frozen == 2 else ()
    for name, parameter in vit(kind, frozen_stages=frozen).named_parameters():
        assert parameter.requires_grad == (not name.startswith(fixed)), name


@um_and_both
def test_initialisation_is_that_of_mae(kind: str) -> None:
    """Xavier for qkv and, as for a linear layer on flattened patches, the patch convolution; zero biases and tables."""
    model = vit(kind)
    model.init_weights()
    qkv, projection = model.layers[0].attn.qkv, model.patch_embed.projection
    for layer, inputs, outputs in ((qkv, 16, 48), (projection, 768, 16)):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
    for token in (model.cls_token, getattr(model, TOKENS[kind])):
        assert 0.005 < token.std() < 0.05
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith('position_table'))


@um_and_both
def test_checkpoint_of_another_size_is_resized(kind: str, tmp_path: Path) -> None:
    """Pre-trained at 64 px: positions are resized, except that of the class token; pre-training's parts are dropped."""
    source = disturbed(vit(kind)).state_dict()
    torch.save(dict(state_dict={f'backbone.{name}': x for name, x in source.items()}), tmp_path / 'model.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    model = vit(kind, (96, 64), final_norm=False, init_cfg=init_cfg, **{TOKENS[kind]: False})
    model.init_weights()
    own, positions = model.state_dict(), source.pop('pos_embed')
    old_map = positions[:, 1:].view(1, 4, 4, 16).permute(0, 3, 1, 2)
    resized = F.interpolate(old_map, (6, 4), mode='bicubic', align_corners=False)
    found = own.pop('pos_embed')
    assert torch.equal(found[:, :1], positions[:, :1])
    torch.testing.assert_close(found[:, 1:], resized.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)
    assert source.keys() - own.keys() == {TOKENS[kind], 'ln1.weight', 'ln1.bias'}
    assert all(torch.equal(value, source[name]) for name, value in own.items())


def test_resized_positions_must_be_square() -> None:
    model = vit('um')
    assert model.adapt_state(dict(pos_embed=seeded(1, 50, 16)))['pos_embed'].shape == (1, 17, 16)
    with pytest.raises(ValueError, match=r'shape \(1, 49, 16\).* no square grid after 1 extra tokens.*4x4 tokens'):
        model.adapt_state(dict(pos_embed=seeded(1, 49, 16)))


@um_and_both
def test_layer_depth(kind: str) -> None:
    """Through the classifier, as layer decay asks: tokens and positions first; norm, neck and head last."""
    model = ImageClassifier(
        backbone=vit(kind),
        neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=16),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
    )
    first = [f'backbone.{name}' for name in ('patch_embed.', 'pos_embed', 'cls_token', TOKENS[kind])]
    expected = {
        **dict.fromkeys(first, 0),
        'backbone.layers.0.': 1,
        'backbone.layers.1.': 2,
        **dict.fromkeys(('backbone.ln1.', 'neck.norm.', 'head.fc.'), 3),
    }
    names = [name for name, _ in model.named_parameters()]
    depths = {name: (depth, 4) for name, depth in layers(names, expected).items()}
    assert {name: model.get_layer_depth(name) for name in names} == depths


@pytest.mark.parametrize('kind', [UMViT, LoMaRViT, LoMaRBEiTViT])
def test_modes_return_the_module(kind: type) -> None:
    """MMPretrain's backbones return None from train() and eval()."""
    arch = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=96)
    model = kind(arch, img_size=64)
    assert model.eval() is model and not model.training
    assert model.train() is model and model.training
