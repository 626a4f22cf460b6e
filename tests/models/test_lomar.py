"""LoMaR: the loss against a loop, the information a prediction uses, reconstructions, masks and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
    train_losses,
)

DRAW = (4, 2, 0.7)  # window_size, num_windows and mask_ratio: 11 of 16 patches are masked
# The paper's architecture ablation: with mask tokens in the encoder (simple), or with a decoder (asymmetric)
ARMS = {
    'simple-relative': dict(),
    'simple-absolute': dict(positions='absolute', patch_size=8, class_token=False),
    'asymmetric-relative': dict(simple=False, patch_size=8, class_token=False),
    'asymmetric-absolute': dict(simple=False, positions='absolute'),
}
all_arms = pytest.mark.parametrize('arm', ARMS.values(), ids=ARMS)


def made_lomar(
    simple: bool = True,
    positions: str = 'relative',
    patch_size: int = 16,
    class_token: bool = True,
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
    predictor = dict(type='mm_ummae.LoMaRHead', in_channels=16 if simple else 24, patch_size=patch_size)
    cfg = dict(
        type='mm_ummae.LoMaR',
        backbone=changed(dict(encoder, with_cls_token=class_token), backbone),
        neck=None if simple and neck is None else changed(decoder, neck),
        head=changed(predictor, head),
        **WindowSampler(*DRAW)._asdict(),
    )
    return disturbed(MODELS.build({**cfg, **kwargs}), 0.1)


def changed(part: dict, changes: dict | None) -> dict:
    """A part of the model with changes, or the part of another type that takes its place."""
    return changes if changes and 'type' in changes else {**part, **(changes or {})}


def images_and_mask(model: LoMaR) -> tuple[Tensor, WindowMask]:
    side = 96 // model.backbone.patch_size
    return seeded(2, 3, 96, 96), draw_windows(2, (side, side), *DRAW)


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


@pytest.mark.parametrize(('patch_size', 'norm_pix', 'pairing'), [(16, True, 'all'), (8, False, 'published')])
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
def test_the_head_gets_tokens_of_masked_patches(arm: dict) -> None:
    """Without the class token and the visible patches."""
    model = made_lomar(**arm).eval()
    images, mask = images_and_mask(model)
    (tokens,) = model.backbone(images, mask)
    tokens = model.neck(tokens, mask) if model.with_neck else tokens
    class_token = arm.get('class_token', True)
    assert tokens.shape[:2] == (4, class_token + 16)
    expected = torch.stack([tokens[k, class_token + mask.masked[k]] for k in range(4)])
    assert torch.equal(model(images, mode='loss', mask=mask)['loss'], model.head.loss(expected, images, mask))


@all_arms
def test_masked_patches_do_not_leak(arm: dict) -> None:
    """Pixels masked in all windows have an effect on the target alone, and on no bit of a prediction."""
    model = made_lomar(**arm).eval()
    images, mask = images_and_mask(model)
    unseen, predicted = (pixels(units, 96, model.head.patch_size) for units in (mask.unsampled(), mask.predicted()))
    changed = noisy(images, unseen & predicted)
    with torch.no_grad():
        assert torch.equal(model._decode(images, mask), model._decode(changed, mask))
        outside = noisy(images, unseen & ~predicted)
        losses = [model(x, mode='loss', mask=mask)['loss'] for x in (images, changed, outside)]
    assert losses[0] == losses[2] != losses[1]
    images.requires_grad_()
    model._decode(images, mask).square().sum().backward()
    assert torch.equal(images.grad != 0, ~unseen.expand_as(images))


@all_arms
@torch.no_grad()
def test_visible_patches_have_an_effect_on_their_windows_alone(arm: dict) -> None:
    model = made_lomar(**arm).eval()
    images, mask = images_and_mask(model)
    patch = mask.patches()[0, mask.visible[0, 0]]
    here = (torch.arange(mask.grid[0] * mask.grid[1]) == patch) & torch.tensor([[True], [False]])
    changed = noisy(images, pixels(here, 96, model.head.patch_size))
    moved = (model._decode(images, mask) - model._decode(changed, mask)).abs().amax(-1) > 0
    shown = (mask.patches().gather(1, mask.visible) == patch).any(1) & (mask.image == 0)
    assert shown[0] and not shown.all()
    assert torch.equal(moved, shown[:, None].expand_as(moved))


@pytest.mark.parametrize(
    ('img_size', 'positions', 'class_token'),
    [((96, 112), 'absolute', True), (64, 'absolute', False), (64, 'relative', True)],
    ids=str,
)
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


@pytest.mark.parametrize(('norm_pix', 'pairing'), [(True, 'all'), (False, 'published')])
@torch.no_grad()
def test_perfect_prediction_reconstructs_the_windows(norm_pix: bool, pairing: str) -> None:
    """Patch layout, standardisation and normalisation are undone in the right order; windows are sorted by image."""
    model = made_lomar(head=dict(norm_pix=norm_pix), data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    raw, mask = (50 * seeded(2, 3, 96, 112) + 128).clamp(0, 255), draw_windows(2, (6, 7), *DRAW, pairing=pairing)
    images = (raw - model.data_preprocessor.mean) / model.data_preprocessor.std
    model.head.pred = Fixed(slow_targets(images, mask, norm_pix))
    assert model(images, mode='loss', mask=mask)['loss'] < 1e-6
    known = pixels(~mask.unsampled() | mask.predicted(), 96)
    for n, out in enumerate(model(images, mode='predict', mask=mask)):
        expected = torch.where(known[n], raw[n], torch.tensor(MEAN)[:, None, None])
        torch.testing.assert_close(out.reconstruction, expected, atol=1e-2, rtol=0)
        assert torch.equal(out.unsampled.flatten(), mask.unsampled()[n]) and torch.equal(out.hidden, out.unsampled)
        own = (mask.image == n).nonzero().flatten()
        assert torch.equal(out.window_corner, mask.corner[own])
        masked = torch.zeros(2, 16, dtype=torch.bool).scatter(1, mask.masked[own], True)
        assert torch.equal(out.window_masked, masked.view(2, 4, 4))
        for (top, left), window in zip((16 * out.window_corner).tolist(), out.window_reconstruction, strict=True):
            torch.testing.assert_close(window, raw[n, :, top : top + 64, left : left + 64], atol=1e-2, rtol=0)


@torch.no_grad()
def test_statistics_of_visible_patches_show_what_the_network_knows() -> None:
    """Masked pixels then have no effect on what is predicted, in a window and in the whole image."""
    model = made_lomar(data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    images, mask = images_and_mask(model)
    unseen, predicted = (pixels(units, 96) for units in (mask.unsampled(), mask.predicted()))
    others = torch.where(unseen & predicted, 0.3 * images.roll(5, 3), images)
    found = {}
    for statistics in ('original', 'visible'):
        first, second = (model(x, mode='predict', mask=mask, statistics=statistics) for x in (images, others))
        found[statistics] = all(
            torch.equal(a.reconstruction, b.reconstruction)
            and torch.equal(a.window_reconstruction, b.window_reconstruction)
            for a, b in zip(first, second, strict=True)
        )
    assert found == dict(original=False, visible=True)


@torch.no_grad()
def test_overlapping_predictions_are_averaged() -> None:
    """Each sequence predicts a constant in its window; a patch that two windows mask becomes their mean."""
    model, images = made_lomar(head=dict(norm_pix=False)).eval(), seeded(2, 3, 96, 96)
    mask, values = draw_windows(2, (6, 6), 5, 2, 0.7), torch.tensor([10.0, 20.0, 30.0, 50.0])
    model.head.pred = Fixed(values[:, None, None].expand(4, mask.masked.shape[1], 768))
    for n, out in enumerate(model(images, mode='predict', mask=mask)):
        sequences = (2 * n, 2 * n + 1)
        for k, window in zip(sequences, images_to_units(out.window_reconstruction).flatten(1, 2), strict=True):
            assert (window[mask.masked[k]] == values[k]).all()
        patches = images_to_units(out.reconstruction[None])[0].flatten(0, 1)
        counts = set()
        for patch in range(36):
            times = [k for k in sequences if patch in mask.patches()[k, mask.masked[k]]]
            counts.add(len(times))
            if times:
                torch.testing.assert_close(patches[patch], values[times].mean().expand(768))
        assert counts == {0, 1, 2}


# Masks and settings


@pytest.mark.parametrize('pairing', PAIRINGS)
@torch.no_grad()
def test_mask_is_drawn_each_step(pairing: str) -> None:
    """Two steps see different windows, a seed repeats a step, and the draw is the documented one."""
    model, images, losses = made_lomar(pairing=pairing).eval(), seeded(2, 3, 96, 112), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    mask = draw_windows(2, (6, 7), *DRAW, pairing=pairing)
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]
    drawn = model.draw_mask(2, (96, 112), generator=torch.Generator().manual_seed(0))
    assert all(map(torch.equal, drawn[:4], mask[:4]))
    assert model.draw_mask(2, (96, 112), device='meta').masked.device.type == 'meta'


MASK = draw_windows(2, (6, 6), *DRAW)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('size', 'mask', 'message'),
    [
        ((48, 100), None, r'image width is 100 px.*multiple of 8 px'),
        ((48, 24), None, r'window_size is 4, but it must be in 1\.\.3'),
        ((48, 56), MASK, r'mask is for 2 images of \(6, 6\) patches, but 2 images of \(6, 7\) patches'),
        ((48, 48), MASK._replace(corner=MASK.corner + 3), r'mask\.corner must be in 0\.\.\(2, 2\)'),
    ],
    ids=['side', 'size', 'grid', 'corner'],
)
def test_images_and_masks_that_do_not_fit(size: tuple[int, int], mask: WindowMask, message: str, mode: str) -> None:
    """In every mode; tests/masking/test_windows.py has all messages."""
    with pytest.raises(ValueError, match=message):
        made_lomar(patch_size=8)(seeded(2, 3, *size), mode=mode, mask=mask)


ASYMMETRIC = dict(simple=False)
OTHER_VIT = dict(type='mm_ummae.UMViT', arch=VIT, img_size=96)
OTHER_DECODER = dict(type='mm_ummae.UMViTDecoder', in_channels=16, embed_dims=24, num_heads=2)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(window_size=7), r'window_size is 7, but it must be in 1\.\.6: the image is a grid of 6x6 patches'),
        (dict(num_windows=4), r'num_windows is 4, but it must be in 1\.\.3'),
        (dict(mask_ratio=1), r'mask_ratio is 1, but it must be in \(0, 1\)'),
        (dict(pairing='none'), "pairing is 'none', but it must be one of all, published"),
        (dict(img_size=100), r'image height is 100 px, but masking needs a positive multiple of 16 px'),
        (dict(backbone=dict(patch_size=8)), r'backbone\.patch_size is 8 and head\.patch_size 16, but they must be'),
        (dict(backbone=dict(mask_token=False)), r'backbone\.mask_token is False and neck None, but exactly one'),
        (dict(ASYMMETRIC, backbone=dict(mask_token=True)), r'backbone\.mask_token is True and neck \{.*exactly one'),
        (dict(ASYMMETRIC, neck=dict(positions='both')), "positions is 'both', but LoMaRDecoder's must be relative or"),
        (dict(head=dict(in_channels=17)), r'head\.in_channels is 17, but the tokens it gets have 16 channels'),
        (dict(ASYMMETRIC, neck=dict(in_channels=17)), r'neck\.in_channels is 17, but .* have 16 channels'),
        (dict(ASYMMETRIC, head=dict(in_channels=16)), r'head\.in_channels is 16, but .* have 24 channels'),
        (dict(backbone=OTHER_VIT), 'backbone is UMViT and head LoMaRHead, but'),
        (dict(head=dict(type='mm_ummae.UMMAEHead', in_channels=16)), 'backbone is LoMaRViT and head UMMAEHead, but'),
        (dict(neck=OTHER_DECODER), r'neck is UMViTDecoder, but LoMaR takes mm_ummae\.LoMaRDecoder'),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_lomar(**kwargs)


# Training


@all_arms
def test_gradients_reach_everything(arm: dict) -> None:
    model = made_lomar(**arm)
    model(seeded(2, 3, 80, 144), mode='loss')['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != 'backbone.pos_embed')
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    tables = [name for name, _ in model.named_parameters() if name.endswith('position_table')]
    assert len(tables) == (0 if 'positions' in arm else 2 + model.with_neck)


@all_arms
def test_autocast(arm: dict) -> None:
    """In bfloat16 the loss is float32 and near that of float32, and every gradient is finite."""
    losses, gradients = [], []
    for enabled in (False, True):
        model = made_lomar(**arm)
        images, mask = images_and_mask(model)
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
def test_a_step_never_synchronises(arm: dict) -> None:
    """Draw, forward, loss, backward and predict read no value, so that the host can run ahead of a GPU."""
    model = made_lomar(**arm, backbone=dict(drop_path_rate=0.2))
    images = seeded(2, 3, 96, 112)
    with Recorder() as recorder:
        model(images, mode='loss')['loss'].backward()
        model(images, mode='predict')
    assert 'addmm' in recorder.names and {'argsort', 'sort'} & recorder.names
    assert not recorder.waiting


@pytest.mark.integration
@pytest.mark.parametrize(('simple', 'positions'), [(True, 'relative'), (False, 'absolute')])
def test_overfits_one_batch(simple: bool, positions: str) -> None:
    model = made_lomar(simple, positions, img_size=64, window_size=3)
    losses = train_losses(model, 100, draw_windows(2, (4, 4), 3, 2, 0.7))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.integration
@pytest.mark.slow
def test_loss_is_one_graph_for_all_steps() -> None:
    """From the draw of windows to the gradients; new windows are new data, not a new program."""
    model, counter = made_lomar(backbone=dict(arch=dict(VIT, num_layers=1))), CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()

    def loss(images: Tensor) -> Tensor:
        return model.loss(images)['loss']

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for seed in range(2):
        both = []
        for function in (compiled, loss):
            torch.manual_seed(seed)
            value = function(seeded(2, 3, 96, 96))
            both.append((value, *torch.autograd.grad(value, list(model.parameters()))))
        for ours, expected in zip(*both, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1
