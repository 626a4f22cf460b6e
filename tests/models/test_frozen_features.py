"""Features of whole images, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mm_ummae.models.feature_measures import dead_share, effective_rank, probe_accuracies, spread
from mm_ummae.models.frozen_features import frozen_features, token_map
from mm_ummae.registry import MODELS
from tests.builders import MEAN, STD, VIT, made_simmim, made_ummae, seeded

SIDE = 64
PREPROCESSOR = dict(mean=MEAN, std=STD, to_rgb=True)


def lomar() -> nn.Module:
    backbone = dict(type='mm_ummae.LoMaRViT', arch=VIT, img_size=SIDE, patch_size=8, mask_token=True)
    head = dict(type='mm_ummae.LoMaRHead', in_channels=16, patch_size=8)
    draw = dict(window_size=3, num_windows=2, data_preprocessor=dict(PREPROCESSOR))
    return MODELS.build(dict(type='mm_ummae.LoMaR', backbone=backbone, head=head, **draw))


def lomar_beit() -> nn.Module:
    """Its windows are the whole images here."""
    backbone = dict(type='mmpretrain.BEiTPretrainViT', arch=VIT, img_size=SIDE, patch_size=16)
    head = dict(type='mmpretrain.BEiTV1Head', embed_dims=16, num_embed=8)
    head['loss'] = dict(type='mmpretrain.CrossEntropyLoss')
    preprocessor = dict(PREPROCESSOR, type='mmpretrain.TwoNormDataPreprocessor', second_mean=MEAN, second_std=STD)
    parts = dict(backbone=backbone, head=head, target_generator=dict(type='mmpretrain.DALL-E'))
    return MODELS.build(dict(type='mm_ummae.LoMaRBEiT', window_size=4, data_preprocessor=preprocessor, **parts))


def stock() -> nn.Module:
    network = dict(type='mmpretrain.ResNet', depth=18, stem_channels=4, base_channels=4, out_indices=(3,))
    backbone = dict(type='mm_ummae.UMBackbone', network=network, img_size=SIDE, secondary_token=True)
    neck = dict(type='mm_ummae.UMMAEDecoder', in_channels=32, embed_dims=32, depth=1, num_heads=2, img_size=SIDE)
    parts = dict(backbone=backbone, neck=neck, head=dict(type='mm_ummae.UMMAEHead', in_channels=32))
    return MODELS.build(dict(type='mm_ummae.UMMAE', data_preprocessor=dict(PREPROCESSOR), **parts))


def mae() -> nn.Module:
    """MMPretrain's, whose backbone masks unless it is told not to."""
    backbone = dict(type='mmpretrain.MAEViT', arch=VIT, img_size=SIDE, patch_size=16)
    neck = dict(type='mmpretrain.MAEPretrainDecoder', num_patches=16, embed_dim=16, decoder_embed_dim=16)
    neck |= dict(decoder_depth=1, decoder_num_heads=2)
    head = dict(type='mmpretrain.MAEPretrainHead', loss=dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'))
    parts = dict(backbone=backbone, neck=neck, head=head)
    return MODELS.build(dict(type='mmpretrain.MAE', data_preprocessor=dict(PREPROCESSOR), **parts))


CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    'UMMAE-UMSwin': (lambda: made_ummae('swin', data_preprocessor=dict(PREPROCESSOR)), 64, 2),
    'UMMAE-UMPVT': (lambda: made_ummae('pvt', data_preprocessor=dict(PREPROCESSOR)), 32, 2),
    'UMMAE-UMViT': (lambda: made_ummae('vit', data_preprocessor=dict(PREPROCESSOR)), 16, 4),
    'UMMAE-UMBackbone': (stock, 32, 2),
    'UMSimMIM-UMSwin': (lambda: made_simmim('swin', data_preprocessor=dict(PREPROCESSOR)), 64, 2),
    'LoMaR': (lomar, 16, 8),
    'MAE': (mae, 16, 4),
    'LoMaRBEiT': (lomar_beit, 16, 4),
}


def images(number: int) -> Tensor:
    return (50 * seeded(number, 3, SIDE, SIDE) + 128).clamp(0, 255).byte()


@pytest.mark.parametrize(('make', 'channels', 'side'), CASES.values(), ids=CASES)
def test_features_of_every_algorithm(make: Callable[[], nn.Module], channels: int, side: int) -> None:
    """The mean over the map of the whole image, in any batches; modes stay, and nothing is drawn."""
    torch.manual_seed(0)
    model, batch = make().train(), images(5)
    next(iter(model.backbone.children())).eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    found = frozen_features(model, batch, batch_size=2)
    assert found.shape == (5, channels) and found.dtype == torch.float32 and not found.requires_grad
    assert [module.training for module in model.modules()] == modes and torch.equal(state, torch.get_rng_state())
    maps = token_map(model.eval(), batch)
    assert maps.shape == (5, channels, side, side)
    torch.testing.assert_close(found, maps.mean((2, 3)), atol=1e-4, rtol=1e-4)
    # Every quarter of the image has an effect: no unit is masked
    for rows in (slice(0, 32), slice(32, 64)):
        for columns in (slice(0, 32), slice(32, 64)):
            changed = batch.clone()
            changed[:, :, rows, columns] = 255 - changed[:, :, rows, columns]
            assert not torch.equal(token_map(model, changed), maps)


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_the_effective_rank_counts_equal_directions(rank: int) -> None:
    directions = torch.linalg.qr(seeded(20, rank))[0], torch.linalg.qr(seeded(12, rank, seed=1))[0]
    assert effective_rank(5 * directions[0] @ directions[1].T) == pytest.approx(rank, rel=1e-3)


def test_the_effective_rank_is_the_exponential_of_an_entropy() -> None:
    """Singular values of 3 and 1 are shares of 3/4 and 1/4."""
    expected = (0.75**-0.75) * (0.25**-0.25)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(expected)


def test_spread_and_dead_channels() -> None:
    noise = seeded(400, 50)
    assert spread(noise) == pytest.approx(1, abs=0.01)
    assert spread(noise + 1000) < 0.01 and spread(torch.ones(4, 50)) == pytest.approx(0, abs=1e-6)
    assert spread(noise) == pytest.approx(spread(7 * noise))
    noise[:, :10] = 3.0
    assert dead_share(noise) == 0.2 and dead_share(torch.ones(4, 50)) == dead_share(torch.zeros(4, 50)) == 1


def test_probes_tell_features_that_separate_classes_from_noise() -> None:
    labels = torch.arange(60) % 3
    noise = seeded(60, 8)
    apart = noise + 8 * nn.functional.one_hot(labels, 8)
    good, bad = (probe_accuracies(features, labels) for features in (apart, noise))
    assert set(good) == {'knn', 'linear', 'chance'} and good['chance'] == pytest.approx(100 / 3)
    assert min(good['knn'], good['linear']) > 95 and max(bad['knn'], bad['linear']) < 60
