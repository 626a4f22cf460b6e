"""LoMaR: what the loss is about, what hidden patches may not do, what ``predict`` gives back, and that it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mm_ummae.masking import images_to_units
from mm_ummae.models import LoMaR, LoMaRDecoder, LoMaRHead
from mm_ummae.masking import sincos_position
from mm_ummae.registry import MODELS
from mm_ummae.masking import PAIRINGS, WindowMask, draw_window_mask

from .test_lomar_vit import ARCH, by_pixel, draw
from tests.builders import disturbed, noisy, seeded
from .test_um_mae import MEAN, STD, Recorder, smooth_images

ARMS = [(simple, positions) for simple in (True, False) for positions in ('relative', 'absolute')]
# The paper's architecture ablation
all_arms = pytest.mark.parametrize(
    ('simple', 'positions'), ARMS, ids=[f'{"simple" if arm[0] else "asymmetric"}-{arm[1]}' for arm in ARMS]
)
both_pairings = pytest.mark.parametrize('pairing', PAIRINGS)
PREPROCESSOR = dict(mean=MEAN, std=STD)


def made_lomar(
    simple: bool = True,
    positions: str = 'relative',
    norm_pix: bool = True,
    patch_size: int = 16,
    img_size: int = 96,
    backbone: dict | None = None,
    neck: dict | None = None,
    head: dict | None = None,
    **kwargs: Any,
) -> LoMaR:
    """A model built as from a config, whose every parameter matters."""
    torch.manual_seed(0)
    encoder = dict(
        type='mm_ummae.LoMaRViT',
        arch=ARCH,
        img_size=img_size,
        patch_size=patch_size,
        positions=positions,
        learn_positions=False,
        mask_token=simple,
    )
    decoder = dict(
        type='mm_ummae.LoMaRDecoder',
        in_channels=16,
        embed_dims=24,
        depth=1,
        num_heads=2,
        positions=positions,
        patch_size=patch_size,
        img_size=img_size,
    )
    pixels = dict(type='mm_ummae.LoMaRHead', in_channels=16 if simple else 24, norm_pix=norm_pix, patch_size=patch_size)
    model = MODELS.build(
        dict(
            type='mm_ummae.LoMaR',
            backbone={**encoder, **(backbone or {})},
            neck=None if simple else {**decoder, **(neck or {})},
            head={**pixels, **(head or {})},
            **{**dict(window_size=4, num_windows=2, mask_ratio=0.7), **kwargs},
        )
    )
    return disturbed(model, 0.1)


def slow_patch(images: Tensor, mask: WindowMask, k: int, inside: int, patch: int = 16) -> Tensor:
    """Pixels of a patch of a window by (row, column, channel)."""
    row, column = divmod(inside, mask.window_size)
    row, column = row + mask.corner[k, 0].item(), column + mask.corner[k, 1].item()
    image = images[mask.image[k]]
    return image[:, patch * row : patch * (row + 1), patch * column : patch * (column + 1)].permute(1, 2, 0).flatten()


def slow_target(images: Tensor, mask: WindowMask, norm_pix: bool, patch: int = 16) -> Tensor:
    """(B, M, patch² * 3): pixels of masked patches, each standardised by its unbiased variance."""
    rows = []
    for k, masked in enumerate(mask.masked.tolist()):
        pixels = torch.stack([slow_patch(images, mask, k, inside, patch) for inside in masked])
        if norm_pix:
            mean = pixels.mean(1, keepdim=True)
            variance = (pixels - mean).square().sum(1, keepdim=True) / (pixels.shape[1] - 1)
            pixels = (pixels - mean) / (variance + 1e-6).sqrt()
        rows.append(pixels)
    return torch.stack(rows)


class Fixed(nn.Module):
    """Stands in for the last linear layer and returns what it was made with."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[:2] == self.out.shape[:2]
        return self.out


# Loss


