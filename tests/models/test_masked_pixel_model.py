"""Properties that UMMAE and UMSimMIM share: masks of a step, predictions, training with every backbone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import nn

from mm_ummae.masking import UniformMask, UnitMask, images_to_units
from mm_ummae.models import UMMAE, UMSimMIM
from mm_ummae.models.selfsup.masked_pixel_model import STATISTICS
from tests.builders import (
    BACKBONES,
    MEAN,
    SAMPLINGS,
    STD,
    Recorder,
    check_training,
    draw,
    draw_mask,
    made_simmim,
    made_ummae,
    pixels,
    seeded,
    train_losses,
)

Make = Callable[..., nn.Module]
CASES = {
    'UMMAE-UMSwin': (made_ummae, 'swin', 'uniform'),
    'UMMAE-UMPVT': (made_ummae, 'pvt', 'uniform'),
    'UMMAE-UMViT': (made_ummae, 'vit', 'uniform'),
    'UMMAE-UMViT-random': (made_ummae, 'vit', 'random'),
    'UMSimMIM-UMSwin': (made_simmim, 'swin', 'random'),
    'UMSimMIM-UMPVT-uniform': (made_simmim, 'pvt', 'uniform'),
}
all_cases = pytest.mark.parametrize(('make', 'kind', 'sampling'), CASES.values(), ids=CASES)


def ratio(make: Make) -> float:
    """Share of the kept units that a model hides again."""
    return 0.25 if make is made_ummae else 0.0


# Masks


@all_cases
def test_mask_is_drawn_each_step(make: Make, kind: str, sampling: str) -> None:
    """Two steps on the same images see different masks; a seed repeats a step, with the documented draw."""
    model, images, losses = make(kind, sampling).eval(), seeded(2, 3, 128, 128), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(images, mode='loss')['loss'].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(0)
    mask = SAMPLINGS[sampling](2, (128, 128), secondary_ratio=ratio(make))
    assert model(images, mode='loss', mask=mask)['loss'].item() == losses[0]
    assert model.draw_mask(2, (128, 96), device='meta').secondary.device.type == 'meta'


# Predictions


@all_cases
@pytest.mark.parametrize('to_rgb', [True, False])
def test_predict(to_rgb: bool, make: Make, kind: str, sampling: str) -> None:
    """Through the data preprocessor and back: ``image`` is the input image, in pixel values."""
    model = make(kind, sampling, data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=to_rgb)).eval()
    images = (50 * seeded(2, 3, 96, 160) + 128).clamp(0, 255).byte()
    samples = [DataSample(metainfo=dict(img_path=f'{i}.png')) for i in range(2)]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples))
    with torch.no_grad():
        outs = model(**data, mode='predict')
    assert [out.img_path for out in outs] == ['0.png', '1.png']
    assert 'image' not in data['data_samples'][0]  # copies were written
    for out, image in zip(outs, images.flip(1) if to_rgb else images, strict=True):
        torch.testing.assert_close(out.image, image.float(), atol=1e-3, rtol=0)
        assert out.reconstruction.shape == (3, 96, 160) and out.reconstruction.dtype == torch.float32
        assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 255
        assert out.unsampled.shape == out.hidden.shape == (6, 10)
        assert out.unsampled.sum() == 45 and out.hidden.sum() == 60 - int(15 * (1 - ratio(make)))


@pytest.mark.parametrize(('make', 'sampling'), [(made_ummae, 'uniform'), (made_simmim, 'random')])
def test_statistics_of_visible_units_show_what_the_network_knows(make: Make, sampling: str) -> None:
    """Hidden pixels then have no effect on a reconstruction; those of the original have one with norm_pix."""
    preprocessor = dict(mean=MEAN, std=STD)
    model = make('swin', sampling, head=dict(norm_pix=True), data_preprocessor=preprocessor).eval()
    images, mask = seeded(2, 3, 128, 128), draw_mask(sampling, 2, (128, 128), ratio(make))
    hidden = model._hidden(mask)
    others = torch.where(pixels(hidden, 128), 0.3 * images.roll(5, 3), images)
    found = {}
    for statistics in STATISTICS:
        with torch.no_grad():
            first, second = (model(x, mode='predict', mask=mask, statistics=statistics) for x in (images, others))
        assert {out.statistics for out in first} == {statistics}
        found[statistics] = [
            torch.equal(a.reconstruction, b.reconstruction) for a, b in zip(first, second, strict=True)
        ]
    assert found == dict(original=[False, False], visible=[True, True])
    units = images_to_units(images).flatten(1, 2)
    means, deviations = (
        torch.stack([stat[n][~hidden[n]].mean() for n in range(2)]) for stat in (units.mean(2), units.std(2))
    )
    plain = make('swin', sampling, head=dict(norm_pix=False)).eval()
    with torch.no_grad():
        raw = plain.head.predict(plain._decode(images, mask), images)
        shown = model.head.predict(model._decode(images, mask), images, ~hidden.view(2, 8, 8))
    torch.testing.assert_close(shown, raw * deviations.view(2, 1, 1, 1) + means.view(2, 1, 1, 1), atol=1e-4, rtol=1e-4)
    assert plain(images, mode='predict')[0].statistics is None


def test_unknown_statistics() -> None:
    with pytest.raises(ValueError, match="statistics is 'mean', but it must be one of original, visible"):
        made_ummae()(seeded(1, 3, 64, 64), mode='predict', statistics='mean')


def test_denormalize_without_preprocessing() -> None:
    """A model without mean and std returns the values unchanged, clipped to pixel values."""
    values = torch.tensor([-3.0, 0.5, 300.0]).expand(1, 3, 3).reshape(1, 3, 3, 1)
    assert made_ummae().denormalize(values)[0, 0, :, 0].tolist() == [0, 0.5, 255]


@all_cases
def test_reconstruct(make: Make, kind: str, sampling: str) -> None:
    """A seed gives the same masks, another seed others; neither gradients nor the global generator are touched."""
    model = make(kind, sampling, data_preprocessor=dict(mean=MEAN, std=STD)).eval()
    data = dict(inputs=seeded(2, 3, 64, 96), data_samples=[DataSample(), DataSample()])
    before = torch.random.get_rng_state()
    first, other = (model.reconstruct(data, seed=seed) for seed in (0, 1))
    assert torch.equal(before, torch.random.get_rng_state()) and not first[0].reconstruction.requires_grad
    mask = draw_mask(sampling, 2, (64, 96), ratio(make))  # the documented draw
    given = model.reconstruct(data, seed=1, mask=mask)
    for i in range(2):
        assert torch.equal(first[i].reconstruction, given[i].reconstruction)
        assert torch.equal(first[i].unsampled.flatten(), mask.unsampled()[i])
        assert not torch.equal(first[i].unsampled, other[i].unsampled)


@all_cases
@torch.no_grad()
def test_tensor_mode_is_the_dense_backbone(make: Make, kind: str, sampling: str) -> None:
    """Features for probing come from whole images, without a mask."""
    model, images = make(kind, sampling).eval(), seeded(1, 3, 64, 96)
    expected = model.backbone(images)[0]
    for out in (model(images), model(images, mode='tensor'), model.extract_feat(images)):
        assert torch.equal(out[0], expected)


# Errors

HEAD = dict(type='mm_ummae.UMSimMIMHead', in_channels=16)
RESNET = dict(type='mmpretrain.ResNet', depth=18)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: made_ummae(sampling='grid'), "sampling is 'grid', but it must be one of uniform, random"),
        (lambda: made_ummae(sampling='random'), "sampling is 'random', but UMSwin takes uniform: .*UMSimMIM.*UMViT"),
        (lambda: made_ummae('pvt', 'random'), "sampling is 'random', but UMPVT takes uniform: .*UMSimMIM.*UMViT"),
        (lambda: UMMAE(RESNET, None, HEAD), "sampling is 'uniform', but ResNet takes none"),
        (lambda: made_ummae(secondary_ratio=1), r'secondary_ratio is 1, but it must be in \[0, 1\)'),
        (lambda: made_ummae('vit', backbone=dict(secondary_token=False)), r'ratio is 0\.25.*\.secondary_token=True'),
        (lambda: made_simmim(sampling='grid'), "sampling is 'grid', but it must be one of uniform, random"),
        (
            lambda: made_simmim(backbone=dict(mask_token=False)),
            r'UMSwin without a token .*backbone\.mask_token=True',
        ),
        # It has no mask token to switch on, so the message must name the backbones that have one
        (lambda: UMSimMIM(BACKBONES['vit'], HEAD), r'UMViT without a token to replace masked units.*UMSwin.*UMPVT'),
    ],
)
def test_illegal_settings(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    ('make', 'width', 'mask', 'message'),
    [
        (made_ummae, 64, draw(2, (64, 96)), r'mask\.offsets has shape \(2, 2, 3\)'),
        (lambda: made_ummae('vit'), 64, draw_mask('random', 2, (64, 80)), r'mask\.grid is \(4, 5\)'),
        (lambda: made_ummae('pvt'), 64, draw_mask('random', 2, (64, 64)), 'is a UnitMask, but UMPVT .* UniformMask'),
        (made_simmim, 64, draw_mask('random', 1, (64, 64)), r"'kept': \(1, 4\).*2 images"),
        (made_ummae, 80, None, 'image width is 80 px.*multiple of 32 px'),
        (lambda: made_ummae('vit', 'random'), 72, None, 'image width is 72 px.*multiple of 16 px'),
        (made_simmim, 72, None, 'image width is 72 px.*multiple of 16 px'),
        (lambda: made_ummae('vit', neck=dict(type='mm_ummae.UMMAEDecoder')), 64, None, 'UMViT needs UMViTDecoder'),
        (lambda: made_ummae('pvt', neck=dict(type='mm_ummae.UMViTDecoder')), 64, None, 'a pyramid needs UMMAEDecoder'),
    ],
)
def test_illegal_inputs(make: Make, width: int, mask: UniformMask | UnitMask | None, message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(seeded(2, 3, 64, width), mode=mode, mask=mask)


@pytest.mark.parametrize(
    'call',
    [
        lambda name: made_ummae(**{name: 1}),
        lambda name: made_ummae(backbone={name: 1}),
        lambda name: made_ummae('pvt', backbone={name: 1}),
        lambda name: made_ummae(neck={name: 1}),
        lambda name: made_ummae('vit', neck={name: 1}),
        lambda name: made_simmim(**{name: 1}),
    ],
    ids=['UMMAE', 'UMSwin', 'UMPVT', 'UMMAEDecoder', 'UMViTDecoder', 'UMSimMIM'],
)
def test_unknown_arguments_are_named(call: Callable) -> None:
    """A typo in a config must not train another model silently."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_layers'"):
        call('num_layers')


