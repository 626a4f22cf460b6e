"""Contextual relative positions: the published buckets, both ways to look them up, and attention against a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from mm_ummae.models.layers import relative_position
from mm_ummae.models.layers import CLASS_BUCKET, NUM_BUCKETS, Places, PositionedBlock, RelativeAttention, bucket_map, piecewise_index

from tests.builders import disturbed, seeded

DIMS, HEADS = 12, 3
# Of the published index for differences 0, 1, 2, ...: from 4 on it is cut to 3
BY_HAND = (0, 1, 2, 2, *[3] * 17)
GRIDS = [(7, 7), (2, 9), (5, 1)]


def made_attention(**kwargs) -> RelativeAttention:
    """In float64, every parameter moved away from its start."""
    torch.manual_seed(0)
    return disturbed(RelativeAttention(MultiheadAttention(DIMS, HEADS, **kwargs)).double(), 0.5).eval()


def slow_bucket(query: int, key: int, columns: int, class_token: bool) -> int:
    """Bucket of two tokens, from its description."""
    if class_token and 0 in (query, key):
        return CLASS_BUCKET
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
    assert piecewise_index(torch.arange(4)).dtype == torch.int64


@pytest.mark.parametrize('class_token', [False, True])
@pytest.mark.parametrize('grid', [*GRIDS, (14, 11)], ids=str)
def test_bucket_map_equals_loop(grid: tuple[int, int], class_token: bool) -> None:
    buckets = bucket_map(grid, class_token)
    tokens = range(grid[0] * grid[1] + class_token)
    assert buckets.tolist() == [[slow_bucket(i, j, grid[1], class_token) for j in tokens] for i in tokens]


def test_all_buckets_are_used() -> None:
    """49 by patches, on the published window as on larger grids, and one for the class token."""
    assert (CLASS_BUCKET, NUM_BUCKETS) == (49, 50)
    for grid in ((7, 7), (14, 14), (24, 31)):
        assert bucket_map(grid, False).unique().tolist() == list(range(49))
    with_class = bucket_map((7, 7), True)
    assert (with_class == 49).sum() == 2 * 49 + 1
    # Opposite pairs have opposite buckets
    buckets = bucket_map((9, 6), False)
    assert torch.equal(buckets + buckets.T, torch.full_like(buckets, 48))


# Attention


@pytest.mark.parametrize('class_token', [False, True])
@pytest.mark.parametrize('grid', [(4, 5), (2, 9)], ids=str)
@torch.no_grad()
def test_attention_equals_a_loop_over_pairs(grid: tuple[int, int], class_token: bool) -> None:
    attention, buckets = made_attention(), bucket_map(grid, class_token)
    x = seeded(2, len(buckets), DIMS).double()
    expected = torch.stack([slow_attention(attention, row, buckets) for row in x])
    torch.testing.assert_close(attention(x, buckets), expected)


@torch.no_grad()
def test_sequences_may_have_buckets_of_their_own() -> None:
    """(B, T, T), as where each sequence shows other patches."""
    attention, x = made_attention(), seeded(3, 6, DIMS).double()
    buckets = torch.randint(NUM_BUCKETS, (3, 6, 6), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([slow_attention(attention, *pair) for pair in zip(x, buckets, strict=True)])
    torch.testing.assert_close(attention(x, buckets), expected)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_every_way_to_look_up_is_the_same(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A product with the table laid out by pairs, a gather, and a gather by sequence: values and gradients."""
    buckets, found = bucket_map(grid, True), []
    cotangent = seeded(2, len(buckets), DIMS, seed=1).double()
    for limit, own in ((64, buckets), (0, buckets), (64, buckets.expand(2, -1, -1))):
        monkeypatch.setattr(relative_position, 'MATMUL_TOKENS', limit)
        attention, x = made_attention(), seeded(2, len(buckets), DIMS).double().requires_grad_()
        out = attention(x, own)
        out.backward(cotangent)
        found.append((out, x.grad, *(parameter.grad for parameter in attention.parameters())))
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    assert attention.position_table.grad.any()