@both_pairings
@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_loss_equals_loop(patch_size: int, norm_pix: bool, pairing: str) -> None:
    """Mean over masked patches of squared errors, each patch of each sequence by the token of its place."""
    torch.manual_seed(0)
    head = LoMaRHead(12, norm_pix, patch_size)
    images, mask = 2 * seeded(2, 3, 96, 112) + 1, draw(2, (96 // patch_size, 112 // patch_size), pairing=pairing)
    tokens = seeded(4, 11, 12, seed=1)
    pred = tokens @ head.pred.weight.T + head.pred.bias
    expected = (pred - slow_target(images, mask, norm_pix, patch_size)).square().mean()
    torch.testing.assert_close(head.loss(tokens, images, mask), expected)


@all_arms
@torch.no_grad()
def test_the_head_gets_tokens_of_masked_patches(simple: bool, positions: str) -> None:
    """The class token is dropped, and of the rest the visible ones."""
    model, images, mask = made_lomar(simple, positions).eval(), seeded(2, 3, 96, 96), draw(2, (6, 6))
    (tokens,) = model.backbone(images, mask)
    tokens = tokens if simple else model.neck(tokens, mask)
    assert tokens.shape[:2] == (4, 17)
    expected = torch.stack([tokens[k, 1 + mask.masked[k]] for k in range(4)])
    loss = model(images, mode='loss', mask=mask)['loss']
    assert torch.equal(loss, model.head.loss(expected, images, mask))


@all_arms
@pytest.mark.parametrize('norm_pix', [True, False])
def test_masked_patches_do_not_leak(norm_pix: bool, simple: bool, positions: str) -> None:
    """Masked in all windows: their pixels are in the target alone, and in no bit of a prediction."""
    model, images, mask = made_lomar(simple, positions, norm_pix).eval(), seeded(2, 3, 96, 96), draw(2, (6, 6))
    unseen = by_pixel(mask, mask.unsampled())
    outside = by_pixel(mask, mask.unsampled() & ~mask.predicted())
    assert (unseen & ~outside).any() and outside.any()
    changed = noisy(images, unseen & ~outside)
    with torch.no_grad():
        assert torch.equal(model._decode(images, mask), model._decode(changed, mask))
        losses = [model(x, mode='loss', mask=mask)['loss'] for x in (images, changed, noisy(images, outside))]
    assert losses[0] == losses[2] != losses[1]
    images.requires_grad_()
    model._decode(images, mask).square().sum().backward()
    assert torch.equal(images.grad != 0, ~unseen.expand_as(images))


@all_arms
@torch.no_grad()
def test_visible_patches_matter_to_their_window_alone(simple: bool, positions: str) -> None:
    """One visible patch changes every prediction of the windows that show it, and of no other."""
    model, images, mask = made_lomar(simple, positions).eval(), seeded(2, 3, 96, 96), draw(2, (6, 6))
    patch = mask.patches()[0, mask.visible[0, 0]]
    changed = noisy(images, by_pixel(mask, (torch.arange(36) == patch).expand(2, -1) & torch.tensor([[True], [False]])))
    moved = (model._decode(images, mask) - model._decode(changed, mask)).abs().amax(-1) > 0
    shown = (mask.patches().gather(1, mask.visible) == patch).any(1) & (mask.image == 0)
    assert shown[0] and not shown.all()
    assert torch.equal(moved, shown[:, None].expand_as(moved))


@both_pairings
@torch.no_grad()
def test_each_image_counts_equally(pairing: str) -> None:
    """The loss of a batch is the mean of the losses of its images alone, through their windows."""
    model, images, mask = made_lomar().eval(), seeded(3, 3, 96, 96), draw(3, (6, 6), pairing=pairing)
    losses = []
    for n, own in enumerate(mask.by_image()):
        parts = dict(zip(mask._fields[:4], (value[own] for value in mask[:4]), strict=True))
        alone = mask._replace(**parts | dict(image=torch.zeros(2).long()), batch_size=1)
        losses.append(model(images[n : n + 1], mode='loss', mask=alone)['loss'])
    assert len({round(loss.item(), 5) for loss in losses}) == 3
    together = model(images, mode='loss', mask=mask)['loss']
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-5, atol=0)


# Decoder


@pytest.mark.parametrize('class_token', [True, False])
@pytest.mark.parametrize('positions', ['relative', 'absolute'])
@pytest.mark.parametrize('img_size', [(96, 112), 64], ids=str)
@torch.no_grad()
def test_decoder_places_patches(img_size: int | tuple[int, int], positions: str, class_token: bool) -> None:
    """What enters the blocks, patch by patch, also at other sizes than the nominal one."""
    torch.manual_seed(0)
    decoder, entered = LoMaRDecoder(6, positions, embed_dims=8, depth=1, num_heads=1, img_size=img_size), []
    decoder.mask_token.normal_()
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    mask, latent = draw(2, (6, 7)), seeded(4, class_token + 5, 6)
    assert decoder(latent, mask).shape == (4, class_token + 16, 8)
    table = sincos_position(6, 7, 8).flatten(0, 1)
    for k, tokens in enumerate(entered[0]):
        kept = iter(decoder.expand(latent[k]))
        if class_token:
            torch.testing.assert_close(tokens[0], next(kept))
        masked = set(mask.masked[k].tolist())
        for inside, patch in enumerate(mask.patches()[k].tolist()):
            expected = decoder.mask_token.flatten() if inside in masked else next(kept)
            expected = expected + table[patch] if positions == 'absolute' else expected
            torch.testing.assert_close(tokens[class_token + inside], expected)


# Predict


@all_arms
@both_pairings
@pytest.mark.parametrize('norm_pix', [True, False])
@torch.no_grad()
def test_predict(norm_pix: bool, pairing: str, simple: bool, positions: str) -> None:
    """Through the data preprocessor and back, field by field."""
    model = made_lomar(simple, positions, norm_pix, pairing=pairing, data_preprocessor=PREPROCESSOR).eval()
    pictures = (50 * seeded(2, 3, 96, 112) + 128).clamp(0, 255).byte()
    samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
    outs = model.test_step(dict(inputs=pictures, data_samples=samples))
    assert [out.img_path for out in outs] == ['0.png', '1.png'] and 'image' not in samples[0]
    for out, picture in zip(outs, pictures.float(), strict=True):
        assert out.image.shape == out.reconstruction.shape == (3, 96, 112)
        torch.testing.assert_close(out.image, picture, atol=1e-3, rtol=0)
        assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 255
        assert out.unsampled.shape == out.hidden.shape == (6, 7) and torch.equal(out.unsampled, out.hidden)
        assert out.window_corner.shape == (2, 2) and out.window_corner.dtype == torch.int64
        assert out.window_masked.shape == (2, 4, 4) and out.window_masked.dtype == torch.bool
        assert out.window_masked.sum((1, 2)).tolist() == [11, 11]
        assert out.window_reconstruction.shape == (2, 3, 64, 64)
        inside, seen = (torch.zeros(96, 112, dtype=torch.bool) for _ in range(2))
        times, windows = torch.zeros(96, 112), torch.zeros(3, 96, 112)
        for (top, left), masked, window in zip(
            (16 * out.window_corner).tolist(), out.window_masked, out.window_reconstruction, strict=True
        ):
            place = (slice(top, top + 64), slice(left, left + 64))
            masked = masked.repeat_interleave(16, 0).repeat_interleave(16, 1)
            # Visible patches are the image's, the others are not
            changed = (window - picture[:, *place]).abs() > 1e-3
            assert not changed[:, ~masked].any() and changed[:, masked].float().mean() > 0.9
            inside[place], seen[place], times[place] = True, seen[place] | ~masked, times[place] + masked
            windows[:, *place] = torch.where(masked, window, windows[:, *place])
        assert torch.equal(out.unsampled.repeat_interleave(16, 0).repeat_interleave(16, 1), ~seen)
        # Several predictions of a patch are averaged before values are clipped: see the test of overlaps
        expected = torch.where(times > 0, windows, torch.where(inside, picture, torch.tensor(MEAN)[:, None, None]))
        compared = times < 2
        assert {0, 1} <= set(times.flatten().tolist()) and not inside.all()
        torch.testing.assert_close(out.reconstruction[:, compared], expected[:, compared], atol=1e-3, rtol=0)


@torch.no_grad()
def test_predict_uses_the_mask() -> None:
    """Windows come by image, also where sequences do not."""
    model, mask = made_lomar().eval(), draw(2, (6, 6), pairing='published')
    outs = model(seeded(2, 3, 96, 96), mode='predict', mask=mask)
    for n, out in enumerate(outs):
        own = (mask.image == n).nonzero().flatten()
        assert torch.equal(out.window_corner, mask.corner[own])
        masked = torch.zeros(2, 16, dtype=torch.bool).scatter(1, mask.masked[own], True)
        assert torch.equal(out.window_masked.flatten(1), masked)
        assert torch.equal(out.unsampled.flatten(), mask.unsampled()[n])


@pytest.mark.parametrize('norm_pix', [True, False])
@torch.no_grad()
def test_perfect_prediction_reconstructs_what_windows_hold(norm_pix: bool) -> None:
    """Patch layout, standardisation, overlaps and normalisation are undone in the right order."""
    model = made_lomar(norm_pix=norm_pix, data_preprocessor=PREPROCESSOR).eval()
    pictures = (50 * seeded(2, 3, 96, 96) + 128).clamp(0, 255)
    images, mask = (pictures - model.data_preprocessor.mean) / model.data_preprocessor.std, draw(2, (6, 6))
    model.head.pred = Fixed(slow_target(images, mask, norm_pix))
    assert model(images, mode='loss', mask=mask)['loss'] < 1e-6
    known = by_pixel(mask, ~mask.unsampled() | mask.predicted())
    for n, out in enumerate(model(images, mode='predict', mask=mask)):
        expected = torch.where(known[n], pictures[n], torch.tensor(MEAN)[:, None, None])
        torch.testing.assert_close(out.reconstruction, expected, atol=1e-2, rtol=0)
        for (top, left), window in zip((16 * out.window_corner).tolist(), out.window_reconstruction, strict=True):
            expected = pictures[n, :, top : top + 64, left : left + 64]
            torch.testing.assert_close(window, expected, atol=1e-2, rtol=0)


@torch.no_grad()
def test_overlapping_predictions_are_averaged() -> None:
    """Without standardisation: constants by sequence, and their mean where two windows mask a patch."""
    model, images, mask = made_lomar(norm_pix=False).eval(), seeded(2, 3, 96, 96), draw(2, (6, 6), size=5)
    values = torch.tensor([10.0, 20.0, 30.0, 50.0])
    model.head.pred = Fixed(values[:, None, None].expand(4, mask.masked.shape[1], 768))
    for n, out in enumerate(model(images, mode='predict', mask=mask)):
        patches = images_to_units(out.reconstruction[None])[0].flatten(0, 1)
        found = [set(), set(), set()]
        for patch in range(36):
            times = [k for k in (2 * n, 2 * n + 1) if patch in mask.patches()[k, mask.masked[k]]]
            found[len(times)].add(patch)
            if times:
                expected = values[times].mean().expand(768)
                torch.testing.assert_close(patches[patch], expected)
        assert all(found)


@torch.no_grad()
def test_tensor_mode_is_the_dense_backbone() -> None:
    model, images = made_lomar(), seeded(1, 3, 64, 112)
    model.eval()
    assert torch.equal(model(images)[0], model.backbone(images)[0]) and model(images)[0].shape == (1, 16, 4, 7)


# Mask


@both_pairings
@torch.no_grad()
def test_mask_is_drawn_each_step(pairing: str) -> None:
    """Two steps see other windows; a seed brings a step back, and what is drawn is the documented draw."""
    model, images, losses = made_lomar(pairing=pairing).eval(), seeded(2, 3, 96, 112), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)
    mask = draw_window_mask(2, (6, 7), 4, 2, 0.7, pairing)
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]
    mask = draw(2, (6, 7), pairing=pairing)
    drawn = model.draw_mask(2, (96, 112), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(own, other) for own, other in zip(drawn[:4], mask[:4], strict=True))
    assert model.draw_mask(2, (96, 112), device='meta').masked.device.type == 'meta'


