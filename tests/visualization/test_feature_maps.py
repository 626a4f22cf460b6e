"""Feature maps of the stages: colours from principal components, and backbones built from any config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from mm_ummae.models import UMPVT, UMSwin, UMViT
from mm_ummae.visualization import (
    feature_panels,
    feature_sheet,
    image_sheet,
    load_backbone,
    principal_colors,
    stage_maps,
)
from mm_ummae.visualization.sheets import GAP
from tests.builders import seeded

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
VIT = dict(embed_dims=48, num_layers=1, num_heads=2, feedforward_channels=48)
SWIN = dict(type='mm_ummae.UMSwin', arch='test', img_size=128)
NORM = dict(mean=MEAN.tolist(), std=STD.tolist())
# Configs of each host, reduced to what the backbone needs; the rest of the model cannot be built
CONFIGS = {
    'pre-training': dict(
        default_scope='mmpretrain',
        model=dict(
            type='NoSuchModel',
            backbone=dict(**SWIN, secondary_token=True),
            data_preprocessor=dict(type='SelfSupDataPreprocessor', to_rgb=True, **NORM),
        ),
    ),
    'classifier': dict(
        default_scope='mmpretrain',
        model=dict(type='NoSuchModel', backbone=dict(**SWIN, final_norm=False)),
        data_preprocessor=dict(to_rgb=True, **NORM),
    ),
    'detector': dict(
        default_scope='mmdet',
        model=dict(
            type='NoSuchModel',
            backbone=dict(**SWIN, final_norm=False, out_indices=(0, 1, 2, 3)),
            data_preprocessor=dict(type='DetDataPreprocessor', bgr_to_rgb=True, **NORM),
        ),
    ),
}
CONFIGS['segmentor'] = {**CONFIGS['detector'], 'default_scope': 'mmseg'}


# Principal components


def test_components_are_those_of_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors in descending order, each stretched to 0..255, whatever signs the solver returns."""
    features = seeded(8, 6, 10, seed=3) * torch.linspace(3, 0.5, 8)[:, None, None]
    tokens = features.flatten(1).T.double().numpy()
    _, vectors = np.linalg.eigh(np.cov(tokens.T))
    colors = principal_colors(features)
    for i in range(3):
        scores = (tokens - tokens.mean(0)) @ vectors[:, -1 - i]
        scores *= np.sign(vectors[np.abs(vectors[:, -1 - i]).argmax(), -1 - i])
        expected = 255 * (scores - scores.min()) / np.ptp(scores)
        assert np.abs(colors.reshape(-1, 3)[:, i].astype(float) - expected).max() <= 0.51
    svd = torch.linalg.svd

    def turned(*args: object, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
        u, s, v = svd(*args, **kwargs)
        return -u, s, -v

    monkeypatch.setattr(torch.linalg, 'svd', turned)
    assert np.array_equal(principal_colors(features), colors)


def test_colours_depend_on_the_tokens_alone() -> None:
    """Not on their places, nor on scale and offset of the features."""
    features = seeded(8, 6, 10, seed=5)
    colors = principal_colors(features).astype(int)
    assert np.abs(principal_colors(features.flip(2)).astype(int) - colors[:, ::-1]).max() <= 1
    assert np.abs(principal_colors(7 * features + 3).astype(int) - colors).max() <= 1
    assert principal_colors(features.bfloat16()).shape == (6, 10, 3)


def test_components_without_variance_are_grey() -> None:
    """In a constant map, a map that varies in one direction, and a map of one token."""
    assert (principal_colors(torch.ones(8, 4, 4)) == 128).all()
    line = principal_colors(seeded(8, 1, 1) * torch.arange(16.0).view(1, 4, 4))
    assert (line[..., 1:] == 128).all() and (line[..., 0].min(), line[..., 0].max()) == (0, 255)
    assert (principal_colors(seeded(8, 1, 1)) == 128).all()


# Maps of all stages


def pyramid(kind: type[nn.Module], out_indices: tuple[int, ...] = (3,)) -> nn.Module:
    torch.manual_seed(0)
    return kind('test', img_size=64, out_indices=out_indices).eval()


@pytest.mark.parametrize('kind', [UMSwin, UMPVT])
def test_maps_of_stages_that_the_backbone_does_not_return(kind: type[nn.Module]) -> None:
    """They equal those of a backbone that returns all; ``out_indices`` is restored, also after an error."""
    images = seeded(2, 3, 64, 96)
    whole, part = pyramid(kind, (0, 1, 2, 3)), pyramid(kind, (1, 3))
    part.load_state_dict(whole.state_dict())
    maps = stage_maps(part, images)
    with torch.no_grad():
        expected = whole(images)
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))
    assert [tuple(x.shape[-2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert not any(x.requires_grad for x in maps)
    with pytest.raises(RuntimeError):
        stage_maps(part, seeded(2, 4, 64, 64))
    assert part.out_indices == (1, 3) and len(part(images)) == 2


def test_panels_show_each_token_as_a_square() -> None:
    """Of stride 4 to 32; images whose sides are no multiples of 32 px work as well."""
    (panels,) = feature_panels(pyramid(UMSwin), seeded(1, 3, 64, 64))
    for stride, panel in zip((4, 8, 16, 32), panels, strict=True):
        tokens = panel.reshape(64 // stride, stride, 64 // stride, stride, 3)
        assert (tokens == tokens[:, :1, :, :1]).all()
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 1
    (panels,) = feature_panels(pyramid(UMSwin), seeded(1, 3, 70, 50))
    assert [panel.shape for panel in panels] == [(70, 50, 3)] * 4


def test_the_first_stage_separates_the_halves_of_an_image() -> None:
    """In its first component (red), even without training."""
    images = torch.full((1, 3, 64, 64), -1.0)
    images[:, 0, :, 32:] = 2.0
    (panels,) = feature_panels(pyramid(UMSwin), images + 0.01 * seeded(1, 3, 64, 64))
    left, right = (panels[0][:, half, 0].astype(int) for half in (slice(32), slice(32, None)))
    assert left.max() < right.min() - 50 or right.max() < left.min() - 50


# Backbones from configs


@pytest.mark.parametrize('kind', CONFIGS)
def test_backbones_of_every_host(kind: str, tmp_path: Path) -> None:
    """Weights, settings and normalisation are those of the config, and nothing else of the model is built."""
    config = Config(CONFIGS[kind])
    torch.manual_seed(1)
    state = UMSwin('test', img_size=128, secondary_token=kind == 'pre-training').state_dict()
    state = {name: torch.randn_like(value) for name, value in state.items()}
    content = {f'backbone.{name}': value for name, value in state.items()}
    torch.save(dict(state_dict={**content, 'head.fc.weight': torch.zeros(1)}), tmp_path / 'iter_1.pth')
    backbone, preprocessor = load_backbone(config, tmp_path / 'iter_1.pth', 'cpu')
    assert not backbone.training and backbone.out_indices == tuple(config.model.backbone.get('out_indices', (3,)))
    loaded = backbone.state_dict()
    assert set(state) - set(loaded) <= {'norm.weight', 'norm.bias'}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())

    pixels = np.random.default_rng(0).integers(256, size=(128, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    rgb = pixels[:, 16:144].copy()
    inputs = preprocessor(dict(inputs=[torch.from_numpy(rgb).permute(2, 0, 1).flip(0)]))['inputs']  # BGR
    assert torch.allclose(inputs[0], ((torch.from_numpy(rgb) - MEAN) / STD).permute(2, 0, 1), atol=1e-5)
    sheet = feature_sheet(backbone, preprocessor, [tmp_path / 'image.png'], 128, 'title')
    row = image_sheet([[rgb, *feature_panels(backbone, inputs)[0]]])
    below_titles = len(row) - GAP
    assert sheet.shape[1] == row.shape[1] and np.array_equal(sheet[-below_titles:], row[-below_titles:])


def test_errors(tmp_path: Path) -> None:
    """A backbone without stages is found before the checkpoint is read."""
    state = {f'backbone.{name}': value for name, value in UMSwin('test', img_size=128).state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match=r'plain\.pth does not fit UMSwin.*missing: .*secondary_token'):
        load_backbone(Config(CONFIGS['pre-training']), str(tmp_path / 'plain.pth'), 'cpu')
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        load_backbone(Config(CONFIGS['pre-training']), str(tmp_path / 'nowhere.pth'), 'cpu')
    config = Config(dict(model=dict(backbone=dict(type='mm_ummae.UMViT', arch=VIT, img_size=32))))
    with pytest.raises(ValueError, match='the backbone is UMViT, which has no stages'):
        load_backbone(config, 'nowhere.pth', 'cpu')
    (tmp_path / 'bare.py').write_text("model = dict(type='Bare')\n")
    with pytest.raises(ValueError, match=r'bare\.py has no model\.backbone, whose feature maps could be drawn'):
        load_backbone(tmp_path / 'bare.py', 'nowhere.pth', 'cpu')
    for backbone in (UMViT(VIT, img_size=32), nn.Identity()):
        message = rf'the backbone is {type(backbone).__name__}, which has no stages.*UMSwin, mm_ummae\.UMPVT'
        with pytest.raises(ValueError, match=message):
            stage_maps(backbone, seeded(1, 3, 32, 32))
