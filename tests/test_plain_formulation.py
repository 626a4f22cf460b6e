"""UM-MAE in its plain formulation: the same numbers as UMMAE by another way, and that way is plain indeed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from benchmarks.plain import PlainUMMAE
from mm_ummae.masking import UniformMask
from mm_ummae.models import UMMAE
from mm_ummae.registry import MODELS

from .golden import made_images
from .test_golden import check_training, pretraining
from tests.builders import SMALL, UMPVT, disturbed, draw, pixels, seeded

CONFIG = 'configs/demo/ummae_swin-test_1xb64-coslr-20e_demo-128px.py'


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
    """The model of a config and the plain one of the same config, both with the same weights, all of which matter."""
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
    # A constant on all logits cancels in the softmax: the true gradient of `position_bias.fc2.bias` is 0.
    noise = 1e-9 * max(gradient.norm() for gradient in gradients.values())
    for name, expected in gradients.items():
        deviation = (plain_gradients[name] - expected).norm()
        assert deviation < 1e-6 * expected.norm() + noise, f'{name}: {deviation:.1e} of {expected.norm():.1e}'
        assert expected.norm() > noise or name.endswith('position_bias.fc2.bias')


@pytest.mark.parametrize('name', ['ummae_swin', 'ummae_swin_nosm'])
def test_plain_formulation_has_the_published_loss_and_gradients(name: str) -> None:
    case, model, mask = pretraining(name)
    plain = PlainUMMAE(model.backbone, model.neck, model.head, secondary_ratio=model.secondary_ratio)
    loss = plain(made_images(0, 2, 128, 128), mode='loss', mask=mask)['loss']
    check_training(case, plain, loss, learned_positions=False)


def test_a_config_needs_another_type_and_nothing_else() -> None:
    """Also without a given mask: both draw the same one from the same seed, and reconstruct the same."""
    model, plain = made_pair(Config.fromfile(CONFIG).model)
    assert type(plain) is PlainUMMAE
    images, results = seeded(2, 3, 128, 128), []
    for each in (model.eval(), plain.eval()):
        torch.manual_seed(1)
        with torch.no_grad():
            loss = each(images, mode='loss')['loss']
            results.append((loss, *(sample.reconstruction for sample in each(images, mode='predict'))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


def test_autocast_is_close_to_float32() -> None:
    """bfloat16: the loss stays near that of float32 and of UMMAE, and the gradients point where they should."""
    images, mask = seeded(2, 3, 256, 256), draw(2, (256, 256))
    exact = step(made_pair(settings())[1], images, mask)
    for model in made_pair(settings()):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss, gradients = step(model, images, mask)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[0], rtol=0.01, atol=0)
        gradient, expected = (torch.cat([g.flatten() for g in grads.values()]) for grads in (gradients, exact[1]))
        assert gradient.isfinite().all()
        assert (gradient - expected).norm() < 0.03 * expected.norm()


def test_it_does_what_the_fast_form_avoids() -> None:
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


def test_units_that_are_not_sampled_do_not_reach_the_encoder() -> None:
    """All of the image is embedded, yet what is dropped, or hidden again, changes no latent token."""
    plain, mask = made_pair(settings())[1], draw(2, (256, 256))
    images = seeded(2, 3, 256, 256)
    changed = torch.where(pixels(mask.hidden(), 256), 50 * seeded(2, 3, 256, 256, seed=1), images)
    with torch.no_grad():
        latents = [plain._encode(x, mask) for x in (images, changed)]
    assert torch.equal(*latents)


def test_maps_must_be_whole_windows() -> None:
    plain = made_pair(settings())[1]
    with pytest.raises(
        ValueError, match=r'map of stage 1 has 36x32 tokens.*does not pad.*multiples of the window, 8 tokens'
    ):
        plain(seeded(1, 3, 288, 256), mode='loss')
    with pytest.raises(ValueError, match=r'map of stage 2 has 16x12 tokens.*multiples of the window, 8 tokens'):
        plain(seeded(1, 3, 256, 192), mode='loss')


def test_other_encoders_are_refused() -> None:
    config = dict(settings(), type='mm_ummae.PlainUMMAE')
    pvt = dict(type='mm_ummae.UMPVT', arch=SMALL[UMPVT], secondary_token=True)
    with pytest.raises(ValueError, match=r'backbone is UMPVT, but .* mm_ummae.UMSwin'):
        MODELS.build(dict(config, backbone=pvt))
    for wrong, indices in ((dict(final_norm=False), r'\(3,\)'), (dict(out_indices=(0, 2)), r'\(0, 2\)')):
        with pytest.raises(ValueError, match=f'out_indices is {indices} and backbone.norm is None.*final_norm=True'):
            MODELS.build(dict(config, backbone=dict(config['backbone'], **wrong)))