MASK = draw(2, (6, 6))


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (draw(2, (6, 7)), r'mask is for 2 images of \(6, 7\) patches, but 2 images of \(6, 6\) patches came'),
        (draw(3, (6, 6)), r'mask is for 3 images'),
        (MASK._replace(image=torch.tensor([0, 0, 0, 1])), r'names the 2 images \[3, 1\] times'),
        (MASK._replace(corner=MASK.corner + 3), r'mask\.corner must be in 0\.\.\(2, 2\)'),
        (MASK._replace(masked=MASK.masked * 0), 'each patch of a window once'),
    ],
    ids=['grid', 'batch', 'image', 'corner', 'twice'],
)
def test_explicit_mask_is_checked(mask: WindowMask, message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_lomar()(seeded(2, 3, 96, 96), mode=mode, mask=mask)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_image_sides_are_checked(patch_size: int, mode: str) -> None:
    model = made_lomar(patch_size=patch_size)
    with pytest.raises(ValueError, match=rf'image width is 100 px.*multiple of {patch_size} px'):
        model(seeded(1, 3, 96, 100), mode=mode)
    with pytest.raises(ValueError, match=r'window_size is 4, but it must be in 1\.\.'):
        model(seeded(1, 3, 96, 3 * patch_size), mode=mode)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(window_size=7), r'window_size is 7, but it must be in 1\.\.6: the image is a grid of 6x6 patches'),
        (dict(num_windows=4), r'num_windows is 4, but it must be in 1\.\.3'),
        (dict(mask_ratio=1), r'mask_ratio is 1, but it must be in \(0, 1\)'),
        (dict(mask_ratio=0.05), r'mask_ratio is 0\.05, but .* mask at least one'),
        (dict(pairing='none'), "pairing is 'none', but it must be one of all, published"),
        (dict(backbone=dict(patch_size=8)), r'backbone\.patch_size is 8 and head\.patch_size 16, but they must be'),
        (dict(backbone=dict(mask_token=False)), r'backbone\.mask_token is False and neck None, but exactly one'),
        (dict(simple=False, backbone=dict(mask_token=True)), r'backbone\.mask_token is True and neck \{.*exactly one'),
        (
            dict(simple=False, neck=dict(positions='both')),
            "positions is 'both', but LoMaRDecoder's must be relative or",
        ),
        (dict(img_size=100), r'image height is 100 px, but masking needs a positive multiple of 16 px'),
        (dict(head=dict(in_channels=17)), r'head\.in_channels is 17, but the tokens it gets have 16 channels'),
        (
            dict(simple=False, neck=dict(in_channels=17)),
            r'neck\.in_channels is 17, but the tokens it gets have 16 channels',
        ),
        (
            dict(simple=False, head=dict(in_channels=16)),
            r'head\.in_channels is 16, but the tokens it gets have 24 channels',
        ),
        (dict(positions='rotary'), "positions is 'rotary', but it must be one of relative, absolute, both"),
    ],
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_lomar(**kwargs)


