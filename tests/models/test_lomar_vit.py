"""LoMaRViT: windows against a slow encoder, whole images, attention in windows, checkpoints.

What it shares with UMViT is in test_plain_vit.py, ViTDet's use of it in tests/detection/test_vitdet.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.masking import WindowMask, images_to_units, units_to_images
from mm_ummae.models import LoMaRViT
from mm_ummae.models.layers import TokenPositions, bucket_map
from tests.builders import VIT, disturbed, draw_windows, maps, noisy, pixels, seeded

DRAW = (4, 2, 0.7)  # window_size, num_windows and mask_ratio: 5 visible and 11 masked patches
WINDOWED = dict(window_size=3, with_cls_token=False)
all_positions = pytest.mark.parametrize('positions', ['relative', 'absolute', 'both'])
with_and_without_class = pytest.mark.parametrize('class_token', [True, False], ids=['class', 'no-class'])
with_and_without_mask_token = pytest.mark.parametrize('mask_token', [True, False], ids=['simple', 'asymmetric'])


def made_vit(img_size: int | tuple[int, int] = 96, **kwargs) -> LoMaRViT:
    """Every parameter is moved, tables included, so that each has an effect."""
    torch.manual_seed(0)
    return disturbed(LoMaRViT(VIT, img_size, **kwargs))


def nothing_masked(n: int, side: int) -> WindowMask:
    """One window that is the whole image, all of it visible."""
    everything = torch.arange(side**2).expand(n, -1)
    return WindowMask(torch.arange(n), torch.zeros(n, 2).long(), everything, everything[:, :0], side, (side, side), n)


def slow_windows(model: LoMaRViT, images: Tensor, mask: WindowMask) -> Tensor:
    """Sequence by sequence: embed whole images, cut the window, replace or drop masked patches, run the layers."""
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
            if model.pos_embed is not None:  # of the nominal grid here
                token = token + model.pos_embed[0, model.num_extra_tokens + row * mask.grid[1] + column]
            tokens.append(token)
            kept.append(inside)
        buckets = full[kept][:, kept]
        if model.cls_token is not None:
            first = model.cls_token[0, 0] + (0 if model.pos_embed is None else model.pos_embed[0, 0])
            tokens = [first, *tokens]
            buckets = F.pad(buckets, (1, 0, 1, 0), value=49)
        x = torch.stack(tokens)[None]
        for layer in model.layers:
            x = layer(x, TokenPositions(buckets))
        outs.append(model.ln1(x)[0])
    return torch.stack(outs)


# Windows


@all_positions
@with_and_without_class
@with_and_without_mask_token
@torch.no_grad()
def test_windows_equal_a_slow_encoder(mask_token: bool, class_token: bool, positions: str) -> None:
    """Sequence by sequence, with both pairings."""
    model = made_vit((96, 112), positions=positions, mask_token=mask_token, with_cls_token=class_token)
    images = seeded(2, 3, 96, 112)
    for pairing in ('all', 'published'):
        mask = draw_windows(2, (6, 7), *DRAW, pairing=pairing)
        (out,) = maps(model, images, mask)
        assert out.shape == (4, class_token + (16 if mask_token else 5), 16)
        torch.testing.assert_close(out, slow_windows(model, images, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('positions', ['absolute', 'both'])
@torch.no_grad()
def test_absolute_positions_are_those_of_the_image(positions: str) -> None:
    """At another size than the nominal one: resized, then taken where the window is."""
    model, images = made_vit(128, positions=positions, mask_token=True), seeded(2, 3, 96, 112)
    resized = made_vit((96, 112), positions=positions, mask_token=True)
    resized.load_state_dict({**model.state_dict(), 'pos_embed': model._resized_positions((6, 7))})
    mask = draw_windows(2, (6, 7), *DRAW)
    torch.testing.assert_close(maps(model, images, mask)[0], maps(resized, images, mask)[0])


@all_positions
@with_and_without_class
@torch.no_grad()
def test_a_window_of_everything_is_the_whole_image(class_token: bool, positions: str) -> None:
    model = made_vit(with_cls_token=class_token, positions=positions, out_type='raw')
    images = seeded(2, 3, 96, 96)
    windows = maps(model, images, nothing_masked(2, 6))[0]
    torch.testing.assert_close(windows, maps(model, images)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('patch_size', [8, 16])
@with_and_without_mask_token
def test_exactly_the_visible_pixels_reach_the_encoder(mask_token: bool, patch_size: int) -> None:
    """Masked pixels and those outside the windows change not even a last bit, and get no gradient."""
    model = made_vit(mask_token=mask_token, patch_size=patch_size)
    side = 96 // patch_size
    images, mask = seeded(2, 3, 96, 96), draw_windows(2, (side, side), *DRAW)
    unseen = pixels(mask.unsampled(), 96, patch_size)
    assert (mask.unsampled() & mask.predicted()).any() and (mask.unsampled() & ~mask.predicted()).any()
    assert torch.equal(maps(model, images, mask)[0], maps(model, noisy(images, unseen), mask)[0])
    images.requires_grad_()
    model(images, mask)[0].square().sum().backward()
    assert torch.equal(images.grad != 0, ~unseen.expand_as(images))
    assert not mask_token or model.mask_token.grad.abs().min() > 0


def test_only_visible_patches_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four windows of 7x7 at ratio 0.8 embed 40 patches of the 196 of an image, and attention sees 50 tokens."""
    model, seen = made_vit(224, mask_token=True), []
    embed = LoMaRViT._embed_patches
    monkeypatch.setattr(LoMaRViT, '_embed_patches', lambda self, x: seen.append(x.shape) or embed(self, x))
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(seeded(2, 3, 224, 224), draw_windows(2, (14, 14), 7, 4, 0.8))
    assert seen == [(8, 10, 768), (8, 50, 16)]


