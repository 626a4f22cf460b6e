"""The extra layer of HTC++: any map size, positions that matter, no effect before training, half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_ummae.analysis import count_multiply_adds
from mm_ummae.models import GlobalAttention, StageProjection

SIZES = [(1, 1), (1, 7), (4, 4), (5, 3), (13, 9)]


def trained(**kwargs) -> GlobalAttention:
    """With branches that do something."""
    torch.manual_seed(0)
    layer = GlobalAttention(16, 4, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.eval()


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_map_keeps_its_shape_and_layout(size: tuple[int, int]) -> None:
    x = torch.randn(2, 16, *size, dtype=torch.double)
    out = trained()(x)
    assert out.shape == x.shape and out.is_contiguous() and out.isfinite().all()
    assert not torch.allclose(out, x)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_a_new_layer_changes_nothing(size: tuple[int, int]) -> None:
    x = torch.randn(2, 16, *size)
    assert torch.equal(GlobalAttention(16, 4)(x), x)


def test_a_new_layer_learns() -> None:
    """The zeros at the ends of its branches get gradients, and after a step the rest does too."""
    layer, x = GlobalAttention(16, 4), torch.randn(2, 16, 4, 4)
    target = torch.randn(2, 16, 4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    (layer(x) - target).square().mean().backward()
    assert layer.proj.weight.grad.any() and layer.ffn.layers[1].weight.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    (layer(x) - target).square().mean().backward()
    assert layer.query_key.weight.grad.any() and layer.value.weight.grad.any()


def test_every_token_sees_every_other() -> None:
    layer = trained()
    x = torch.randn(1, 16, 6, 8, dtype=torch.double)
    changed = x.clone()
    changed[0, :, 5, 7] += torch.randn(16, dtype=torch.double)  # not a constant, which the norm takes out
    difference = (layer(changed) - layer(x)).abs().amax(1)[0]
    assert difference.min() > 1e-6, 'the far corner has no effect somewhere'


def test_order_of_distant_tokens_matters() -> None:
    """Without positions, exchanging two others would leave a token as it is."""
    layer = trained()
    x = torch.randn(1, 16, 6, 8, dtype=torch.double)
    exchanged = x.clone()
    exchanged[0, :, 5, 7], exchanged[0, :, 0, 4] = x[0, :, 0, 4], x[0, :, 5, 7]
    assert (layer(exchanged) - layer(x))[0, :, 2, 0].abs().max() > 1e-6


def test_attention_is_that_of_the_formula() -> None:
    """softmax(q k / sqrt(d)) v with positions in q and k only, against a plain computation."""
    layer, x = trained(), torch.randn(1, 16, 3, 5, dtype=torch.double)
    seen: list[Tensor] = []
    layer.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer(x)
    # Positions by hand: first half of the channels tells the column, second the row, each sines then cosines
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing='ij')
    frequency = 10000 ** (-torch.arange(4, dtype=torch.double) / 4)
    angles = [place.double()[..., None] * frequency for place in (columns, rows)]
    place = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], -1).view(15, 16)
    tokens = layer.norm1(x[0].flatten(1).t())
    query, key = (tokens + place.float().double()) @ layer.query_key.weight.t() + layer.query_key.bias, None
    query, key = query[:, :16].view(15, 4, 4), query[:, 16:].view(15, 4, 4)
    value = layer.value(tokens).view(15, 4, 4)
    weights = (torch.einsum('ihd,jhd->hij', query, key) / 2).softmax(-1)
    expected = torch.einsum('hij,jhd->ihd', weights, value).reshape(3, 5, 16)
    assert torch.allclose(seen[0][0], expected, atol=1e-10)


def test_recomputation_gives_the_same_gradients() -> None:
    gradients = []
    for with_cp in (False, True):
        layer = trained(with_cp=with_cp).train()
        x = torch.linspace(-1, 1, 16 * 12, dtype=torch.double).view(1, 16, 3, 4).requires_grad_()
        layer(x).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize('with_cp', [False, True])
def test_half_precision(with_cp: bool) -> None:
    layer = trained(with_cp=with_cp).float().train()
    x = torch.randn(2, 16, 5, 4, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert torch.allclose(out.float(), layer(x), atol=0.2) and x.grad.isfinite().all()


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_cost_is_that_of_a_transformer_layer(size: tuple[int, int]) -> None:
    """T tokens of C channels: 4 C^2 for queries, keys, values and output, 8 C^2 for the feed-forward network, 2 T C."""
    layer, x = GlobalAttention(16, 4), torch.randn(1, 16, *size)
    with torch.no_grad():
        counted = sum(count_multiply_adds(layer, lambda: layer(x)).values())
    tokens = size[0] * size[1]
    assert counted == tokens * 12 * 16**2 + 2 * tokens**2 * 16


@pytest.mark.parametrize(('channels', 'heads'), [(16, 3), (18, 2)])
def test_channels_that_do_not_divide_are_refused(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f'in_channels is {channels}, but num_heads {heads} and 4 must divide it'):
        GlobalAttention(channels, heads)


def test_projection_with_a_new_layer_is_the_one_without() -> None:
    """And has the same names, so that trained weights go in."""
    torch.manual_seed(0)
    plain = StageProjection([8, 16], 12)
    extended = StageProjection(
        [8, 16], 12, extra_layer=dict(type='mm_ummae.GlobalAttention', in_channels=16, num_heads=4)
    )
    missing, unexpected = extended.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith('extra_layer.') for name in missing)
    maps = (torch.randn(2, 8, 6, 4), torch.randn(2, 16, 3, 2))
    assert all(torch.equal(a, b) for a, b in zip(plain(maps), extended(maps), strict=True))
    assert all(x.is_contiguous() for x in extended(maps))
