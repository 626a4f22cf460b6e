"""What cannot be converted is an error that names the parameter, the value and the rule."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from mmengine.registry import MODELS as MODEL_REGISTRY
from torch import Tensor, nn

from mm_ummae.checkpoints.conversion import to_ours, to_published
from mm_ummae.models import LoMaRDecoder, LoMaRViT

from .test_conversion import VIT, State, classifier, lomar, published, same, without


def renamed(state: State, old: str, new: str) -> State:
    assert any(old in name for name in state)
    return {name.replace(old, new): value for name, value in state.items()}


def with_value(state: State, name: str, value: Tensor) -> State:
    return {**state, name: value}


ERRORS: dict[str, tuple[str, Callable[[State], State], str]] = {
    'missing': (
        'cls_swin',
        lambda state: without(state, 'blocks.3.attn.proj.bias'),
        r'This is classifier with a swin backbone in published naming\. missing: blocks\.3\.attn\.proj\.bias$',
    ),
    'missing-head': ('cls_pvt', lambda state: without(state, 'head.bias'), r'missing: head\.bias$'),
    'missing-token': ('simmim_pvt', lambda state: without(state, 'mask_token'), r'missing: mask_token$'),
    'missing-positions': ('ummae_pvt', lambda state: without(state, 'pos_embed'), r'missing: pos_embed$'),
    'missing-table': ('ummae_vit', lambda state: without(state, 'decoder_pos_embed'), r'missing: decoder_pos_embed$'),
    'missing-class-token': ('ummae_vit', lambda state: without(state, 'cls_token'), r'missing: cls_token$'),
    'missing-projection': ('det_pvt', lambda state: without(state, 'up3.1.bias'), r'missing: up3\.1\.bias$'),
    'missing-decoder': (
        'ummae_swin',
        lambda state: {name: value for name, value in state.items() if not name.startswith('decoder_blocks')},
        r'missing: decoder_blocks\.0\.norm1\.weight, .* and 4 more$',
    ),
    'whole-block': (
        'cls_swin',
        lambda state: {name: value for name, value in state.items() if not name.startswith('blocks.3.')},
        r'missing: blocks\.3\.norm1\.weight, .* and 8 more$',
    ),
    'unknown': ('cls_swin', lambda state: with_value(state, 'extra', torch.ones(1)), r'unknown: extra$'),
    'unknown-in-block': (
        'ummae_vit',
        lambda state: with_value(state, 'blocks.1.gamma_1', torch.ones(96)),
        r'unknown: blocks\.1\.gamma_1$',
    ),
    'both-namings': (
        'cls_swin',
        lambda state: {**to_ours(state), **state},
        r'unknown: backbone\.patch_embed\.norm\.bias, .* and 140 more$',
    ),
    'shape': (
        'cls_swin',
        lambda state: with_value(state, 'blocks.5.attn.qkv.weight', torch.ones(383, 128)),
        r'naming\. other shape: blocks\.5\.attn\.qkv\.weight \(383, 128\) instead of \(384, 128\)$',
    ),
    'rank': (
        'cls_swin',
        lambda state: with_value(state, 'blocks.0.attn.posmlp.2.weight', torch.ones(2, 8)),
        r'other shape: blocks\.0\.attn\.posmlp\.2\.weight \(2, 8\) instead of \(2, 8, 1, 1\)$',
    ),
    'stem': (
        'cls_pvt',
        lambda state: with_value(state, 'patch_embed.proj.weight', torch.ones(32, 1, 4, 4)),
        r'other shape: patch_embed\.proj\.weight \(32, 1, 4, 4\) instead of \(32, 3, 4, 4\)$',
    ),
    'between-parts': (
        'ummae_pvt',
        lambda state: with_value(state, 'decoder_embed.weight', torch.ones(256, 120)),
        r'other shape: decoder_embed\.weight \(256, 120\) instead of \(256, 128\)$',
    ),
    'only-one-of-its-size': (
        'cls_pvt',
        lambda state: with_value(state, 'pos_embed', torch.ones(1024, 32)),
        r'other shape: pos_embed \(1024, 32\) instead of \(1, L, 32\)$',
    ),
    'all-three': (
        'cls_pvt',
        lambda state: {**without(state, 'fc_norm.bias'), 'x': torch.ones(1), 'head.bias': torch.ones(9)},
        r'missing: fc_norm\.bias; unknown: x; other shape: head\.bias \(9,\) instead of \(10,\)$',
    ),
    'stages': (
        'cls_swin',
        lambda state: {name: value for name, value in state.items() if 'blocks.4.downsample' not in name},
        r'the stages have \[2, 4, 2\] blocks, but a pyramid has 4 stages with blocks in each',
    ),
    'widths': (
        'cls_pvt',
        lambda state: narrow_swin(),
        r'the widths of the stages are \[32, 64, 96, 256\], but each must be twice that of the stage before',
    ),
    'huge-number': (
        'cls_swin',
        lambda state: with_value(state, 'blocks.999999999999.norm1.bias', torch.ones(32)),
        r'block 999999999999 is named .* but there are 149 parameters in all',
    ),
    'table': (
        'ummae_swin',
        lambda state: with_value(state, 'decoder_pos_embed', state['decoder_pos_embed'] + 1e-4),
        r'decoder_pos_embed differs by 1\.0e-04 from the fixed sine-cosine table',
    ),
    'table-nan': (
        'ummae_swin',
        lambda state: with_value(state, 'decoder_pos_embed', state['decoder_pos_embed'] * float('nan')),
        r'decoder_pos_embed differs by nan',
    ),
    'table-not-square': (
        'ummae_swin',
        lambda state: with_value(state, 'decoder_pos_embed', state['decoder_pos_embed'][:, :60]),
        r'decoder_pos_embed has 60 positions, but an image of 112x112 px has 49 \(img_size is None; None takes',
    ),
    'table-of-other-image': (
        'ummae_vit',
        lambda state: with_value(state, 'decoder_pos_embed', state['decoder_pos_embed'][:, :50]),
        r'decoder_pos_embed has 50 positions, but an image of 128x128 px has 65 ',
    ),
    'table-width': (
        'ummae_swin',
        lambda state: with_value(state, 'decoder_pos_embed', state['decoder_pos_embed'][..., :60]),
        r'other shape: decoder_pos_embed \(1, 64, 60\) instead of \(1, 64, 64\)$',
    ),
    'backbone-alone': (
        'cls_swin',
        lambda state: {name: x for name, x in state.items() if name.startswith(('blocks', 'patch_embed'))},
        r'of published naming the swin part is recognised, but a file must hold a whole model: um-mae, simmim, ',
    ),
    'no-such-kind': (
        'ummae_vit',
        lambda state: {name: x for name, x in state.items() if not re.match('decoder_[ebn]', name)},
        r'kind simmim with a vit backbone was found, but it exists for swin, pvt',
    ),
    'lomar-missing': (
        'lomar_vit',
        lambda state: without(state, 'cls_token', 'blocks.1.attn.rpe_k.lookup_table_weight'),
        r'This is lomar with a lomar backbone in published naming\. '
        r'missing: cls_token, blocks\.1\.attn\.rpe_k\.lookup_table_weight$',
    ),
    'lomar-missing-table': ('lomar_vit', lambda state: without(state, 'pos_embed'), r'missing: pos_embed$'),
    'lomar-unknown': (
        'lomar_vit',
        lambda state: with_value(state, 'blocks.0.attn.rpe_q.lookup_table_weight', torch.ones(1, 24, 50)),
        r'unknown: blocks\.0\.attn\.rpe_q\.lookup_table_weight$',
    ),
    'lomar-buckets': (
        'lomar_vit',
        lambda state: with_value(state, 'blocks.0.attn.rpe_k.lookup_table_weight', torch.ones(1, 24, 49)),
        r'other shape: blocks\.0\.attn\.rpe_k\.lookup_table_weight \(1, 24, 49\) instead of \(1, 24, 50\)$',
    ),
    'lomar-heads-differ': (
        'lomar_vit',
        lambda state: with_value(state, 'blocks.0.attn.rpe_k.lookup_table_weight', torch.ones(4, 24, 50)),
        r'other shape: blocks\.0\.attn\.rpe_k\.lookup_table_weight \(4, 24, 50\) instead of \(1, 24, 50\)$',
    ),
    'lomar-oblong-patch': (
        'lomar_vit',
        lambda state: with_value(state, 'patch_embed.proj.weight', torch.ones(96, 3, 16, 8)),
        r'other shape: patch_embed\.proj\.weight \(96, 3, 16, 8\) instead of \(96, 3, 16, 16\)$',
    ),
    'lomar-pixels': (
        'lomar_vit',
        lambda state: state | {'encoder_pred.weight': torch.ones(192, 96), 'encoder_pred.bias': torch.ones(192)},
        r'published naming\. 192 pixels are predicted, but a patch of 16 px has 3 x 16²$',
    ),
    'lomar-table': (
        'lomar_vit',
        lambda state: with_value(state, 'pos_embed', state['pos_embed'] + 1e-4),
        r'pos_embed differs by 1\.0e-04 from the fixed sine-cosine table',
    ),
    'lomar-table-not-square': (
        'lomar_vit',
        lambda state: with_value(state, 'pos_embed', state['pos_embed'][:, :91]),
        r'pos_embed has 91 positions, but an image of 144x144 px has 82 \(img_size is None; None takes',
    ),
    'other-network': (
        'cls_swin',
        lambda state: nn.Sequential(nn.Linear(2, 2)).state_dict(),
        r'neither patch_embed\.proj \(published naming\) nor backbone\.patch_embed\.projection .* 0\.bias, 0\.weight$',
    ),
}


def narrow_swin() -> State:
    """A published Swin the third stage of which is three quarters as wide as it should be."""
    state = published('cls_swin')

    def narrow(name: str, value: Tensor) -> Tensor:
        if re.match(r'blocks\.[45]\.|blocks\.6\.downsample', name):
            for axis, size in enumerate(value.shape):
                if size % 128 == 0 and not (name == 'blocks.6.downsample.proj.weight' and axis == 0):
                    value = value.narrow(axis, 0, size * 3 // 4)
        return value

    return {
        name: value if name == 'blocks.6.downsample.proj.bias' else narrow(name, value) for name, value in state.items()
    }


@pytest.mark.parametrize('case', ERRORS)
def test_errors_name_what_is_wrong(case: str) -> None:
    name, damage, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        to_ours(damage(published(name)))


@pytest.mark.parametrize(
    ('name', 'damage', 'message'),
    [
        ('cls_swin', lambda state: without(state, 'neck.norm.bias'), r'in our naming\. missing: neck\.norm\.bias$'),
        ('cls_swin', lambda state: with_value(state, 'neck.norm.x', torch.ones(1)), r'unknown: neck\.norm\.x$'),
        ('cls_pvt', lambda state: with_value(state, 'backbone.norm.bias', torch.ones(128)), r'unknown: backbone\.norm'),
        (
            'ummae_swin',
            lambda state: with_value(state, 'neck.expand.bias', torch.ones(255)),
            r'other shape: neck\.expand\.bias \(255,\) instead of \(256,\)$',
        ),
        (
            'det_swin',
            lambda state: {name: x for name, x in state.items() if not name.startswith('backbone.stages.1.')},
            r'missing: backbone\.stages\.1\.downsample\.norm\.weight, ',
        ),
        (
            'det_swin',
            lambda state: renamed(state, 'neck.0.', 'neck.'),
            r'This is segmentor .* unknown: neck\.norms\.0\.bias, ',
        ),
        ('cls_swin', lambda state: {name[9:]: x for name, x in state.items()}, r'there is neither patch_embed\.proj'),
        (
            'lomar_vit',
            lambda state: without(state, 'backbone.mask_token', 'head.pred.bias'),
            r'This is lomar with a lomar backbone in our naming\. missing: backbone\.mask_token, head\.pred\.bias$',
        ),
        (
            'lomar_vit',
            lambda state: with_value(state, 'backbone.pos_embed', torch.ones(1, 101, 96)),
            r'unknown: backbone\.pos_embed$',
        ),
        (
            'lomar_vit',
            lambda state: with_value(state, 'head.pred.weight', torch.ones(768, 95)),
            r'other shape: head\.pred\.weight \(768, 95\) instead of \(768, 96\)$',
        ),
    ],
    ids=[
        'missing',
        'unknown',
        'final-norm',
        'shape',
        'stage',
        'projections',
        'no-backbone',
        'lomar-missing',
        'lomar-positions',
        'lomar-shape',
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
        ('ummae_swin', 120, r'img_size is 120, but sides must be positive multiples of 16'),
        ('ummae_swin', (128, 0), r'img_size is \(128, 0\), but sides must be positive'),
        ('ummae_pvt', 160, r'pos_embed has 1024 positions, but an image of 160x160 px has 1600 \(img_size is 160; '),
        (
            'ummae_vit',
            (64, 128),
            r'pos_embed has 65 positions, but an image of 64x128 px has 33 \(img_size is \(64, 128\); ',
        ),
    ],
)
def test_image_size_of_the_table(name: str, img_size: int | tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_published(to_ours(published(name)), img_size)


def test_image_size_from_positions() -> None:
    """PVT and ViT need not be told, and other shapes of the same number of positions can be."""
    for name in ('ummae_pvt', 'ummae_vit'):
        assert same(to_published(to_ours(published(name))), published(name))
    wide = to_published(to_ours(published('ummae_pvt')), img_size=(64, 256))['decoder_pos_embed']
    assert wide.shape == (1, 64, 64) and not torch.equal(wide, published('ummae_pvt')['decoder_pos_embed'])


def test_wrong_direction() -> None:
    state = published('cls_swin')
    with pytest.raises(ValueError, match='this is classifier with a swin backbone in published naming'):
        to_published(state)
    with pytest.raises(ValueError, match='this is classifier with a swin backbone in our naming'):
        to_ours(to_ours(state))


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (dict(type='mmpretrain.SwinTransformer', arch='tiny'), 'the stock Swin of mmpretrain'),
        (dict(type='mmdet.SwinTransformer', depths=(1, 1, 1, 1)), 'the stock Swin of mmpretrain'),
        (dict(type='mmdet.PyramidVisionTransformer', num_layers=[1, 1, 1, 1]), 'the stock PVT or ViT of mmdet'),
    ],
    ids=['mmpretrain-swin', 'mmdet-swin', 'mmdet-pvt'],
)
def test_stock_networks_are_refused(network: dict, message: str) -> None:
    """The hosts' own networks are not these: said by name instead of by a list of keys."""
    state = {f'backbone.{name}': value for name, value in MODEL_REGISTRY.build(network).state_dict().items()}
    for convert in (to_ours, to_published):
        with pytest.raises(ValueError, match=rf'these are weights of {message}.*cannot be converted'):
            convert(state)


def test_lomar_s_other_forms_are_not_published() -> None:
    """A fine-tuned one, one with a decoder, and one with absolute positions too: each is refused by what it has."""
    state = classifier(LoMaRViT(VIT, 64), 96).state_dict()
    with pytest.raises(
        ValueError, match='kind classifier with a lomar backbone was found, but it exists for swin, pvt'
    ):
        to_published(state)
    model = lomar()
    model.neck = LoMaRDecoder(96, embed_dims=16, depth=1, num_heads=2, img_size=160)
    with pytest.raises(ValueError, match=r'unknown: neck\.blocks\.0\.attn\.position_table, '):
        to_published(model.state_dict(), 160)


def test_lomar_s_image_size_is_checked() -> None:
    """Of a patch that divides 160 px in another number of rows, and of images with patches of 8 px."""
    with pytest.raises(ValueError, match=r'pos_embed has 101 positions, but an image of 224x224 px has 197 '):
        to_ours(published('lomar_vit'), 224)
    assert to_published(lomar(patch_size=8).state_dict(), 168)['pos_embed'].shape == (1, 442, 96)
    with pytest.raises(ValueError, match='img_size is 164, but sides must be positive multiples of 8'):
        to_published(lomar(patch_size=8).state_dict(), 164)
