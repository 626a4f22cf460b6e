"""GlobalAttention, the extra layer of HTC++: the formula, positions, no effect before training, cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_ummae.models import GlobalAttention, StageProjection
from tests.builders import disturbed, seeded


def trained(**kwargs) -> GlobalAttention:
    """A layer in float64 whose branches have an effect."""
    torch.manual_seed(0)
    return disturbed(GlobalAttention(16, 4, **kwargs).double(), 0.3).eval()


@pytest.mark.parametrize(('height', 'width'), [(3, 5), (1, 1)])
def test_attention_is_that_of_the_formula(height: int, width: int) -> None:
    """softmax(q k / sqrt(d)) v, with positions in q and k only."""
    layer, x = trained(), seeded(1, 16, height, width).double().contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    layer.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = layer(x)
    assert out.shape == x.shape and out.is_contiguous() and not torch.allclose(out, x)
    # Positions by hand: first half of the channels for the column, second for the row, each sines then cosines
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    frequency = 10000 ** (-torch.arange(4, dtype=torch.double) / 4)
    angles = [place[..., None] * frequency for place in (columns, rows)]
    positions = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], -1).view(-1, 16)
    tokens = layer.norm1(x[0].flatten(1).t())
    query, key = layer.query_key(tokens + positions.float().double()).view(-1, 2, 4, 4).unbind(1)
    value = layer.value(tokens).view(-1, 4, 4)
    weights = (torch.einsum('ihd,jhd->hij', query, key) / 2).softmax(-1)
    expected = torch.einsum('hij,jhd->ihd', weights, value).reshape(height, width, 16)
    torch.testing.assert_close(seen[0][0], expected, atol=1e-10, rtol=0)


def test_a_new_layer_changes_nothing_and_learns() -> None:
    """The zeros at the ends of its branches get gradients, and after a step all parameters do."""
    layer, x, target = GlobalAttention(16, 4), seeded(2, 16, 4, 4), seeded(2, 16, 4, 4, seed=1)
    assert torch.equal(layer(x), x)
    # The size of a transformer layer: 4 C^2 for queries, keys, values and output, 8 C^2 for the feed-forward network
    assert sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 2) == 12 * 16**2
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for trained_layers in ((layer.proj, layer.ffn.layers[1]), (layer.query_key, layer.value)):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        assert all(part.weight.grad.any() for part in trained_layers)
        optimizer.step()


def test_recomputation_gives_the_same_gradients() -> None:
    gradients = []
    for with_cp in (False, True, 'ffn'):
        layer, x = trained(with_cp=with_cp).train(), seeded(1, 16, 3, 4).double().requires_grad_()
        layer(x).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for recomputed in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(recomputed, gradients[0], strict=True))


def test_autocast() -> None:
    layer, x = trained(with_cp=True).float().train(), seeded(2, 16, 5, 4).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    torch.testing.assert_close(out.float(), layer(x), atol=0.2, rtol=0)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(('channels', 'heads'), [(16, 3), (18, 2)])
def test_indivisible_channels_are_refused(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f'in_channels is {channels}, but num_heads {heads} and 4 must divide it'):
        GlobalAttention(channels, heads)


def test_a_neck_with_a_new_layer_equals_the_neck_without() -> None:
    """With the same names, so that it takes trained weights."""
    layer, maps = dict(type='mm_ummae.GlobalAttention', in_channels=16, num_heads=4), (seeded(2, 16, 3, 2),)
    plain, extended = StageProjection([16], 12), StageProjection([16], 12, extra_layer=layer)
    missing, unexpected = extended.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith('extra_layer.') for name in missing)
    assert torch.equal(extended(maps)[0], plain(maps)[0])
