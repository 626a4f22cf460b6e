"""LoMaRViT: windows against a slow encoder, what it must not see, whole images of any size, positions and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.masking import images_to_units, units_to_images
from mm_ummae.models import LoMaRViT
from mm_ummae.models.backbones.lomar_vit import POSITIONS
from mm_ummae.masking import sincos_position
from mm_ummae.models.layers import TokenPositions, bucket_map
from mm_ummae.masking import WindowMask, draw_window_mask

from tests.builders import disturbed, layers, maps, noisy, seeded

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
WINDOWED = dict(window_size=3, with_cls_token=False)
all_positions = pytest.mark.parametrize('positions', POSITIONS)
with_and_without_class = pytest.mark.parametrize('class_token', [True, False], ids=['class', 'no-class'])
with_and_without_mask_token = pytest.mark.parametrize('mask_token', [True, False], ids=['simple', 'asymmetric'])


def made_lomar_vit(img_size: int | tuple[int, int] = 96, arch: dict = ARCH, **kwargs) -> LoMaRViT:
    """Every parameter is moved, tables too, so that each matters."""
    torch.manual_seed(0)
    return disturbed(LoMaRViT(arch, img_size, **kwargs))


def draw(
    n: int, grid: tuple[int, int], size: int = 4, windows: int = 2, ratio: float = 0.7, seed: int = 0, **kwargs
) -> WindowMask:
    return draw_window_mask(n, grid, size, windows, ratio, generator=torch.Generator().manual_seed(seed), **kwargs)


def nothing_masked(n: int, side: int) -> WindowMask:
    """One window that is the whole image, all of it visible."""
    everything = torch.arange(side**2).expand(n, -1)
    return WindowMask(torch.arange(n), torch.zeros(n, 2).long(), everything, everything[:, :0], side, (side, side), n)


def by_pixel(mask: WindowMask, marked: Tensor, patch: int = 16) -> Tensor:
    """(N, L) bool over patches -> (N, 1, H, W) over pixels."""
    return units_to_images(marked.view(len(marked), *mask.grid, 1).expand(-1, -1, -1, patch**2), patch)


def slow_windows(model: LoMaRViT, images: Tensor, mask: WindowMask) -> Tensor:
    """Sequence by sequence: embed whole images, cut the window, put mask tokens or drop what is masked, run blocks."""
    embedded = model.patch_embed.projection(images).permute(0, 2, 3, 1)  # (N, h, w, C)
    size, outs = mask.window_size, []
    full = bucket_map((size, size), False)
    for k, n in enumerate(mask.image.tolist()):
        top, left = mask.corner[k].tolist()
        masked, tokens, kept = set(mask.masked[k].tolist()), [], []
        for inside in range(size**2):
            row, column = top + inside // size, left + inside % size
            if inside in masked and model.mask_token is None:
                continue
            token = model.mask_token[0, 0] if inside in masked else embedded[n, row, column]
            if model.pos_embed is not None:
                # Positions are those of the nominal grid here
                place = model.num_extra_tokens + row * mask.grid[1] + column
                token = token + model.pos_embed[0, place]
            tokens.append(token)
            kept.append(inside)
        buckets = full[kept][:, kept]
        if model.cls_token is not None:
            first = model.cls_token[0, 0] + (0 if model.pos_embed is None else model.pos_embed[0, 0])
            tokens = [first, *tokens]
            buckets = F.pad(buckets, (1, 0, 1, 0), value=49)
        x = torch.stack(tokens)[None]
        for layer in model.layers:
            x = layer(x, Places(buckets))
        outs.append(model.ln1(x)[0])
    return torch.stack(outs)


# Windows


@all_positions
@with_and_without_class
@with_and_without_mask_token
@pytest.mark.parametrize('pairing', ['all', 'published'])
@torch.no_grad()
def test_windows_equal_a_slow_encoder(pairing: str, mask_token: bool, class_token: bool, positions: str) -> None:
    model = made_lomar_vit((96, 112), positions=positions, mask_token=mask_token, with_cls_token=class_token)
    images, mask = seeded(2, 3, 96, 112), draw(2, (6, 7), pairing=pairing)
    (out,) = maps(model, images, mask)
    assert out.shape == (4, class_token + (16 if mask_token else 5), 16)
    torch.testing.assert_close(out, slow_windows(model, images, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('positions', ['absolute', 'both'])
@torch.no_grad()
def test_absolute_positions_are_those_of_the_image(positions: str) -> None:
    """Of another size than the nominal one: resized, and taken where the window is."""
    model, images = made_lomar_vit(128, positions=positions, mask_token=True), seeded(2, 3, 96, 112)
    resized = made_lomar_vit((96, 112), positions=positions, mask_token=True)
    resized.load_state_dict(model.adapt_state(model.state_dict()) | dict(pos_embed=model._resized_positions((6, 7))))
    mask = draw(2, (6, 7))
    torch.testing.assert_close(maps(model, images, mask)[0], maps(resized, images, mask)[0])


@all_positions
@with_and_without_class
@with_and_without_mask_token
@torch.no_grad()
def test_a_window_of_everything_is_the_whole_image(mask_token: bool, class_token: bool, positions: str) -> None:
    model = made_lomar_vit(mask_token=mask_token, with_cls_token=class_token, positions=positions, out_type='raw')
    images = seeded(2, 3, 96, 96)
    windows = maps(model, images, nothing_masked(2, 6))[0]
    torch.testing.assert_close(windows, maps(model, images)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('patch_size', [8, 16])
@with_and_without_mask_token
def test_exactly_the_visible_pixels_reach_the_encoder(mask_token: bool, patch_size: int) -> None:
    """Pixels outside the windows and masked ones get no gradient, and noise there changes not even a last bit."""
    model = made_lomar_vit(mask_token=mask_token, patch_size=patch_size)
    side = 96 // patch_size
    images, mask = seeded(2, 3, 96, 96), draw(2, (side, side))
    unseen = by_pixel(mask, mask.unsampled(), patch_size)
    outside = by_pixel(mask, mask.unsampled() & ~mask.predicted(), patch_size)
    assert outside.any() and (unseen & ~outside).any()
    assert torch.equal(maps(model, images, mask)[0], maps(model, noisy(images, unseen), mask)[0])
    images.requires_grad_()
    (out,) = model(images, mask)
    out.square().sum().backward()
    assert torch.equal(images.grad != 0, ~unseen.expand_as(images))
    if mask_token:
        assert model.mask_token.grad.abs().min() > 0


def test_only_visible_patches_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """7x7x4 windows at ratio 0.8 embed 40 patches of an image's 196, and attention sees 50 tokens."""
    model, seen = made_lomar_vit(224, mask_token=True), []
    embed = LoMaRViT._embed_patches
    monkeypatch.setattr(LoMaRViT, '_embed_patches', lambda self, x: seen.append(x.shape) or embed(self, x))
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(seeded(2, 3, 224, 224), draw(2, (14, 14), 7, 4, 0.8))
    assert seen == [(8, 10, 768), (8, 50, 16)]