@pytest.mark.parametrize(
    ('patch_size', 'n', 'size', 'message'),
    [
        (16, 2, (90, 96), r'image height is 90 px.*multiple of 16 px'),
        (8, 2, (96, 100), r'image width is 100 px.*multiple of 8 px'),
        (16, 3, (96, 96), r'mask is for 2 images of \(6, 6\) patches, but 3 images of \(6, 6\) came'),
        (16, 2, (96, 112), r'mask is for 2 images of \(6, 6\) patches, but 2 images of \(6, 7\) came'),
    ],
)
def test_masks_of_other_images(patch_size: int, n: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_vit(mask_token=True, patch_size=patch_size)(seeded(n, 3, *size), draw_windows(2, (6, 6), *DRAW))


def test_other_kinds_of_masks_are_refused() -> None:
    with pytest.raises(ValueError, match='mask is a Tensor, but LoMaRViT takes a WindowMask'):
        made_vit(mask_token=True)(seeded(2, 3, 96, 96), torch.zeros(2, 6, 6))


# Whole images


@with_and_without_class
@pytest.mark.parametrize('patch_size', [8, 16])
@torch.no_grad()
def test_maps_of_any_size(patch_size: int, class_token: bool) -> None:
    """Relative positions need no resizing; sides that are no multiple of the patch are padded."""
    model = made_vit(patch_size=patch_size, with_cls_token=class_token, out_indices=[0, 1])
    for size in ((96, 96), (64, 160), (150, 90)):
        outs = maps(model, seeded(1, 3, *size))
        assert [out.shape for out in outs] == 2 * [(1, 16, -(-size[0] // patch_size), -(-size[1] // patch_size))]
        assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize('masked', [False, True])
@torch.no_grad()
def test_tables_encode_the_order_of_patches(masked: bool) -> None:
    """Without them, and without absolute positions, the patches of an image are a set."""
    model, images = made_vit(mask_token=True, out_type='raw'), seeded(1, 3, 96, 96)
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


@pytest.mark.parametrize('with_cp', [True, 'ffn'])
@pytest.mark.parametrize('masked', [False, True])
def test_recomputed_activations_give_the_same_gradients(masked: bool, with_cp: bool | str) -> None:
    found = []
    for recompute in (False, with_cp):
        model = made_vit(mask_token=True, with_cp=recompute)
        (out,) = model(seeded(2, 3, 96, 96), draw_windows(2, (6, 6), *DRAW) if masked else None)
        (out * seeded(*out.shape, seed=1)).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@all_positions
@pytest.mark.parametrize('kind', ['windows', 'visible patches', 'whole image', 'attention in windows'])
def test_layers_add_in_full_precision(kind: str, positions: str) -> None:
    """Under autocast too, the sum of all branches is float32, whichever positions there are."""
    options = WINDOWED if kind == 'attention in windows' else {}
    model, dtypes = made_vit(mask_token=kind == 'windows', positions=positions, **options), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    mask = draw_windows(2, (6, 6), *DRAW) if kind in ('windows', 'visible patches') else None
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(seeded(2, 3, 96, 96), mask)
    assert dtypes == [torch.float32] * len(model.layers)


# Checkpoints


def saved(model: LoMaRViT, folder: Path, *dropped: str) -> dict[str, str]:
    state = {f'backbone.{name}': value for name, value in model.state_dict().items() if name not in dropped}
    torch.save(dict(state_dict=state), folder / 'model.pth')
    return dict(type='Pretrained', checkpoint=str(folder / 'model.pth'))


@with_and_without_class
@pytest.mark.parametrize('img_size', [(64, 128), 384], ids=str)
def test_tables_fit_other_sizes(img_size: int | tuple[int, int], class_token: bool, tmp_path: Path) -> None:
    """Pre-trained on windows at 96 px, fine-tuned at any size: every value is taken as it is."""
    source = made_vit(mask_token=True)
    model = LoMaRViT(VIT, img_size, with_cls_token=class_token, final_norm=False, init_cfg=saved(source, tmp_path))
    model.init_weights()
    own, theirs = model.state_dict(), source.state_dict()
    dropped = {'mask_token', 'ln1.weight', 'ln1.bias'} | (set() if class_token else {'cls_token'})
    assert theirs.keys() - own.keys() == dropped and not own.keys() - theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    assert own['layers.0.attn.position_table'].any()


@pytest.mark.parametrize(
    ('source', 'target', 'dropped', 'message'),
    [
        ('absolute', 'relative', [], r'missing: layers\.0\.attn\.position_table, .*unexpected: pos_embed'),
        ('relative', 'absolute', [], r'missing: pos_embed; unexpected: layers\.0\.attn\.position_table'),
        ('relative', 'both', [], r'missing: pos_embed'),
        ('both', 'relative', [], r'unexpected: pos_embed'),
        # Tables are added where there are none; here the file is damaged
        ('both', 'both', ['layers.1.attn.position_table'], r'missing: layers\.1\.attn\.position_table$'),
    ],
)
def test_other_positions_are_named(source: str, target: str, dropped: list[str], message: str, tmp_path: Path) -> None:
    init_cfg = saved(made_vit(positions=source), tmp_path, *dropped)
    with pytest.raises(ValueError, match=rf'does not fit LoMaRViT, nothing was loaded\. {message}'):
        LoMaRViT(VIT, 96, positions=target, init_cfg=init_cfg).init_weights()


# Sizes and errors


@pytest.mark.parametrize(
    ('arch', 'patch_size', 'millions'),
    [('test', 16, 0.5), ('small', 16, 21.6), ('base', 16, 85.6), ('base', 8, 85.2), ('large', 16, 303.1)],
)
def test_number_of_parameters(arch: str, patch_size: int, millions: float, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (dict(window_size=3), 'window_size is 3 and with_cls_token True, .* a class token belongs to no window'),
        (dict(WINDOWED, global_layers=(2,)), r'global_layers is \(2,\), but layers are counted 0\.\.1'),
        (dict(WINDOWED, global_layers=(-1,)), r'global_layers is \(-1,\), but'),
        (dict(global_layers=(0,)), r'global_layers is \(0,\), .* without window_size all of them are global'),
        (dict(with_cp='all'), "with_cp is 'all', but it must be False, True"),
        (
            dict(patch_cfg=dict(stride=8)),
            "patch_size is 16 and patch_cfg {'stride': 8}, but patches must be squares side by side",
        ),
        (
            dict(patch_cfg=dict(norm_cfg=dict(type='LN'))),
            r'patch_size is 16 and patch_cfg .*LN.*, but .* projected and nothing else',
        ),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoMaRViT(VIT, 96, **kwargs)
