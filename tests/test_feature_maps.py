"""Feature maps of the stages: colours from principal components, and backbones taken from any config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from mm_ummae.visualization.feature_maps import feature_panels, feature_sheet, load_backbone, principal_colors, stage_maps
from mm_ummae.models import UMPVT, UMSwin, UMViT
from mm_ummae.visualization.sheets import GAP, image_sheet

DEMO = Path(__file__).parents[1] / 'configs' / 'demo'
CONFIGS = {
    'pre-training': 'ummae_swin-test_1xb64-coslr-20e_demo-128px',
    'classifier': 'um-swin-test_classification_1xb16-100it_demo-128px',
    'detector': 'mask-rcnn_um-swin-test_1xb8-200it_demo-128px',
    'segmentor': 'upernet_um-swin-test_1xb8-150it_demo-128px',
}
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def features(seed: int = 0, channels: int = 8, height: int = 6, width: int = 10) -> Tensor:
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(seed))


# Principal components


def test_two_regions_separate_in_the_first_component() -> None:
    """Red tells the halves apart, though noise is in every channel; green and blue tell nothing of them."""
    direction = features(1, 16, 1, 1)
    right = torch.arange(10) >= 5
    colors = principal_colors(5 * direction * right + features(2, 16)).astype(int)
    red_left, red_right = colors[:, :5, 0], colors[:, 5:, 0]
    assert red_left.max() < red_right.min() - 50 or red_right.max() < red_left.min() - 50
    for channel in (1, 2):
        assert abs(np.median(colors[:, :5, channel]) - np.median(colors[:, 5:, channel])) < 40


def test_components_are_those_of_the_covariance() -> None:
    """Against the eigenvectors of the covariance, in falling order, each stretched to 0..255."""
    values = features(3) * torch.linspace(3, 0.5, 8)[:, None, None]
    tokens = values.flatten(1).T.double().numpy()
    _, vectors = np.linalg.eigh(np.cov(tokens.T))
    colors = principal_colors(values).reshape(-1, 3).astype(float)
    for i in range(3):
        scores = (tokens - tokens.mean(0)) @ vectors[:, -1 - i]
        scores *= np.sign(vectors[np.abs(vectors[:, -1 - i]).argmax(), -1 - i])
        expected = 255 * (scores - scores.min()) / np.ptp(scores)
        assert np.abs(colors[:, i] - expected).max() <= 0.51


def test_colours_do_not_depend_on_the_sign_that_the_solver_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    values, svd = features(4), torch.linalg.svd
    expected = principal_colors(values)

    def turned(*args: object, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
        u, s, v = svd(*args, **kwargs)
        return -u, s, -v

    monkeypatch.setattr(torch.linalg, 'svd', turned)
    assert np.array_equal(principal_colors(values), expected)


def test_colours_move_with_the_tokens() -> None:
    """They tell what a token is, not where it is; scale and offset of the features do not matter."""
    values = features(5)
    colors = principal_colors(values).astype(int)
    assert np.abs(principal_colors(values.flip(2)).astype(int) - colors[:, ::-1]).max() <= 1
    assert np.abs(principal_colors(7 * values + 3).astype(int) - colors).max() <= 1


def test_what_does_not_vary_is_grey() -> None:
    """A map of one value; one that varies in one direction; one of a single token."""
    assert (principal_colors(torch.ones(8, 4, 4)) == 128).all()
    line = principal_colors(features(6, 8, 1, 1) * torch.arange(16.0).view(1, 4, 4))
    assert (line[..., 1:] == 128).all() and (line[..., 0].min(), line[..., 0].max()) == (0, 255)
    assert (principal_colors(features(7, 8, 1, 1)) == 128).all()


def test_half_precision_features() -> None:
    assert principal_colors(features(8).bfloat16()).shape == (6, 10, 3)


# Maps of all stages


def pyramid(kind: type[nn.Module], out_indices: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return kind('test', img_size=64, out_indices=out_indices).eval()


@pytest.mark.parametrize('kind', [UMSwin, UMPVT])
def test_maps_of_stages_that_the_backbone_does_not_return(kind: type[nn.Module]) -> None:
    """Those of a backbone that returns all; the settings stay, also where an image does not fit."""
    images = torch.randn(2, 3, 64, 96)
    whole, part = pyramid(kind, (0, 1, 2, 3)), pyramid(kind, (1, 3))
    part.load_state_dict(whole.state_dict())
    maps = stage_maps(part, images)
    with torch.no_grad():
        expected = whole(images)
    assert len(maps) == 4 and all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))
    assert [tuple(x.shape[-2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert not any(x.requires_grad for x in maps)
    with pytest.raises(RuntimeError):
        stage_maps(part, torch.randn(2, 4, 64, 64))
    assert part.out_indices == (1, 3) and len(part(images)) == 2


def test_only_pyramids_have_stages() -> None:
    arch = dict(embed_dims=48, num_layers=1, num_heads=2, feedforward_channels=48)
    for backbone in (UMViT(arch, img_size=32), nn.Identity()):
        name = type(backbone).__name__
        with pytest.raises(ValueError, match=rf'the backbone is {name}, which has no stages.*UMSwin, mm_ummae\.UMPVT'):
            stage_maps(backbone, torch.randn(1, 3, 32, 32))


def test_panels_show_each_token_as_a_square() -> None:
    """Strides 4 to 32 in an image that is no multiple of 32 px, too."""
    (panels,) = feature_panels(pyramid(UMSwin, (3,)), torch.randn(1, 3, 64, 64))
    for stride, panel in zip((4, 8, 16, 32), panels, strict=True):
        tokens = panel.reshape(64 // stride, stride, 64 // stride, stride, 3)
        assert (tokens == tokens[:, :1, :, :1]).all()
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 1
    (panels,) = feature_panels(pyramid(UMSwin, (3,)), torch.randn(1, 3, 70, 50))
    assert [panel.shape for panel in panels] == [(70, 50, 3)] * 4


def test_halves_of_a_picture_separate_in_stage_1() -> None:
    """Of an untrained network: its first stage sees colours."""
    images = torch.full((1, 3, 64, 64), -1.0)
    images[:, 0, :, 32:] = 2.0
    images += 0.01 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (panels,) = feature_panels(pyramid(UMSwin, (3,)), images)
    red = panels[0][..., 0].astype(int)
    left, right = red[:, :32], red[:, 32:]
    assert left.max() < right.min() - 50 or right.max() < left.min() - 50


# Backbones from configs


@pytest.fixture
def backbone_file(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint with a backbone and something of a head, as a fine-tuned model's; its parameters."""
    torch.manual_seed(1)
    state = UMSwin('test', img_size=128).state_dict()
    state = {name: torch.randn_like(value) for name, value in state.items() if not name.startswith('norm')}
    path = tmp_path / 'iter_1.pth'
    named = {f'backbone.{name}': value for name, value in state.items()}
    torch.save(dict(state_dict={**named, 'head.fc.weight': torch.zeros(1)}, meta={}), path)
    return path, state


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(128, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'picture.png')
    return tmp_path / 'picture.png'