@pytest.mark.parametrize(
    ('part', 'config', 'message'),
    [
        ('backbone', dict(type='mm_ummae.UMViT', arch=ARCH, img_size=96), 'backbone is UMViT and head LoMaRHead, but'),
        ('head', dict(type='mm_ummae.UMMAEHead', in_channels=16), 'backbone is LoMaRViT and head UMMAEHead, but'),
        (
            'neck',
            dict(type='mm_ummae.UMViTDecoder', in_channels=16, embed_dims=24, num_heads=2),
            r'neck is UMViTDecoder, but LoMaR takes mm_ummae\.LoMaRDecoder',
        ),
    ],
)
def test_parts_of_other_kinds(part: str, config: dict, message: str) -> None:
    parts = dict(
        backbone=dict(type='mm_ummae.LoMaRViT', arch=ARCH, img_size=96, mask_token=True),
        head=dict(type='mm_ummae.LoMaRHead', in_channels=16),
    )
    with pytest.raises(ValueError, match=message):
        LoMaR(**{**parts, part: config}, window_size=4, num_windows=2)


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        made_lomar(windows=4)


# Training


def trained_parameters(model: LoMaR) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@all_arms
@both_pairings
@pytest.mark.parametrize('size', [(96, 96), (80, 144)], ids=str)
def test_gradients_reach_everything(size: tuple[int, int], pairing: str, simple: bool, positions: str) -> None:
    model = made_lomar(simple, positions, pairing=pairing)
    model(seeded(2, 3, *size), mode='loss')['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != 'backbone.pos_embed')
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    tables = [name for name in trained_parameters(model) if name.endswith('position_table')]
    assert len(tables) == (positions == 'relative') * (2 if simple else 3)


@pytest.mark.parametrize(('size', 'windows'), [(5, 8), (7, 4), (9, 3), (11, 2), (14, 1)])
@pytest.mark.parametrize('mask_ratio', [0.3, 0.8, 0.9])
def test_windows_and_ratios_of_the_ablations(mask_ratio: float, size: int, windows: int) -> None:
    """At 224 px, with the encoder on 1 + w² tokens of each of N * W sequences."""
    model = made_lomar(img_size=224, window_size=size, num_windows=windows, mask_ratio=mask_ratio)
    entered = []
    model.backbone.layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0].shape))
    loss = model(seeded(2, 3, 224, 224), mode='loss')['loss']
    loss.backward()
    assert loss.isfinite() and entered == [(2 * windows, 1 + size**2, 16)]