def test_both_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above compares two ways: the layout by pairs is made up to 64 tokens, and not beyond."""
    made = []
    embedding = F.embedding
    monkeypatch.setattr(F, 'embedding', lambda index, table: made.append(len(index)) or embedding(index, table))
    for grid in ((8, 8), (5, 13)):
        made_attention()(seeded(1, grid[0] * grid[1], DIMS).double(), bucket_map(grid, False))
    assert made == [64]


@pytest.mark.parametrize('grid', [(4, 5), (9, 9)], ids=str)
@torch.no_grad()
def test_a_table_of_zeros_is_plain_attention(grid: tuple[int, int]) -> None:
    """As tables start; a number that all pairs of a query share changes nothing either."""
    torch.manual_seed(0)
    plain, x = disturbed(MultiheadAttention(DIMS, HEADS).double(), 0.5), seeded(2, grid[0] * grid[1], DIMS).double()
    attention, buckets = RelativeAttention(plain).double(), bucket_map(grid, False)
    assert attention.position_table.shape == (1, 4, 50) and not attention.position_table.any()
    torch.testing.assert_close(attention(x, buckets), plain(x))
    attention.position_table[..., :49] = 1.5
    torch.testing.assert_close(attention(x, buckets), plain(x))
    attention.position_table.normal_()
    assert (attention(x, buckets) - plain(x)).abs().max() > 1e-3


@pytest.mark.parametrize('kwargs', [dict(qkv_bias=False), dict(layer_scale_init_value=0.3)], ids=str)
@torch.no_grad()
def test_switches_of_the_host_s_attention_stay(kwargs: dict) -> None:
    plain, x = MultiheadAttention(DIMS, HEADS, **kwargs).eval(), seeded(2, 20, DIMS)
    expected = plain(x)
    torch.testing.assert_close(RelativeAttention(plain)(x, bucket_map((4, 5), False)), expected)


def test_dropout_is_on_in_training_only() -> None:
    host = MultiheadAttention(DIMS, HEADS, attn_drop=0.5)
    attention, buckets, x = disturbed(RelativeAttention(host)), bucket_map((4, 5), False), seeded(8, 20, DIMS)
    assert torch.equal(attention.eval()(x, buckets), attention(x, buckets))
    assert not torch.equal(attention.train()(x, buckets), attention(x, buckets))


@pytest.mark.parametrize('relative', [False, True])
def test_drop_path_is_on_in_training_only(relative: bool) -> None:
    """It drops both branches of a sequence, each on its own."""
    torch.manual_seed(0)
    block = PositionedBlock(disturbed(TransformerEncoderLayer(DIMS, HEADS, 24, drop_path_rate=0.5)), relative)
    places, x = Places(bucket_map((4, 5), False)), seeded(64, 20, DIMS)
    assert torch.equal(block.eval()(x, places), block(x, places))
    unchanged = (block.train()(x, places) == x).flatten(1).all(1).float().mean()
    assert 0.1 < unchanged < 0.45  # a quarter drops both


@pytest.mark.parametrize('grid', [(7, 7), (9, 9)], ids=str)
def test_autocast(grid: tuple[int, int]) -> None:
    """bfloat16 stays near float32 either way, the table's gradient included."""
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


def made_blocks(relative: bool) -> tuple[TransformerEncoderLayer, PositionedBlock]:
    torch.manual_seed(0)
    layer = disturbed(TransformerEncoderLayer(DIMS, HEADS, 24))
    return layer, PositionedBlock(layer, relative)


@pytest.mark.parametrize('relative', [False, True])
@torch.no_grad()
def test_a_block_is_the_host_s_layer(relative: bool) -> None:
    """The same parameters under the same names and the same values; only the table is new, and starts from zero."""
    layer, block = made_blocks(relative)
    x, names = seeded(2, 20, DIMS), dict(block.named_parameters()).keys()
    torch.testing.assert_close(block(x, Places(bucket_map((4, 5), False))), layer(x))
    assert names - dict(layer.named_parameters()).keys() == ({'attn.position_table'} if relative else set())
    assert dict(layer.named_parameters()).keys() <= names


@pytest.mark.parametrize('relative', [False, True])
@pytest.mark.parametrize('grid', [(6, 9), (5, 7)], ids=str)
@torch.no_grad()
def test_attention_in_windows_equals_loop(grid: tuple[int, int], relative: bool) -> None:
    """Windows of 3x3 from the top left; what hangs over the edge is zeros after the first norm."""
    layer, block = made_blocks(relative)
    if relative:
        block.attn.position_table.normal_()
    x, buckets = seeded(2, grid[0] * grid[1], DIMS), bucket_map((3, 3), False)
    inputs = F.pad(block.ln1(x).unflatten(1, grid), (0, 0, 0, -grid[1] % 3, 0, -grid[0] % 3))
    attended = torch.zeros_like(inputs)
    for top in range(0, grid[0], 3):
        for left in range(0, grid[1], 3):
            window = inputs[:, top : top + 3, left : left + 3].flatten(1, 2)
            out = block.attn(window, buckets) if relative else block.attn(window)
            attended[:, top : top + 3, left : left + 3] = out.unflatten(1, (3, 3))
    expected = x + attended[:, : grid[0], : grid[1]].flatten(1, 2)
    expected = layer.ffn(layer.ln2(expected), identity=expected)
    torch.testing.assert_close(block(x, Places(buckets if relative else None, grid, 3)), expected)


def test_parts_are_taken_over_and_not_copied() -> None:
    """A layer's values and hooks stay what they were."""
    layer, block = made_blocks(True)
    assert block.ffn is layer.ffn and block.attn.qkv is layer.attn.qkv
    assert sum(isinstance(module, nn.Linear) for module in block.modules()) == 4
