"""LoMaRViT: windows against a slow encoder, whole images, recomputation, checkpoints.

What it shares with UMViT is in test_plain_vit.py, ViTDet's use of it in tests/detection/test_vitdet.py, and what the
encoder may see in test_lomar.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.masking import WindowMask
from mm_ummae.models import LoMaRViT
from mm_ummae.models.layers import TokenPositions, bucket_map
from tests.builders import VIT, disturbed, draw_windows, maps, seeded

DRAW = (4, 2, 0.7)  # window_size, num_windows and mask_ratio: 5 visible and 11 masked patches
WINDOWED = dict(window_size=3, with_cls_token=False)
with_and_without_class = pytest.mark.parametrize('class_token', [True, False], ids=['class', 'no-class'])


def made_vit(img_size: int | tuple[int, int] = 96, **kwargs) -> LoMaRViT:
    """Every parameter is moved, tables included, so that each has an effect."""
    torch.manual_seed(0)
    return disturbed(LoMaRViT(VIT, img_size, **kwargs))


def slow_windows(model: LoMaRViT, images: Tensor, mask: WindowMask) -> Tensor:
    """Sequence by sequence: embed whole images, cut the window, replace or drop masked patches, run the layers."""
    embedded = model.patch_embed.projection(images).permute(0, 2, 3, 1)  # (N, h, w, C)
    positions = None if model.pos_embed is None else model._resized_positions(mask.grid)[0]
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
            if positions is not None:
                token = token + positions[model.num_extra_tokens + row * mask.grid[1] + column]
            tokens.append(token)
            kept.append(inside)
        buckets = full[kept][:, kept]
        if model.cls_token is not None:
            tokens = [model.cls_token[0, 0] + (0 if positions is None else positions[0]), *tokens]
            buckets = F.pad(buckets, (1, 0, 1, 0), value=49)
        x = torch.stack(tokens)[None]
        for layer in model.layers:
            x = layer(x, TokenPositions(buckets))
        outs.append(model.ln1(x)[0])
    return torch.stack(outs)


# Windows and whole images


@pytest.mark.parametrize('positions', ['relative', 'absolute', 'both'])
@with_and_without_class
@pytest.mark.parametrize('mask_token', [True, False], ids=['simple', 'asymmetric'])
@torch.no_grad()
def test_windows_equal_a_slow_encoder(mask_token: bool, class_token: bool, positions: str) -> None:
    """Absolute positions are those of the image, here of another size than the nominal one."""
    model = made_vit(128, positions=positions, mask_token=mask_token, with_cls_token=class_token)
    images, mask = seeded(3, 3, 96, 112), draw_windows(3, (6, 7), *DRAW, pairing='published')
    (out,) = maps(model, images, mask)
    assert out.shape == (6, class_token + (16 if mask_token else 5), 16)
    torch.testing.assert_close(out, slow_windows(model, images, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('positions', 'patch_size'), [('relative', 8), ('absolute', 16), ('both', 16)])
@torch.no_grad()
def test_a_window_of_everything_is_the_whole_image(positions: str, patch_size: int) -> None:
    model, images = made_vit(128, positions=positions, patch_size=patch_size, out_type='raw'), seeded(2, 3, 96, 96)
    side = 96 // patch_size
    everything = torch.arange(side**2).expand(2, -1)
    mask = WindowMask(torch.arange(2), torch.zeros(2, 2).long(), everything, everything[:, :0], side, (side, side), 2)
    torch.testing.assert_close(maps(model, images, mask)[0], maps(model, images)[0], atol=1e-5, rtol=1e-5)


def test_only_visible_patches_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four windows of 7x7 at ratio 0.8 embed 40 patches of the 196 of an image, and attention sees 50 tokens."""
    model, seen = made_vit(224, mask_token=True), []
    embed = LoMaRViT._embed_patches
    monkeypatch.setattr(LoMaRViT, '_embed_patches', lambda self, x: seen.append(x.shape) or embed(self, x))
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(seeded(2, 3, 224, 224), draw_windows(2, (14, 14), 7, 4, 0.8))
    assert seen == [(8, 10, 768), (8, 50, 16)]


