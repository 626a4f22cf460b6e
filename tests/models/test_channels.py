"""Images of one, four and other numbers of channels, from pre-training to fine-tuning (field case 09)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.registry import DefaultScope

from mm_ummae.detection import AnyChannelsDetPreprocessor
from mm_ummae.models import AnyChannelsPreprocessor, MaskedPixelModel
from mm_ummae.models.layers import fit_channels
from mm_ummae.registry import MODELS
from mm_ummae.visualization import reconstruction_sheet
from tests.builders import seeded

ARCHS = {
    'UMSwin': dict(type='mm_ummae.UMSwin', arch='test', img_size=64),
    'UMPVT': dict(
        type='mm_ummae.UMPVT',
        arch=dict(embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2)),
        img_size=64,
    ),
    'UMViT': dict(
        type='mm_ummae.UMViT',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=64,
    ),
    'LoMaRViT': dict(
        type='mm_ummae.LoMaRViT',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=64,
    ),
}
WIDTHS = {'UMSwin': 256, 'UMPVT': 32, 'UMViT': 32, 'LoMaRViT': 32}


def swin(channels: int) -> dict[str, Any]:
    """MMPretrain's Swin in the wrapper."""
    network = dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
        in_channels=channels,
        window_size=2,
        pad_small_map=True,
    )
    return dict(type='mm_ummae.UMBackbone', network=network, img_size=64)


def build(name: str, channels: int, simmim: bool = False) -> MaskedPixelModel:
    """A pre-training model for images of ``channels``."""
    backbone = dict(ARCHS[name]) if name in ARCHS else swin(channels)
    width = WIDTHS.get(name, 128)
    backbone['in_channels'] = channels
    mean = [120.0 + index for index in range(channels)]
    common = dict(
        data_preprocessor=dict(type='mm_ummae.AnyChannelsPreprocessor', mean=mean, std=[60.0] * channels),
        head=dict(type='mm_ummae.UMMAEHead', in_channels=24, image_channels=channels),
    )
    if name == 'LoMaRViT':
        head = dict(type='mm_ummae.LoMaRHead', in_channels=width, image_channels=channels)
        return MODELS.build(
            dict(
                type='mm_ummae.LoMaR',
                backbone=dict(backbone, mask_token=True),
                num_windows=2,
                window_size=3,
                **common | dict(head=head),
            )
        )
    if simmim:
        head = dict(type='mm_ummae.UMSimMIMHead', in_channels=width, image_channels=channels)
        return MODELS.build(
            dict(type='mm_ummae.UMSimMIM', backbone=dict(backbone, mask_token=True), **common | dict(head=head))
        )
    decoder = 'UMViTDecoder' if name == 'UMViT' else 'UMMAEDecoder'
    neck = dict(type=f'mm_ummae.{decoder}', in_channels=width, embed_dims=24, depth=1, num_heads=2, img_size=64)
    return MODELS.build(dict(type='mm_ummae.UMMAE', backbone=dict(backbone, secondary_token=True), neck=neck, **common))


KINDS = [*((name, False) for name in (*ARCHS, 'UMBackbone')), ('UMSwin', True), ('UMBackbone', True)]


@pytest.mark.parametrize('channels', [1, 4, 5])
@pytest.mark.parametrize(('name', 'simmim'), KINDS)
def test_a_pretraining_takes_and_predicts_all_channels(name: str, simmim: bool, channels: int) -> None:
    model = build(name, channels, simmim)
    model.init_weights()
    images = (seeded(2, channels, 64, 64).sigmoid() * 255).round().byte()
    batch = model.data_preprocessor(dict(inputs=images, data_samples=[]), training=True)
    mean = torch.tensor([120.0 + index for index in range(channels)]).view(-1, 1, 1)
    assert torch.allclose(batch['inputs'], (images.float() - mean) / 60)
    loss = model.loss(batch['inputs'])['loss']
    loss.backward()
    first = next(parameter for key, parameter in model.backbone.named_parameters() if parameter.dim() == 4)
    assert first.shape[1] == channels
    assert all(first.grad[:, channel].abs().sum() > 0 for channel in range(channels)), 'no channel is left out'
    # The last channel is a target too
    changed = batch['inputs'].clone()
    changed[:, -1] += 3 * seeded(2, 64, 64)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    masks = [model.draw_mask(2, (64, 64), generator=generator) for generator in generators]
    assert model.head.target(changed, masks[0]).sub(model.head.target(batch['inputs'], masks[1])).abs().max() > 0.1
    (sample, _) = model.predict(batch['inputs'])
    assert sample.image.shape == sample.reconstruction.shape == (channels, 64, 64)
    assert torch.allclose(sample.image, images[0].float(), atol=1e-3)
    assert reconstruction_sheet([sample]).ndim == 3


