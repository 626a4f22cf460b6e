"""Contextual relative positions: the published buckets, attention against a loop, and blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor

from mm_ummae.models.layers import PositionedBlock, RelativeAttention, TokenPositions, bucket_map, piecewise_index
from mm_ummae.models.layers import relative_position as module
from tests.builders import disturbed, seeded

DIMS, HEADS = 12, 3
# The published index of differences 0, 1, 2, ...: from 4 on it is clipped to 3
BY_HAND = (0, 1, 2, 2, *[3] * 17)
with_and_without = pytest.mark.parametrize('relative', [False, True], ids=['plain', 'relative'])


def made_attention(**kwargs) -> RelativeAttention:
    """In float64, with every parameter moved."""
    torch.manual_seed(0)
    return disturbed(RelativeAttention(MultiheadAttention(DIMS, HEADS, **kwargs)).double(), 0.5).eval()


def slow_bucket(query: int, key: int, columns: int, class_token: bool) -> int:
    """Bucket of two tokens, from its description."""
    if class_token and 0 in (query, key):
        return 49
    (row, column), (other_row, other_column) = (divmod(token - class_token, columns) for token in (query, key))
    indices = [BY_HAND[abs(d)] * (1 if d > 0 else -1) for d in (row - other_row, column - other_column)]
    return (indices[0] + 3) * 7 + indices[1] + 3


def slow_attention(attention: RelativeAttention, x: Tensor, buckets: Tensor) -> Tensor:
    """One sequence, pair by pair: logits q.k / sqrt(d) + q.T[:, bucket], the second q not scaled."""
    size = DIMS // HEADS
    query, key, value = attention.qkv(x).view(len(x), 3, HEADS, size).unbind(1)  # (T, heads, d) each
    table, out = attention.position_table[0], torch.zeros_like(query)
    for head in range(HEADS):
        for i in range(len(x)):
            logits = [
                query[i, head] @ key[j, head] / size**0.5 + query[i, head] @ table[:, buckets[i, j]]
                for j in range(len(x))
            ]
            out[i, head] = torch.stack(logits).softmax(0) @ value[:, head]
    return attention.proj(out.flatten(1))


# Buckets


def test_published_index_by_hand() -> None:
    assert piecewise_index(torch.arange(21)).tolist() == list(BY_HAND)
    assert piecewise_index(-torch.arange(21)).tolist() == [-index for index in BY_HAND]
    assert piecewise_index(torch.tensor([-1000, 1000])).tolist() == [-3, 3]


@pytest.mark.parametrize('class_token', [False, True])
@pytest.mark.parametrize('grid', [(7, 7), (2, 9), (5, 1)], ids=str)
def test_buckets_equal_a_loop(grid: tuple[int, int], class_token: bool) -> None:
    buckets = bucket_map(grid, class_token)
    tokens = range(grid[0] * grid[1] + class_token)
    assert buckets.dtype == torch.int64
    assert buckets.tolist() == [[slow_bucket(i, j, grid[1], class_token) for j in tokens] for i in tokens]


# Attention


@torch.no_grad()
def test_attention_equals_a_loop_over_pairs() -> None:
    """Buckets are shared by all sequences, or (B, T, T) where each sequence shows other patches."""
    attention, shared = made_attention(), bucket_map((2, 9), True)
    x = seeded(2, len(shared), DIMS).double()
    own = torch.randint(50, (2, *shared.shape), generator=torch.Generator().manual_seed(0))
    for buckets in (shared, own):
        expected = torch.stack(
            [slow_attention(attention, *pair) for pair in zip(x, buckets.expand_as(own), strict=True)]
        )
        torch.testing.assert_close(attention(x, buckets), expected)


def test_lookups_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product with the table laid out by pairs, a gather, and a gather by sequence: values and gradients."""
    buckets, found, laid_out = bucket_map((7, 7), True), [], []
    embedding, cotangent = F.embedding, seeded(2, len(buckets), DIMS, seed=1).double()
    monkeypatch.setattr(F, 'embedding', lambda *args: laid_out.append(True) or embedding(*args))
    for limit, own in ((64, buckets), (0, buckets), (64, buckets.expand(2, -1, -1))):
        monkeypatch.setattr(module, 'MATMUL_TOKENS', limit)
        attention, x = made_attention(), seeded(2, len(buckets), DIMS).double().requires_grad_()
        out = attention(x, own)
        out.backward(cotangent)
        found.append((out, x.grad, *(parameter.grad for parameter in attention.parameters())))
    assert len(laid_out) == 1 and attention.position_table.grad.any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('kwargs', [dict(), dict(qkv_bias=False), dict(layer_scale_init_value=0.3)], ids=str)