@torch.no_grad()
def test_windows_do_not_meet() -> None:
    """Each sequence alone gives what it gives in the batch; where a window lies does not matter, what it shows does."""
    model, images, mask = made_lomar_vit(mask_token=True), seeded(2, 3, 96, 96), draw(2, (6, 6))
    (together,) = maps(model, images, mask)
    for k in range(4):
        n = mask.image[k]
        own = mask._replace(
            image=torch.zeros(1).long(),
            corner=mask.corner[k : k + 1],
            visible=mask.visible[k : k + 1],
            masked=mask.masked[k : k + 1],
            batch_size=1,
        )
        torch.testing.assert_close(maps(model, images[n : n + 1], own)[0][0], together[k], atol=1e-5, rtol=1e-5)
    rolled = images.roll((16, 32), (2, 3))  # a row and two columns of patches on
    here = mask._replace(corner=torch.zeros_like(mask.corner))
    there = mask._replace(corner=torch.tensor([1, 2]).expand(4, 2))
    assert torch.equal(maps(model, images, here)[0], maps(model, rolled, there)[0])


def test_images_that_do_not_fit() -> None:
    model = made_lomar_vit(mask_token=True)
    with pytest.raises(ValueError, match=r'image height is 90 px.*multiple of 16'):
        model(seeded(2, 3, 90, 96), draw(2, (6, 6)))
    with pytest.raises(ValueError, match=r'image width is 100 px.*multiple of 8 px'):
        made_lomar_vit(mask_token=True, patch_size=8)(seeded(2, 3, 96, 100), draw(2, (12, 12)))
    for n, size in ((3, (96, 96)), (2, (96, 112))):
        with pytest.raises(
            ValueError, match=r'mask is for 2 images of \(6, 6\) patches, but . images of \(6, .\) came'
        ):
            model(seeded(n, 3, *size), draw(2, (6, 6)))


