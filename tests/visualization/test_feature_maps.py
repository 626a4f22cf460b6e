"""Feature maps of the stages: colours from principal components, and backbones built from any config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mm_ummae.models import UMPVT, UMBackbone, UMSwin
from mm_ummae.visualization import feature_maps as fm
from mm_ummae.visualization import image_sheet
from mm_ummae.visualization.sheets import GAP
from tests.builders import ALL, MEAN, STD, seeded

VIT = dict(embed_dims=48, num_layers=1, num_heads=2, feedforward_channels=48)
NORM = dict(mean=MEAN, std=STD)
# Of each host: settings of the backbone, and of the preprocessor in the model or beside it
HOSTS = {
    'mmpretrain': (dict(secondary_token=True), dict(type='SelfSupDataPreprocessor', to_rgb=True, **NORM), {}),
    'mmpretrain, classifier': (dict(final_norm=False), {}, dict(to_rgb=True, **NORM)),
    'mmdet': (dict(out_indices=ALL), dict(type='DetDataPreprocessor', bgr_to_rgb=True, **NORM), {}),
}


def config_of(host: str) -> Config:
    """What the backbone needs of a config; the rest of the model cannot be built."""
    backbone, inside, beside = HOSTS[host]
    backbone = dict(type='mm_ummae.UMSwin', arch='test', img_size=128, **backbone)
    model = dict(type='NoSuchModel', backbone=backbone, data_preprocessor=inside)
    return Config(dict(default_scope=host.partition(',')[0], model=model, data_preprocessor=beside))


def pyramid(kind: type[nn.Module], out_indices: tuple[int, ...] = (3,)) -> nn.Module:
    torch.manual_seed(0)
    return kind('test', img_size=64, out_indices=out_indices).eval()


def test_components_are_those_of_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors in descending order, each stretched to 0..255, whatever signs the solver returns."""
    features = seeded(8, 6, 10, seed=3) * torch.linspace(3, 0.5, 8)[:, None, None]
    tokens = features.flatten(1).T.double().numpy()
    _, vectors = np.linalg.eigh(np.cov(tokens.T))
    colors = fm.principal_colors(features)
    for i in range(3):
        scores = (tokens - tokens.mean(0)) @ vectors[:, -1 - i]
        scores *= np.sign(vectors[np.abs(vectors[:, -1 - i]).argmax(), -1 - i])
        expected = 255 * (scores - scores.min()) / np.ptp(scores)
        assert np.abs(colors.reshape(-1, 3)[:, i].astype(float) - expected).max() <= 0.51
    assert np.abs(fm.principal_colors(7 * features + 3).astype(int) - colors).max() <= 1
    assert fm.principal_colors(features.bfloat16()).shape == (6, 10, 3)
    u, s, v = torch.linalg.svd(torch.from_numpy(tokens - tokens.mean(0)), full_matrices=False)
    monkeypatch.setattr(torch.linalg, 'svd', lambda *args, **kwargs: (-u, s, -v))
    assert np.array_equal(fm.principal_colors(features), colors)


def test_components_without_variance_are_grey() -> None:
    """In a constant map, a map that varies in one direction, and a map of one token."""
    assert (fm.principal_colors(torch.ones(8, 4, 4)) == 128).all()
    line = fm.principal_colors(seeded(8, 1, 1) * torch.arange(16.0).view(1, 4, 4))
    assert (line[..., 1:] == 128).all() and (line[..., 0].min(), line[..., 0].max()) == (0, 255)
    assert (fm.principal_colors(seeded(8, 1, 1)) == 128).all()