@pytest.mark.parametrize('patch_size', [8, 16])
def test_no_class_token_is_needed(patch_size: int) -> None:
    for simple in (True, False):
        model = made_lomar(simple, patch_size=patch_size, backbone=dict(with_cls_token=False))
        outs = model(seeded(2, 3, 96, 96), mode='predict')
        assert outs[0].window_reconstruction.shape == (2, 3, 4 * patch_size, 4 * patch_size)
        assert model(seeded(2, 3, 96, 96), mode='loss')['loss'].isfinite()


@all_arms
def test_autocast(simple: bool, positions: str) -> None:
    """In bfloat16 the loss stays near that of float32, and every gradient is finite."""
    images, mask = seeded(2, 3, 96, 96), draw(2, (6, 6))
    losses, gradients = [], []
    for enabled in (False, True):
        model = made_lomar(simple, positions)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            loss = model(images, mode='loss', mask=mask)['loss']
            outs = model(images, mode='predict', mask=mask)
        loss.backward()
        assert loss.dtype == outs[0].reconstruction.dtype == outs[0].window_reconstruction.dtype == torch.float32
        losses.append(loss)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained_parameters(model).values()]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@all_arms
@both_pairings
def test_a_step_never_waits_for_the_device(pairing: str, simple: bool, positions: str) -> None:
    """Draw, forward, loss, backward and predict look at no value: the host may run ahead of a GPU."""
    model = made_lomar(simple, positions, pairing=pairing, backbone=dict(drop_path_rate=0.2))
    images = seeded(2, 3, 96, 112)
    with Recorder() as recorder:
        model(images, mode='loss')['loss'].backward()
        model(images, mode='predict')
    assert 'addmm' in recorder.names and {'argsort', 'sort'} & recorder.names  # it did record
    assert not recorder.waiting


@all_arms
def test_overfits_one_batch(simple: bool, positions: str) -> None:
    """A hundred steps learn a batch through two windows by heart."""
    model, images, mask = made_lomar(simple, positions), smooth_images(2, 96), draw(2, (6, 6))
    torch.manual_seed(0)
    model.init_weights()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(121):
        loss = model(images, mode='loss', mask=mask)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_compile() -> None:
    """One graph without breaks is the loss of every step, drawing of windows included; new windows are new data."""
    model, counter = made_lomar(), CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda images, mask: model.loss(images, mask=mask)['loss'], fullgraph=True, backend=counter
    )
    # Checked before: that reads values
    model.check_mask = lambda *args: None
    for seed in range(3):
        images, mask = smooth_images(2, 96), draw(2, (6, 6), seed=seed)
        loss, expected = compiled(images, mask), model.loss(images, mask=mask)['loss']
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected)]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1
    drawn = torch.compile(lambda images: model.loss(images)['loss'], fullgraph=True, backend='aot_eager')
    assert drawn(images).isfinite()