def test_widths_are_compared() -> None:
    model = build('UMSwin', 4)
    model.head.image_channels = 3
    with pytest.raises(
        ValueError, match=r'head.image_channels is 3, but .* 4 channels: set model.head.image_channels=4'
    ):
        model.check_widths()
    model.head.image_channels = 4
    model.data_preprocessor = AnyChannelsPreprocessor([1, 2, 3], [1, 1, 1])
    with pytest.raises(ValueError, match=r'data_preprocessor.mean has 3 values, .* 4 channels: give 4, and as many'):
        model.check_widths()
    with pytest.raises(ValueError, match=r'in_channels is 4, .* first convolution of network SwinTransformer takes 3'):
        MODELS.build(dict(swin(3), in_channels=4))
    with pytest.raises(ValueError, match=r'mean has 4 values, std 4 and to_rgb is set, .*set to_rgb and'):
        AnyChannelsPreprocessor([1, 2, 3, 4], [1, 1, 1, 1], to_rgb=True)
    with pytest.raises(ValueError, match='mean has 4 values, std 3'):
        AnyChannelsPreprocessor([1, 2, 3, 4], [1, 1, 1])


@pytest.mark.parametrize('name', [*ARCHS, 'UMBackbone'])
def test_weights_of_three_channels_start_any_number(name: str, tmp_path: Path) -> None:
    """One channel: what a grey image gave as three equal ones. Four: a band as each colour again, on the same scale."""
    source = build(name, 3).backbone
    torch.save(
        dict(state_dict={f'backbone.{key}': value for key, value in source.state_dict().items()}), tmp_path / 'a.pth'
    )
    grey = seeded(1, 1, 64, 64)
    for channels, images in ((1, grey), (6, torch.cat([seeded(1, 3, 64, 64)] * 2, 1)), (4, None)):
        adapted = build(name, channels).backbone
        adapted.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
        adapted.init_weights()
        if images is not None:
            three = images.expand(-1, 3, -1, -1) if channels == 1 else images[:, :3]
            pairs = zip(source.eval()(three), adapted.eval()(images), strict=True)
            assert all(torch.allclose(*pair, atol=1e-4) for pair in pairs), channels
    key = next(key for key, value in source.state_dict().items() if value.dim() == 4 and value.shape[1] == 3)
    four, three = adapted.state_dict()[key], source.state_dict()[key]
    assert torch.allclose(four, three[:, [0, 1, 2, 0]] * 0.75)


def test_other_differences_are_left_to_the_check_of_shapes() -> None:
    for state in ({}, {'a': torch.zeros(4, 5, 2, 2)}, {'a': torch.zeros(3, 3)}):
        assert fit_channels(state, 'a', 4) is state


def test_detectors_normalise_any_number_of_channels() -> None:
    images = [(seeded(4, 30, 40).sigmoid() * 255).byte()]
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours = AnyChannelsDetPreprocessor([1.0, 2, 3, 4], [2.0, 2, 2, 4], pad_size_divisor=32)
    inputs = ours(dict(inputs=images, data_samples=None))['inputs']
    assert inputs.shape == (1, 4, 32, 64)
    expected = (images[0].float() - torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1)) / torch.tensor([2.0, 2, 2, 4]).view(
        -1, 1, 1
    )
    assert torch.allclose(inputs[0, :, :30, :40], expected)
    three = dict(mean=[1.0, 2, 3], std=[2.0, 2, 2], bgr_to_rgb=True)
    data = dict(inputs=[images[0][:3]], data_samples=None)
    assert torch.equal(
        AnyChannelsDetPreprocessor(**three)(data)['inputs'], DetDataPreprocessor(**three)(data)['inputs']
    )