@pytest.mark.parametrize(
    ('make', 'kind', 'part', 'channels', 'needed'),
    [
        (made_ummae, 'swin', 'neck', 32, 64),
        (made_ummae, 'vit', 'neck', 64, 16),
        (made_ummae, 'swin', 'head', 64, 32),
        (made_simmim, 'pvt', 'head', 64, 32),
    ],
)
def test_wrong_widths_fail_at_build(make: Make, kind: str, part: str, channels: int, needed: int) -> None:
    """And not as a product of matrices in the first step."""
    message = rf'{part}\.in_channels is {channels}.* have {needed} channels: set model\.{part}\.in_channels={needed}'
    with pytest.raises(ValueError, match=message):
        make(kind, **{part: dict(in_channels=channels)})


# Training


@all_cases
@pytest.mark.parametrize('size', [(96, 160), (32, 224)], ids=str)
def test_any_size_trains(size: tuple[int, int], make: Make, kind: str, sampling: str) -> None:
    """Other sizes than the nominal one, odd numbers of cells, oblong images: all weights get gradients."""
    necks = [dict(neck=dict(published_positions=True))] if make is made_ummae and kind != 'vit' else []
    for kwargs in (dict(), *necks):
        check_training(make(kind, sampling, **kwargs), seeded(2, 3, *size), draw_mask(sampling, 2, size, 0.5))


