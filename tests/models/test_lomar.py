"""LoMaR: the loss against a loop, the information a prediction uses, reconstructions, masks and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mm_ummae.masking import PAIRINGS, WindowMask, WindowSampler, images_to_units, sincos_position
from mm_ummae.models import LoMaR, LoMaRDecoder, LoMaRHead
from mm_ummae.registry import MODELS
from tests.builders import (
    MEAN,
    STD,
    VIT,
    Recorder,
    disturbed,
    draw_windows,
    noisy,
    pixels,
    seeded,
    slow_target,
    smooth_images,
)

DRAW = (4, 2, 0.7)  # window_size, num_windows and mask_ratio: 11 of 16 patches are masked
# The paper's architecture ablation: with mask tokens in the encoder (simple), or with a decoder (asymmetric)
ARMS = [(simple, positions) for simple in (True, False) for positions in ('relative', 'absolute')]
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
    """A model built as from a config, with disturbed weights."""
    torch.manual_seed(0)
    shared = dict(img_size=img_size, patch_size=patch_size, positions=positions)
    encoder = dict(type='mm_ummae.LoMaRViT', arch=VIT, learn_positions=False, mask_token=simple, **shared)
    decoder = dict(type='mm_ummae.LoMaRDecoder', in_channels=16, embed_dims=24, depth=1, num_heads=2, **shared)
    predictor = dict(
        type='mm_ummae.LoMaRHead', in_channels=16 if simple else 24, norm_pix=norm_pix, patch_size=patch_size
    )
    cfg = dict(
        type='mm_ummae.LoMaR',
        backbone={**encoder, **(backbone or {})},
        neck=None if simple else {**decoder, **(neck or {})},
        head={**predictor, **(head or {})},
        **WindowSampler(*DRAW)._asdict(),
    )
    return disturbed(MODELS.build({**cfg, **kwargs}), 0.1)


def slow_targets(images: Tensor, mask: WindowMask, norm_pix: bool, side: int = 16) -> Tensor:
    """(B, M, side² * 3): pixels of the masked patches of each window."""
    rows = []
    for image, (top, left), masked in zip(mask.image, mask.corner.tolist(), mask.masked.tolist(), strict=True):
        places = [divmod(inside, mask.window_size) for inside in masked]
        targets = [slow_target(images[image], top + row, left + column, norm_pix, side) for row, column in places]
        rows.append(torch.stack(targets))
    return torch.stack(rows)


class Fixed(nn.Module):
    """Stands in for the last linear layer and returns a given tensor."""

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
def test_loss_equals_a_loop(patch_size: int, norm_pix: bool, pairing: str) -> None:
    """Mean over masked patches of squared errors, each patch of each sequence by the token of its place."""
    torch.manual_seed(0)
    head, images = LoMaRHead(12, norm_pix, patch_size), 2 * seeded(2, 3, 64, 80) + 1
    mask = draw_windows(2, (64 // patch_size, 80 // patch_size), 3, 2, 0.7, pairing=pairing)
    tokens = seeded(4, 6, 12, seed=1)
    pred = tokens @ head.pred.weight.T + head.pred.bias
    expected = (pred - slow_targets(images, mask, norm_pix, patch_size)).square().mean()
    torch.testing.assert_close(head.loss(tokens, images, mask), expected)


@all_arms
@torch.no_grad()
def test_the_head_gets_tokens_of_masked_patches(simple: bool, positions: str) -> None:
    """Without the class token and the visible patches."""
    model, images, mask = made_lomar(simple, positions).eval(), seeded(2, 3, 96, 96), draw_windows(2, (6, 6), *DRAW)
    (tokens,) = model.backbone(images, mask)
    tokens = tokens if simple else model.neck(tokens, mask)
    assert tokens.shape[:2] == (4, 17)
    expected = torch.stack([tokens[k, 1 + mask.masked[k]] for k in range(4)])
    loss = model(images, mode='loss', mask=mask)['loss']
    assert torch.equal(loss, model.head.loss(expected, images, mask))


@all_arms
def test_masked_patches_do_not_leak(simple: bool, positions: str) -> None:
    """Pixels masked in all windows have an effect on the target alone, and on no bit of a prediction."""
    model, images, mask = made_lomar(simple, positions).eval(), seeded(2, 3, 96, 96), draw_windows(2, (6, 6), *DRAW)
    unseen = pixels(mask.unsampled(), 96)
    outside = pixels(mask.unsampled() & ~mask.predicted(), 96)
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
def test_visible_patches_have_an_effect_on_their_windows_alone(simple: bool, positions: str) -> None:
    model, images, mask = made_lomar(simple, positions).eval(), seeded(2, 3, 96, 96), draw_windows(2, (6, 6), *DRAW)
    patch = mask.patches()[0, mask.visible[0, 0]]
    changed = noisy(images, pixels((torch.arange(36) == patch) & torch.tensor([[True], [False]]), 96))
    moved = (model._decode(images, mask) - model._decode(changed, mask)).abs().amax(-1) > 0
    shown = (mask.patches().gather(1, mask.visible) == patch).any(1) & (mask.image == 0)
    assert shown[0] and not shown.all()
    assert torch.equal(moved, shown[:, None].expand_as(moved))


@pytest.mark.parametrize('class_token', [True, False])
@pytest.mark.parametrize('positions', ['relative', 'absolute'])
@pytest.mark.parametrize('img_size', [(96, 112), 64], ids=str)
@torch.no_grad()
def test_decoder_places_patches(img_size: int | tuple[int, int], positions: str, class_token: bool) -> None:
    """The input of the blocks patch by patch, also at other sizes than the nominal one."""
    torch.manual_seed(0)
    decoder, entered = LoMaRDecoder(6, positions, embed_dims=8, depth=1, num_heads=1, img_size=img_size), []
    decoder.mask_token.normal_()
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    mask, latent = draw_windows(2, (6, 7), *DRAW), seeded(4, class_token + 5, 6)
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


# Reconstructions


@all_arms
@pytest.mark.parametrize(('norm_pix', 'pairing'), [(True, 'all'), (False, 'published')])
@torch.no_grad()
def test_predict(norm_pix: bool, pairing: str, simple: bool, positions: str) -> None:
    """Through the data preprocessor and back, field by field."""
    model = made_lomar(simple, positions, norm_pix, pairing=pairing, data_preprocessor=PREPROCESSOR).eval()
    images = (50 * seeded(2, 3, 96, 112) + 128).clamp(0, 255).byte()
    samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
    outs = model.test_step(dict(inputs=images, data_samples=samples))
    assert [out.img_path for out in outs] == ['0.png', '1.png'] and 'image' not in samples[0]
    for out, image in zip(outs, images.float(), strict=True):
        assert out.image.shape == out.reconstruction.shape == (3, 96, 112)
        torch.testing.assert_close(out.image, image, atol=1e-3, rtol=0)
        assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 255
        assert out.unsampled.shape == out.hidden.shape == (6, 7) and torch.equal(out.unsampled, out.hidden)
        assert out.window_corner.shape == (2, 2) and out.window_corner.dtype == torch.int64
        assert out.window_masked.shape == (2, 4, 4) and out.window_masked.dtype == torch.bool
        assert out.window_masked.sum((1, 2)).tolist() == [11, 11]
        assert out.window_reconstruction.shape == (2, 3, 64, 64)
        for (top, left), masked, window in zip(
            (16 * out.window_corner).tolist(), out.window_masked, out.window_reconstruction, strict=True
        ):
            # Visible patches are those of the image, the others are not
            changed = (window - image[:, top : top + 64, left : left + 64]).abs() > 1e-3
            masked = masked.repeat_interleave(16, 0).repeat_interleave(16, 1)
            assert not changed[:, ~masked].any() and changed[:, masked].float().mean() > 0.9


@torch.no_grad()
def test_predict_uses_the_mask() -> None:
    """Windows are sorted by image, even if the sequences of the mask are not."""
    model, mask = made_lomar().eval(), draw_windows(2, (6, 6), *DRAW, pairing='published')
    outs = model(seeded(2, 3, 96, 96), mode='predict', mask=mask)
    for n, out in enumerate(outs):
        own = (mask.image == n).nonzero().flatten()
        assert torch.equal(out.window_corner, mask.corner[own])
        masked = torch.zeros(2, 16, dtype=torch.bool).scatter(1, mask.masked[own], True)
        assert torch.equal(out.window_masked.flatten(1), masked)
        assert torch.equal(out.unsampled.flatten(), mask.unsampled()[n])


@pytest.mark.parametrize('norm_pix', [True, False])
@torch.no_grad()
def test_perfect_prediction_reconstructs_the_windows(norm_pix: bool) -> None:
    """Patch layout, standardisation, overlaps and normalisation are undone in the right order; the rest is grey."""
    model = made_lomar(norm_pix=norm_pix, data_preprocessor=PREPROCESSOR).eval()
    raw, mask = (50 * seeded(2, 3, 96, 96) + 128).clamp(0, 255), draw_windows(2, (6, 6), *DRAW)
    images = (raw - model.data_preprocessor.mean) / model.data_preprocessor.std
    model.head.pred = Fixed(slow_targets(images, mask, norm_pix))
    assert model(images, mode='loss', mask=mask)['loss'] < 1e-6
    known = pixels(~mask.unsampled() | mask.predicted(), 96)
    for n, out in enumerate(model(images, mode='predict', mask=mask)):
        expected = torch.where(known[n], raw[n], torch.tensor(MEAN)[:, None, None])
        torch.testing.assert_close(out.reconstruction, expected, atol=1e-2, rtol=0)
        for (top, left), window in zip((16 * out.window_corner).tolist(), out.window_reconstruction, strict=True):
            torch.testing.assert_close(window, raw[n, :, top : top + 64, left : left + 64], atol=1e-2, rtol=0)


@torch.no_grad()
def test_overlapping_predictions_are_averaged() -> None:
    """Each sequence predicts a constant; a patch that two windows mask becomes their mean."""
    model, images = made_lomar(norm_pix=False).eval(), seeded(2, 3, 96, 96)
    mask, values = draw_windows(2, (6, 6), 5, 2, 0.7), torch.tensor([10.0, 20.0, 30.0, 50.0])
    model.head.pred = Fixed(values[:, None, None].expand(4, mask.masked.shape[1], 768))
    for n, out in enumerate(model(images, mode='predict', mask=mask)):
        patches = images_to_units(out.reconstruction[None])[0].flatten(0, 1)
        counts = set()
        for patch in range(36):
            times = [k for k in (2 * n, 2 * n + 1) if patch in mask.patches()[k, mask.masked[k]]]
            counts.add(len(times))
            if times:
                torch.testing.assert_close(patches[patch], values[times].mean().expand(768))
        assert counts == {0, 1, 2}


@torch.no_grad()
def test_tensor_mode_is_the_backbone_on_whole_images() -> None:
    model, images = made_lomar(), seeded(1, 3, 64, 112)
    model.eval()
    assert torch.equal(model(images)[0], model.backbone(images)[0]) and model(images)[0].shape == (1, 16, 4, 7)


# Masks and settings


@both_pairings
@torch.no_grad()
def test_mask_is_drawn_each_step(pairing: str) -> None:
    """Two steps see different windows, a seed repeats a step, and the draw is the documented one."""
    model, images, losses = made_lomar(pairing=pairing).eval(), seeded(2, 3, 96, 112), []
    assert model.sampler == (*DRAW, pairing)
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)
    mask = model.sampler.draw(2, (6, 7))
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]
    mask = draw_windows(2, (6, 7), *DRAW, pairing=pairing)
    drawn = model.draw_mask(2, (96, 112), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(own, other) for own, other in zip(drawn[:4], mask[:4], strict=True))
    assert model.draw_mask(2, (96, 112), device='meta').masked.device.type == 'meta'


MASK = draw_windows(2, (6, 6), *DRAW)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (draw_windows(2, (6, 7), *DRAW), r'mask is for 2 images of \(6, 7\) patches, but 2 images of \(6, 6\) patches'),
        (MASK._replace(corner=MASK.corner + 3), r'mask\.corner must be in 0\.\.\(2, 2\)'),
    ],
    ids=['grid', 'corner'],
)
def test_explicit_mask_is_checked(mask: WindowMask, message: str, mode: str) -> None:
    """In every mode; tests/masking/test_windows.py has all messages."""
    with pytest.raises(ValueError, match=message):
        made_lomar()(seeded(2, 3, 96, 96), mode=mode, mask=mask)


@pytest.mark.parametrize('patch_size', [8, 16])
def test_image_sides_are_checked(patch_size: int) -> None:
    model = made_lomar(patch_size=patch_size)
    with pytest.raises(ValueError, match=rf'image width is 100 px.*multiple of {patch_size} px'):
        model(seeded(1, 3, 96, 100), mode='loss')
    with pytest.raises(ValueError, match=r'window_size is 4, but it must be in 1\.\.'):
        model(seeded(1, 3, 96, 3 * patch_size), mode='predict')


ASYMMETRIC = dict(simple=False)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(window_size=7), r'window_size is 7, but it must be in 1\.\.6: the image is a grid of 6x6 patches'),
        (dict(num_windows=4), r'num_windows is 4, but it must be in 1\.\.3'),
        (dict(mask_ratio=1), r'mask_ratio is 1, but it must be in \(0, 1\)'),
        (dict(mask_ratio=0.05), r'mask_ratio is 0\.05, but .* mask at least one'),
        (dict(pairing='none'), "pairing is 'none', but it must be one of all, published"),
        (dict(img_size=100), r'image height is 100 px, but masking needs a positive multiple of 16 px'),
        (dict(backbone=dict(patch_size=8)), r'backbone\.patch_size is 8 and head\.patch_size 16, but they must be'),
        (dict(backbone=dict(mask_token=False)), r'backbone\.mask_token is False and neck None, but exactly one'),
        (dict(ASYMMETRIC, backbone=dict(mask_token=True)), r'backbone\.mask_token is True and neck \{.*exactly one'),
        (dict(ASYMMETRIC, neck=dict(positions='both')), "positions is 'both', but LoMaRDecoder's must be relative or"),
        (dict(head=dict(in_channels=17)), r'head\.in_channels is 17, but the tokens it gets have 16 channels'),
        (dict(ASYMMETRIC, neck=dict(in_channels=17)), r'neck\.in_channels is 17, but .* have 16 channels'),
        (dict(ASYMMETRIC, head=dict(in_channels=16)), r'head\.in_channels is 16, but .* have 24 channels'),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_lomar(**kwargs)


@pytest.mark.parametrize(
    ('part', 'config', 'message'),
    [
        ('backbone', dict(type='mm_ummae.UMViT', arch=VIT, img_size=96), 'backbone is UMViT and head LoMaRHead, but'),
        ('head', dict(type='mm_ummae.UMMAEHead', in_channels=16), 'backbone is LoMaRViT and head UMMAEHead, but'),
        (
            'neck',
            dict(type='mm_ummae.UMViTDecoder', in_channels=16, embed_dims=24, num_heads=2),
            r'neck is UMViTDecoder, but LoMaR takes mm_ummae\.LoMaRDecoder',
        ),
    ],
    ids=['backbone', 'head', 'neck'],
)
def test_parts_of_other_algorithms_are_refused(part: str, config: dict, message: str) -> None:
    parts = dict(
        backbone=dict(type='mm_ummae.LoMaRViT', arch=VIT, img_size=96, mask_token=True),
        head=dict(type='mm_ummae.LoMaRHead', in_channels=16),
    )
    with pytest.raises(ValueError, match=message):
        LoMaR(**{**parts, part: config}, window_size=4, num_windows=2)


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        made_lomar(windows=4)


# Training


@all_arms
@pytest.mark.parametrize(('size', 'pairing'), [((96, 96), 'all'), ((80, 144), 'published')], ids=str)
def test_gradients_reach_everything(size: tuple[int, int], pairing: str, simple: bool, positions: str) -> None:
    model = made_lomar(simple, positions, pairing=pairing)
    model(seeded(2, 3, *size), mode='loss')['loss'].backward()
    tables = 0
    for name, parameter in model.named_parameters():
        tables += name.endswith('position_table')
        assert parameter.requires_grad == (name != 'backbone.pos_embed')
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert tables == (positions == 'relative') * (2 if simple else 3)


@pytest.mark.parametrize(
    ('size', 'windows', 'mask_ratio'), [(5, 8, 0.3), (7, 4, 0.9), (9, 3, 0.8), (11, 2, 0.3), (14, 1, 0.9)]
)
def test_windows_and_ratios_of_the_ablations(size: int, windows: int, mask_ratio: float) -> None:
    """At 224 px, with the encoder on 1 + w² tokens of each of N * W sequences."""
    model = made_lomar(img_size=224, window_size=size, num_windows=windows, mask_ratio=mask_ratio)
    entered = []
    model.backbone.layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0].shape))
    loss = model(seeded(2, 3, 224, 224), mode='loss')['loss']
    loss.backward()
    assert loss.isfinite() and entered == [(2 * windows, 1 + size**2, 16)]


@pytest.mark.parametrize('simple', [True, False])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_no_class_token_is_needed(patch_size: int, simple: bool) -> None:
    model = made_lomar(simple, patch_size=patch_size, backbone=dict(with_cls_token=False))
    outs = model(seeded(2, 3, 96, 96), mode='predict')
    assert outs[0].window_reconstruction.shape == (2, 3, 4 * patch_size, 4 * patch_size)
    assert model(seeded(2, 3, 96, 96), mode='loss')['loss'].isfinite()


@all_arms
def test_autocast(simple: bool, positions: str) -> None:
    """In bfloat16 the loss is float32 and near that of float32, and every gradient is finite."""
    images, mask = seeded(2, 3, 96, 96), draw_windows(2, (6, 6), *DRAW)
    losses, gradients = [], []
    for enabled in (False, True):
        model = made_lomar(simple, positions)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            loss = model(images, mode='loss', mask=mask)['loss']
            outs = model(images, mode='predict', mask=mask)
        loss.backward()
        assert loss.dtype == outs[0].reconstruction.dtype == outs[0].window_reconstruction.dtype == torch.float32
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@all_arms
@both_pairings
def test_a_step_never_synchronises(pairing: str, simple: bool, positions: str) -> None:
    """Draw, forward, loss, backward and predict read no value, so that the host can run ahead of a GPU."""
    model = made_lomar(simple, positions, pairing=pairing, backbone=dict(drop_path_rate=0.2))
    images = seeded(2, 3, 96, 112)
    with Recorder() as recorder:
        model(images, mode='loss')['loss'].backward()
        model(images, mode='predict')
    assert 'addmm' in recorder.names and {'argsort', 'sort'} & recorder.names
    assert not recorder.waiting


@pytest.mark.integration
@pytest.mark.parametrize(('simple', 'positions'), [(True, 'relative'), (False, 'absolute')])
def test_overfits_one_batch(simple: bool, positions: str) -> None:
    model, images, mask = made_lomar(simple, positions), smooth_images(2, 96), draw_windows(2, (6, 6), *DRAW)
    torch.manual_seed(0)
    model.init_weights()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(101):
        loss = model(images, mode='loss', mask=mask)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.integration
def test_compile() -> None:
    """The loss is one graph without breaks for every step, the drawing of windows included."""
    model, counter = made_lomar(backbone=dict(arch=dict(VIT, num_layers=1))), CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    model.check_mask = lambda *args: None  # reads values
    compiled = torch.compile(
        lambda images, mask: model.loss(images, mask=mask)['loss'], fullgraph=True, backend=counter
    )
    for seed in range(2):
        images, mask = smooth_images(2, 96), draw_windows(2, (6, 6), *DRAW, seed=seed)
        loss, expected = compiled(images, mask), model.loss(images, mask=mask)['loss']
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected)]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1
    drawn = torch.compile(lambda images: model.loss(images)['loss'], fullgraph=True, backend='aot_eager')
    assert drawn(images).isfinite()