@pytest.mark.parametrize('kind', ['classifier', 'detector', 'segmentor'])
def test_backbones_of_every_host(kind: str, backbone_file: tuple[Path, dict[str, Tensor]], picture: Path) -> None:
    """Weights, settings and normalisation are those of the config; the rest of the model is not built."""
    config = Config.fromfile(DEMO / f'{CONFIGS[kind]}.py')
    config.model.backbone.final_norm = False
    config.model.type = 'NoSuchModel'
    path, state = backbone_file
    backbone, preprocessor = load_backbone(config, path, 'cpu')
    assert not backbone.training and backbone.out_indices == tuple(config.model.backbone.get('out_indices', (3,)))
    loaded = backbone.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)

    rgb = np.asarray(Image.open(picture))[:, 16:144].copy()
    bgr = torch.from_numpy(rgb).permute(2, 0, 1).flip(0)
    inputs = preprocessor(dict(inputs=[bgr]))['inputs']
    assert torch.allclose(inputs[0], ((torch.from_numpy(rgb) - MEAN) / STD).permute(2, 0, 1), atol=1e-5)
    sheet = feature_sheet(backbone, preprocessor, [picture], 128, 'title')
    row = image_sheet([[rgb, *feature_panels(backbone, inputs)[0]]])
    below_titles = len(row) - GAP
    assert sheet.shape[1] == row.shape[1] and np.array_equal(sheet[-below_titles:], row[-below_titles:])


def test_backbone_of_a_pre_training(tmp_path: Path, picture: Path) -> None:
    torch.manual_seed(2)
    config = Config.fromfile(DEMO / f'{CONFIGS["pre-training"]}.py')
    original = UMSwin('test', img_size=128, secondary_token=True)
    torch.save(original.state_dict(), tmp_path / 'bare.pth')
    state = {f'backbone.{name}': value for name, value in original.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'epoch_1.pth')
    backbone, preprocessor = load_backbone(config, str(tmp_path / 'epoch_1.pth'), 'cpu')
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in backbone.state_dict().items())
    first, again = (feature_sheet(backbone, preprocessor, [picture, picture], 64) for _ in range(2))
    assert np.array_equal(first, again)


def test_a_checkpoint_that_does_not_fit(tmp_path: Path, backbone_file: tuple[Path, dict[str, Tensor]]) -> None:
    path = DEMO / f'{CONFIGS["pre-training"]}.py'
    with pytest.raises(ValueError, match=r'iter_1\.pth does not fit UMSwin.*missing: .*secondary_token'):
        load_backbone(path, str(backbone_file[0]), 'cpu')
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        load_backbone(path, str(tmp_path / 'nowhere.pth'), 'cpu')


def test_configs_without_stages(tmp_path: Path) -> None:
    """Found before the checkpoint is read."""
    arch = dict(embed_dims=48, num_layers=1, num_heads=2, feedforward_channels=48)
    config = Config(dict(model=dict(backbone=dict(type='mm_ummae.UMViT', arch=arch, img_size=32))))
    with pytest.raises(ValueError, match=r'the backbone is UMViT, which has no stages'):
        load_backbone(config, 'nowhere.pth', 'cpu')
    (tmp_path / 'bare.py').write_text("model = dict(type='Bare')\n")
    with pytest.raises(ValueError, match=r'bare\.py has no model\.backbone'):
        load_backbone(tmp_path / 'bare.py', 'nowhere.pth', 'cpu')