@pytest.mark.parametrize('kind', [UMSwin, UMPVT])
def test_maps_of_stages_that_the_backbone_does_not_return(kind: type[nn.Module]) -> None:
    """They equal those of a backbone that returns all; ``out_indices`` is restored, also after an error."""
    images = seeded(2, 3, 64, 96)
    whole, part = pyramid(kind, ALL), pyramid(kind, (1, 3))
    part.load_state_dict(whole.state_dict())
    maps = fm.stage_maps(part, images)
    with torch.no_grad():
        expected = whole(images)
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))
    assert [tuple(x.shape[-2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert not any(x.requires_grad for x in maps)
    with pytest.raises(RuntimeError):
        fm.stage_maps(part, seeded(2, 4, 64, 64))
    assert part.out_indices == (1, 3) and len(part(images)) == 2


def test_maps_of_a_network_of_a_host() -> None:
    """Those that it returns, with their strides on the sheet."""
    network = dict(type='mmdet.ResNet', depth=18, base_channels=8, out_indices=(1, 3))
    backbone, images = UMBackbone(network, img_size=64).eval(), seeded(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone.network(images)
    assert all(map(torch.equal, fm.stage_maps(backbone, images), expected))
    assert [panel.shape for panel in fm.feature_panels(backbone, images)[0]] == [(64, 96, 3)] * 2


def test_panels_show_each_token_as_a_square() -> None:
    """Of stride 4 to 32; images whose sides are no multiples of 32 px work as well."""
    (panels,) = fm.feature_panels(pyramid(UMSwin), seeded(1, 3, 64, 64))
    for stride, panel in zip((4, 8, 16, 32), panels, strict=True):
        tokens = panel.reshape(64 // stride, stride, 64 // stride, stride, 3)
        assert (tokens == tokens[:, :1, :, :1]).all()
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 1
    (panels,) = fm.feature_panels(pyramid(UMSwin), seeded(1, 3, 70, 50))
    assert [panel.shape for panel in panels] == [(70, 50, 3)] * 4


@pytest.mark.parametrize('host', HOSTS)
def test_backbones_of_every_host(host: str, tmp_path: Path) -> None:
    """Weights, settings and normalisation are those of the config, and nothing else of the model is built."""
    config = config_of(host)
    state = UMSwin('test', img_size=128, secondary_token=host == 'mmpretrain').state_dict()
    state = {name: torch.randn_like(value) for name, value in state.items()}
    content = {f'backbone.{name}': value for name, value in state.items()}
    torch.save(dict(state_dict={**content, 'head.fc.weight': torch.zeros(1)}), tmp_path / 'iter_1.pth')
    backbone, preprocessor = fm.load_backbone(config, tmp_path / 'iter_1.pth', 'cpu')
    assert not backbone.training and backbone.out_indices == tuple(config.model.backbone.get('out_indices', (3,)))
    loaded = backbone.state_dict()
    assert set(state) - set(loaded) <= {'norm.weight', 'norm.bias'}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())

    pixels = np.random.default_rng(0).integers(256, size=(128, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    rgb = pixels[:, 16:144].copy()
    inputs = preprocessor(dict(inputs=[torch.from_numpy(rgb).permute(2, 0, 1).flip(0)]))['inputs']  # BGR
    np.testing.assert_allclose(inputs[0].permute(1, 2, 0), (rgb - np.array(MEAN)) / np.array(STD), atol=1e-5)
    sheet = fm.feature_sheet(backbone, preprocessor, [tmp_path / 'image.png'], 128, 'title')
    row = image_sheet([[rgb, *fm.feature_panels(backbone, inputs)[0]]])
    below_titles = len(row) - GAP
    assert sheet.shape[1] == row.shape[1] and np.array_equal(sheet[-below_titles:], row[-below_titles:])


def test_errors(tmp_path: Path) -> None:
    """A backbone without stages is found before the checkpoint is read."""
    state = {f'backbone.{name}': value for name, value in UMSwin('test', img_size=128).state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'plain.pth')
    (tmp_path / 'bare.py').write_text("model = dict(type='Bare')\n")
    vit = Config(dict(model=dict(backbone=dict(type='mm_ummae.UMViT', arch=VIT, img_size=32))))
    for config, name, error, message in (
        (config_of('mmpretrain'), 'plain', ValueError, r'plain\.pth does not fit UMSwin.*missing: .*secondary_token'),
        (config_of('mmpretrain'), 'nowhere', FileNotFoundError, r'nowhere\.pth does not exist'),
        (vit, 'nowhere', ValueError, 'the backbone is UMViT, but feature maps are drawn of a pyramid'),
        (tmp_path / 'bare.py', 'nowhere', ValueError, r'bare\.py has no model\.backbone, whose feature maps could be'),
    ):
        with pytest.raises(error, match=message):
            fm.load_backbone(config, str(tmp_path / f'{name}.pth'), 'cpu')
    with pytest.raises(ValueError, match=r'the backbone is Identity, but .*UMSwin, mm_ummae\.UMPVT'):
        fm.stage_maps(nn.Identity(), seeded(1, 3, 32, 32))
