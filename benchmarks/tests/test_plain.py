"""UM-MAE in its plain formulation: the same results as UMMAE, computed in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain import PlainUMMAE
from mm_ummae.masking import UniformMask
from mm_ummae.models import UMMAE
from mm_ummae.registry import MODELS
from tests.builders import SMALL, UMPVT, disturbed, draw, pixels, seeded


def settings(img_size: int | tuple[int, int] = 256, window: int = 16, secondary: bool = True, **neck: Any) -> dict:
    """A model of the ``test`` arch; 256 px have the window structure of the recipes, shifted at stages 1 and 2."""
    return dict(
        type='mm_ummae.UMMAE',
        secondary_ratio=0.25 if secondary else 0,
        backbone=dict(
            type='mm_ummae.UMSwin', arch='test', img_size=img_size, window_size=window, secondary_token=secondary
        ),
        neck=dict(
            type='mm_ummae.UMMAEDecoder',
            in_channels=256,
            **dict(embed_dims=32, depth=1, num_heads=2, img_size=img_size, **neck),
        ),
        head=dict(type='mm_ummae.UMMAEHead', in_channels=32),
    )


def made_pair(config: dict, dtype: torch.dtype = torch.float32) -> tuple[UMMAE, PlainUMMAE]:
    """The model of a config and the plain one of the same config, with the same disturbed weights."""
    torch.manual_seed(0)
    model = disturbed(MODELS.build(config), 0.1)
    plain = MODELS.build(dict(config, type='mm_ummae.PlainUMMAE'))
    plain.load_state_dict(model.state_dict(), strict=True)
    return model.to(dtype).train(), plain.to(dtype).train()


def step(model: nn.Module, images: Tensor, mask: UniformMask) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients by name."""
    loss = model(images, mode='loss', mask=mask)['loss']
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ('size', 'kwargs'),
    [
        ((256, 256), dict()),
        ((256, 128), dict(img_size=(256, 128), published_positions=True)),
        ((128, 256), dict(img_size=128, secondary=False)),  # another size than the nominal one
        ((96, 96), dict(img_size=96, window=24)),  # an odd number of cells
    ],
    ids=str,
)
def test_loss_and_every_gradient_are_those_of_ummae(size: tuple[int, int], kwargs: dict) -> None:
    images, mask = seeded(2, 3, *size).double(), draw(2, size)
    results = [step(model, images, mask) for model in made_pair(settings(**kwargs), torch.float64)]
    (loss, gradients), (plain_loss, plain_gradients) = results
    torch.testing.assert_close(plain_loss, loss.double(), rtol=1e-6, atol=0)
    assert plain_gradients.keys() == gradients.keys()
    # A constant on all logits cancels in the softmax: the exact gradient of `position_bias.fc2.bias` is 0
    noise = 1e-9 * max(gradient.norm() for gradient in gradients.values())
    for name, expected in gradients.items():
        deviation = (plain_gradients[name] - expected).norm()
        assert deviation < 1e-6 * expected.norm() + noise, f'{name}: {deviation:.1e} of {expected.norm():.1e}'
        assert expected.norm() > noise or name.endswith('position_bias.fc2.bias')


def test_drawn_masks_and_reconstructions_are_those_of_ummae() -> None:
    images, results = seeded(2, 3, 128, 128), []
    for model in made_pair(settings(128)):
        torch.manual_seed(1)
        with torch.no_grad():
            loss = model.eval()(images, mode='loss')['loss']
            results.append((loss, *(sample.reconstruction for sample in model(images, mode='predict'))))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)


def test_it_does_what_the_fast_formulation_avoids() -> None:
    """Embeds the full image, runs the position MLP on every pair of every window, and predicts every unit."""
    plain = made_pair(settings())[1]
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = tuple(inputs[0].shape)

    for module in plain.modules():
        module.register_forward_pre_hook(record)
    plain(seeded(2, 3, 256, 256), mode='loss')
    assert shapes[plain.backbone.patch_embed.projection] == (2, 3, 256, 256)
    assert shapes[plain.head.pred] == (2, 16, 16, 32)
    windows, tokens = (2 * 16, 2 * 4, 2, 2), (64, 64, 64, 16)
    for stage, count, side in zip(plain.backbone.stages, windows, tokens, strict=True):
        for block in stage.blocks:
            assert shapes[block.attn.position_bias.fc1] == (count, side, side, 2)


def test_hidden_units_do_not_reach_the_encoder() -> None:
    """All of the image is embedded, but dropped and hidden units change no latent token."""
    plain, mask = made_pair(settings())[1], draw(2, (256, 256))
    images = seeded(2, 3, 256, 256)
    changed = torch.where(pixels(mask.hidden(), 256), 50 * seeded(2, 3, 256, 256, seed=1), images)
    with torch.no_grad():
        latents = [plain._encode(x, mask) for x in (images, changed)]
    assert torch.equal(*latents)


def test_maps_must_consist_of_whole_windows() -> None:
    plain = made_pair(settings())[1]
    with pytest.raises(
        ValueError, match=r'map of stage 1 has 36x32 tokens.*does not pad.*multiples of the window, 8 tokens'
    ):
        plain(seeded(1, 3, 288, 256), mode='loss')


def test_other_encoders_are_refused() -> None:
    config = dict(settings(), type='mm_ummae.PlainUMMAE')
    pvt = dict(type='mm_ummae.UMPVT', arch=SMALL[UMPVT], secondary_token=True)
    with pytest.raises(ValueError, match=r'backbone is UMPVT, but .* mm_ummae.UMSwin'):
        MODELS.build(dict(config, backbone=pvt, neck=dict(config['neck'], in_channels=32)))
    for wrong, indices in ((dict(final_norm=False), r'\(3,\)'), (dict(out_indices=(0, 2)), r'\(0, 2\)')):
        with pytest.raises(ValueError, match=f'out_indices is {indices} and backbone.norm is None.*final_norm=True'):
            MODELS.build(dict(config, backbone=dict(config['backbone'], **wrong)))