@torch.no_grad()
def test_a_table_of_zeros_is_plain_attention(kwargs: dict) -> None:
    """As tables start, with any options. A number that all pairs of a query share has no effect either."""
    torch.manual_seed(0)
    plain, x = disturbed(MultiheadAttention(DIMS, HEADS, **kwargs).double(), 0.5), seeded(2, 20, DIMS).double()
    attention, buckets = RelativeAttention(plain).double(), bucket_map((4, 5), False)
    assert attention.position_table.shape == (1, 4, 50) and not attention.position_table.any()
    torch.testing.assert_close(attention(x, buckets), plain(x))
    attention.position_table[..., :49] = 1.5
    torch.testing.assert_close(attention(x, buckets), plain(x))
    attention.position_table.normal_()
    assert (attention(x, buckets) - plain(x)).abs().max() > 1e-3


def test_dropout_only_in_training() -> None:
    attention = disturbed(RelativeAttention(MultiheadAttention(DIMS, HEADS, attn_drop=0.5)))
    buckets, x = bucket_map((4, 5), False), seeded(8, 20, DIMS)
    assert torch.equal(attention.eval()(x, buckets), attention(x, buckets))
    assert not torch.equal(attention.train()(x, buckets), attention(x, buckets))


@pytest.mark.parametrize('grid', [(7, 7), (9, 9)], ids=str)
def test_autocast(grid: tuple[int, int]) -> None:
    """bfloat16 stays near float32 with either lookup, the gradient of the table included."""
    found = []
    for enabled in (False, True):
        attention, x = made_attention().float(), seeded(2, grid[0] * grid[1], DIMS)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = attention(x, bucket_map(grid, False))
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        (out.float() * seeded(*out.shape, seed=1)).mean().backward()
        found.append((out.float(), attention.position_table.grad))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.isfinite().all() and (exact - rounded).norm() < 0.05 * exact.norm()


# Blocks


def made_blocks(relative: bool, **kwargs: float) -> tuple[TransformerEncoderLayer, PositionedBlock]:
    torch.manual_seed(0)
    layer = disturbed(TransformerEncoderLayer(DIMS, HEADS, 24, **kwargs))
    return layer, PositionedBlock(layer, relative)


@with_and_without
@torch.no_grad()
def test_a_block_computes_what_its_layer_did(relative: bool) -> None:
    """With the same modules under the same names; the table alone is new and starts from zero."""
    layer, block = made_blocks(relative)
    x, names = seeded(2, 20, DIMS), dict(block.named_parameters()).keys()
    torch.testing.assert_close(block(x, TokenPositions(bucket_map((4, 5), False))), layer(x))
    assert names - dict(layer.named_parameters()).keys() == ({'attn.position_table'} if relative else set())
    assert dict(layer.named_parameters()).keys() <= names
    assert block.ffn.layers is layer.ffn.layers and block.attn.qkv is layer.attn.qkv


@with_and_without
def test_stochastic_depth_only_in_training(relative: bool) -> None:
    """It drops both branches of a sequence, each on its own."""
    _, block = made_blocks(relative, drop_path_rate=0.5)
    positions, x = TokenPositions(bucket_map((4, 5), False)), seeded(64, 20, DIMS)
    assert torch.equal(block.eval()(x, positions), block(x, positions))
    unchanged = (block.train()(x, positions) == x).flatten(1).all(1).float().mean()
    assert 0.1 < unchanged < 0.45  # a quarter drops both