MASK = draw_windows(2, (6, 6), *DRAW)


@pytest.mark.parametrize(
    ('n', 'size', 'mask', 'message'),
    [
        (2, (90, 96), MASK, r'image height is 90 px.*multiple of 16 px'),
        (3, (96, 96), MASK, r'mask is for 2 images of \(6, 6\) patches, but 3 images of \(6, 6\) came'),
        (2, (96, 112), MASK, r'mask is for 2 images of \(6, 6\) patches, but 2 images of \(6, 7\) came'),
        (2, (96, 96), torch.zeros(2, 6, 6), 'mask is a Tensor, but LoMaRViT takes a WindowMask'),
    ],
    ids=['size', 'batch', 'grid', 'kind'],
)
def test_other_masks_are_refused(n: int, size: tuple[int, int], mask: WindowMask | Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_vit(mask_token=True)(seeded(n, 3, *size), mask)


# Training


@pytest.mark.parametrize('masked', [False, True])
def test_recomputed_activations_give_the_same_gradients(masked: bool) -> None:
    found = []
    for with_cp in (False, True, 'ffn'):
        model = made_vit(mask_token=True, with_cp=with_cp)
        (out,) = model(seeded(2, 3, 96, 96), MASK if masked else None)
        (out * seeded(*out.shape, seed=1)).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) > 20
    for recomputed in found[1:]:
        torch.testing.assert_close(recomputed, found[0])


@pytest.mark.parametrize(('mask_token', 'mask'), [(True, MASK), (False, MASK), (False, None)])
def test_layers_add_in_full_precision(mask_token: bool, mask: WindowMask | None) -> None:
    """Under autocast too, the sum of all branches is float32, even without float32 positions and class token."""
    model, dtypes = made_vit(mask_token=mask_token, with_cls_token=False), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(seeded(2, 3, 96, 96), mask)
    assert dtypes == [torch.float32] * len(model.layers)


# Checkpoints


def saved(model: LoMaRViT, folder: Path, *dropped: str) -> dict[str, str]:
    state = {f'backbone.{name}': value for name, value in model.state_dict().items() if name not in dropped}
    torch.save(dict(state_dict=state), folder / 'model.pth')
    return dict(type='Pretrained', checkpoint=str(folder / 'model.pth'))


@with_and_without_class
def test_tables_fit_other_sizes(class_token: bool, tmp_path: Path) -> None:
    """Pre-trained on windows at 96 px, fine-tuned at any size: every value is taken as it is."""
    source = made_vit(mask_token=True)
    model = LoMaRViT(VIT, (64, 128), with_cls_token=class_token, final_norm=False, init_cfg=saved(source, tmp_path))
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


@pytest.mark.parametrize(('arch', 'millions'), [('small', 21.6), ('base', 85.6)])
def test_number_of_parameters(arch: str, millions: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual ViTs without absolute positions, and 50 vectors of a head's width in each layer."""
    for name in ('kaiming_uniform_', 'uniform_', 'xavier_uniform_'):  # memory that is never written is never taken
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    parameters = dict(LoMaRViT(arch).named_parameters())
    tables = [parameters.pop(f'layers.{i}.attn.position_table') for i in range(12)]
    assert {table.shape for table in tables} == {(1, 64, 50)}
    assert round(sum(p.numel() for p in parameters.values()) / 1e6, 1) == millions


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
        (dict(patch_cfg=dict(stride=8)), "patch_size is 16 and patch_cfg {'stride': 8}, but patches must be squares"),
        (dict(patch_cfg=dict(norm_cfg=dict(type='LN'))), 'patch_cfg .*LN.*, but .* projected and nothing else'),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoMaRViT(VIT, 96, **kwargs)