@pytest.mark.parametrize(('make', 'kind'), [(made_ummae, 'vit'), (made_simmim, 'swin'), (made_simmim, 'pvt')])
def test_random_sampling_needs_no_cells(make: Make, kind: str) -> None:
    """3 x 5 units."""
    check_training(make(kind, 'random'), seeded(2, 3, 48, 80), draw_mask('random', 2, (48, 80), 0.5))


@all_cases
def test_autocast(make: Make, kind: str, sampling: str) -> None:
    """In bfloat16 the loss is float32 and near that of float32; gradients are finite and near those of float32."""
    images, mask = seeded(2, 3, 96, 128), draw_mask(sampling, 2, (96, 128))
    losses, gradients = [], []
    for enabled in (False, True):
        model = make(kind, sampling)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            losses.append(model(images, mode='loss', mask=mask)['loss'])
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@pytest.mark.integration
def test_overfits_one_batch() -> None:
    losses = train_losses(made_ummae(), 60, draw(2, (64, 64)))
    assert losses[-1] < 0.5 * losses[0]


@all_cases
@pytest.mark.parametrize(('with_cp', 'published'), [(False, False), ('ffn', True)])
def test_a_step_never_synchronises(with_cp: bool | str, published: bool, make: Make, kind: str, sampling: str) -> None:
    """Draw, forward, loss and backward read no value, so that the host can run ahead of a GPU."""
    backbone, neck = dict(drop_path_rate=0.2), dict(with_cp=with_cp)
    if kind != 'vit':
        backbone['with_cp'], neck['published_positions'] = with_cp, published
    model = make(kind, sampling, backbone=backbone, **(dict(neck=neck) if make is made_ummae else {})).train()
    images = seeded(2, 3, 96, 160)
    with Recorder() as recorder:
        model(images, mode='loss')['loss'].backward()
    assert 'addmm' in recorder.names and {'randint', 'rand', 'argsort', 'sort'} & recorder.names
    assert not recorder.waiting