# Whole images


@pytest.mark.parametrize('size', [(64, 96), (112, 48), (100, 70)], ids=str)
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'raw', 'avg_featmap'])
@pytest.mark.parametrize('positions', ['absolute', 'both'])
@torch.no_grad()
def test_without_tables_it_is_the_vit_of_mmpretrain(positions: str, out_type: str, size: tuple[int, int]) -> None:
    """The same names and values, also with tables of zeros, also at sizes that resize positions or pad patches."""
    ours = made_lomar_vit((64, 96), positions=positions, out_type=out_type, out_indices=[0, 1])
    for layer in ours.layers if positions == 'both' else ():
        layer.attn.position_table.zero_()
    theirs = VisionTransformer(ARCH, img_size=(64, 96), out_type=out_type, out_indices=[0, 1])
    state = {name: value for name, value in ours.state_dict().items() if not name.endswith('position_table')}
    theirs.load_state_dict(state, strict=True)
    images = seeded(2, 3, *size)
    for out, expected in zip(maps(ours, images), maps(theirs, images), strict=True):
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@with_and_without_class
@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('size', [(96, 96), (64, 160), (150, 90)], ids=str)
@torch.no_grad()
def test_maps_of_any_size(size: tuple[int, int], patch_size: int, class_token: bool) -> None:
    """Relative positions need no resizing; sides that no patch divides are padded."""
    model = made_lomar_vit(patch_size=patch_size, with_cls_token=class_token, out_indices=[0, 1])
    outs = maps(model, seeded(1, 3, *size))
    assert [out.shape for out in outs] == 2 * [(1, 16, -(-size[0] // patch_size), -(-size[1] // patch_size))]
    assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize('global_layers', [(), (1,), (0, 1)], ids=str)
@torch.no_grad()
def test_attention_in_windows(global_layers: tuple[int, ...]) -> None:
    """A far patch is seen through global layers alone; windows of the whole grid are global attention."""
    model = made_lomar_vit(window_size=3, global_layers=global_layers, with_cls_token=False)
    images = seeded(1, 3, 96, 96)
    changed = noisy(images, by_pixel(draw(1, (6, 6)), torch.arange(36)[None] == 35))
    moved = (maps(model, images)[0] - maps(model, changed)[0]).abs().amax((0, 1)) > 0
    near = torch.zeros(6, 6, dtype=torch.bool)
    near[3:, 3:] = True
    assert torch.equal(moved, torch.ones_like(near) if global_layers else near)
    wide, plain = (made_lomar_vit(window_size=size, with_cls_token=False) for size in (6, 0))
    torch.testing.assert_close(maps(wide, images)[0], maps(plain, images)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('masked', [False, True])
@torch.no_grad()
def test_a_table_tells_places(masked: bool) -> None:
    """Without any position the patches of an image are a set; with tables their order counts."""
    model, images = made_lomar_vit(mask_token=True, out_type='raw'), seeded(1, 3, 96, 96)
    turned = units_to_images(images_to_units(images).flip(1, 2))
    mask = (nothing_masked(1, 6),) if masked else ()

    def difference() -> Tensor:
        out, other = maps(model, images, *mask)[0], maps(model, turned, *mask)[0]
        return (out[:, 0] - other[:, 0]).abs().max()  # of the class token

    assert difference() > 1e-3
    for layer in model.layers:
        layer.attn.position_table.zero_()
    assert difference() < 1e-5


# Training


@pytest.mark.parametrize('masked', [False, True])
def test_recomputed_activations_give_the_same_gradients(masked: bool) -> None:
    found = []
    for with_cp in (False, True):
        model = made_lomar_vit(mask_token=True, with_cp=with_cp)
        (out,) = model(seeded(2, 3, 96, 96), draw(2, (6, 6)) if masked else None)
        (out * seeded(*out.shape, seed=1)).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize('positions', POSITIONS)
@with_and_without_mask_token
def test_autocast(mask_token: bool, positions: str) -> None:
    """bfloat16 (PyTorch 2.1 knows no other on a CPU) stays near float32."""
    found = []
    for enabled in (False, True):
        model = made_lomar_vit(mask_token=mask_token, positions=positions)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            (out,) = model(seeded(2, 3, 96, 96), draw(2, (6, 6)))
        (out.float() * seeded(*out.shape, seed=1)).mean().backward()
        found.append((out.float(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.isfinite().all() and (exact - rounded).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize('positions', POSITIONS)
@pytest.mark.parametrize('kind', ['windows', 'visible patches', 'whole image', 'attention in windows'])
def test_layers_add_in_full_precision(kind: str, positions: str) -> None:
    """Under autocast too: the sum of all branches is float32, whichever positions there are."""
    options = WINDOWED if kind == 'attention in windows' else {}
    model = made_lomar_vit(mask_token=kind == 'windows', positions=positions, **options)
    dtypes = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, args: dtypes.append(args[0].dtype))
    mask = draw(2, (6, 6)) if kind in ('windows', 'visible patches') else None
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(seeded(2, 3, 96, 96), mask)
    assert dtypes == [torch.float32] * len(model.layers)


@pytest.mark.parametrize('frozen', [1, 2])
def test_frozen_stages(frozen: int) -> None:
    """A frozen layer's table is frozen too; MMPretrain counts layers from 1 and takes tokens and patches with them."""
    model = LoMaRViT(ARCH, 96, positions='both', frozen_stages=frozen)
    fixed = ('patch_embed.', 'pos_embed', 'cls_token', *(f'layers.{i}.' for i in range(frozen)))
    fixed += ('ln1.',) if frozen == 2 else ()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(fixed)), name


def test_layer_depth() -> None:
    """Through the classifier, as layer decay asks: tokens and positions first, tables with their layer."""
    model = ImageClassifier(
        backbone=LoMaRViT(ARCH, 64, positions='both', mask_token=True),
        neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=16),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
    )
    first = [f'backbone.{name}' for name in ('patch_embed.', 'pos_embed', 'cls_token', 'mask_token')]
    expected = {
        **dict.fromkeys(first, 0),
        'backbone.layers.0.': 1,
        'backbone.layers.1.': 2,
        **dict.fromkeys(('backbone.ln1.', 'neck.norm.', 'head.fc.'), 3),
    }
    names = [name for name, _ in model.named_parameters()]
    assert 'backbone.layers.1.attn.position_table' in names
    assert {name: model.get_layer_depth(name) for name in names} == {
        name: (depth, 4) for name, depth in layers(names, expected).items()
    }


def test_initialisation_is_that_of_mae() -> None:
    """And tables start from zero: at first there are no relative positions."""
    model = LoMaRViT(ARCH, 64, positions='both', mask_token=True)
    model.init_weights()
    qkv, projection = model.layers[0].attn.qkv, model.patch_embed.projection
    for layer, inputs, outputs in ((qkv, 16, 48), (projection, 768, 16)):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
    for token in (model.cls_token, model.mask_token):
        assert 0.005 < token.std() < 0.05
    assert torch.equal(model.pos_embed, F.pad(sincos_position(4, 4, 16).flatten(0, 1), (0, 0, 1, 0))[None])
    assert not any(layer.attn.position_table.any() for layer in model.layers)


# Checkpoints


def saved(model: LoMaRViT, folder: Path) -> dict[str, str]:
    path = folder / 'model.pth'
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in model.state_dict().items()}), path)
    return dict(type='Pretrained', checkpoint=str(path))


@with_and_without_class
@pytest.mark.parametrize('img_size', [(64, 128), 384], ids=str)
@torch.no_grad()
def test_tables_carry_over_to_other_sizes(img_size: int | tuple[int, int], class_token: bool, tmp_path: Path) -> None:
    """Pre-trained on windows at 96 px, fine-tuned at any size: every value is taken as it is, bit for bit."""
    source = made_lomar_vit(mask_token=True)
    model = LoMaRViT(ARCH, img_size, with_cls_token=class_token, final_norm=False, init_cfg=saved(source, tmp_path))
    model.init_weights()
    own, theirs = model.state_dict(), source.state_dict()
    left = {'mask_token', 'ln1.weight', 'ln1.bias'} | (set() if class_token else {'cls_token'})
    assert theirs.keys() - own.keys() == left and not own.keys() - theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    assert own['layers.0.attn.position_table'].any()


@torch.no_grad()
def test_both_adds_tables_to_a_checkpoint_without(tmp_path: Path) -> None:
    """An MAE start: absolute positions are resized, new tables are zeros, and the outputs are the same."""
    source, images = made_lomar_vit(96, positions='absolute'), seeded(1, 3, 96, 96)
    init_cfg = saved(source, tmp_path)
    model = disturbed(LoMaRViT(ARCH, 96, positions='both', init_cfg=init_cfg))
    model.init_weights()
    torch.testing.assert_close(maps(model, images)[0], maps(source, images)[0])
    larger = LoMaRViT(ARCH, 128, positions='both', init_cfg=init_cfg)
    larger.init_weights()
    assert larger.pos_embed.shape == (1, 65, 16) and torch.equal(larger.pos_embed[:, 0], source.pos_embed[:, 0])


@pytest.mark.parametrize(
    ('source', 'target', 'message'),
    [
        ('absolute', 'relative', r'missing: layers\.0\.attn\.position_table, .*unexpected: pos_embed'),
        ('relative', 'absolute', r'missing: pos_embed; unexpected: layers\.0\.attn\.position_table'),
        ('relative', 'both', r'missing: pos_embed'),
        ('both', 'relative', r'unexpected: pos_embed'),
    ],
)
def test_other_kinds_of_positions_are_named(source: str, target: str, message: str, tmp_path: Path) -> None:
    """Nothing trains silently without what it was pre-trained with."""
    model = LoMaRViT(ARCH, 96, positions=target, init_cfg=saved(made_lomar_vit(positions=source), tmp_path))
    with pytest.raises(ValueError, match=rf'does not fit LoMaRViT, nothing was loaded\. {message}'):
        model.init_weights()


def test_half_of_the_tables_is_an_error(tmp_path: Path) -> None:
    """Tables are added where there are none; a damaged file is none of those."""
    state = made_lomar_vit(positions='both').state_dict()
    del state['layers.1.attn.position_table']
    torch.save(state, tmp_path / 'model.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    with pytest.raises(ValueError, match=r'missing: layers\.1\.attn\.position_table$'):
        LoMaRViT(ARCH, 96, positions='both', init_cfg=init_cfg).init_weights()


# Sizes and errors


@pytest.mark.parametrize(
    ('arch', 'patch_size', 'millions'),
    [('test', 16, 0.5), ('small', 16, 21.6), ('base', 16, 85.6), ('base', 8, 85.2), ('large', 16, 303.1)],
)
def test_true_sizes(arch: str, patch_size: int, millions: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual ViTs without absolute positions, and 50 vectors of a head's width in each layer."""
    for name in ('kaiming_uniform_', 'uniform_', 'xavier_uniform_'):  # memory that is never written is never taken
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    model = LoMaRViT(arch, patch_size=patch_size)
    tables = {name: p.shape for name, p in model.named_parameters() if name.endswith('position_table')}
    width = 24 if arch == 'test' else 64
    assert set(tables.values()) == {(1, width, 50)} and len(tables) == model.num_layers
    count = sum(p.numel() for name, p in model.named_parameters() if name not in tables)
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(positions='rotary'), "positions is 'rotary', but it must be one of relative, absolute, both"),
        (dict(window_size=-1, with_cls_token=False), 'window_size is -1 .* must be positive, or 0 for none'),
        (dict(window_size=3), 'window_size is 3 and with_cls_token True, .* a class token has no place in windows'),
        (dict(WINDOWED, global_layers=(2,)), r'global_layers is \(2,\), but layers are counted 0\.\.1'),
        (dict(WINDOWED, global_layers=(-1,)), r'global_layers is \(-1,\), but'),
        (dict(global_layers=(0,)), r'global_layers is \(0,\), .* without window_size all of them are global'),
        (
            dict(patch_cfg=dict(stride=8)),
            "patch_size is 16 and patch_cfg {'stride': 8}, but patches must be squares side by side",
        ),
        (
            dict(patch_cfg=dict(norm_cfg=dict(type='LN'))),
            r'patch_size is 16 and patch_cfg .*LN.*, but .* projected and nothing else',
        ),
    ],
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoMaRViT(ARCH, 96, **kwargs)


def test_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'secondary_token'"):
        LoMaRViT(ARCH, secondary_token=True)
