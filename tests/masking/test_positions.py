"""Positions of units and tokens against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from mm_ummae.masking import compact_map, sampled_positions, sincos_position
from tests.builders import all_indices, draw, slow_unit


@pytest.mark.parametrize('tokens', [1, 4])
def test_sampled_positions(tokens: int) -> None:
    """Position of each token of the compact image in the full one; a map of positions, compacted, has the same."""
    offsets = draw(2, (96, 160)).offsets
    rows, columns = sampled_positions(offsets, tokens)
    assert rows.shape == columns.shape == (2, 3 * tokens, 5 * tokens)
    for n, i, j in all_indices(rows.shape):
        cell = i // tokens, j // tokens
        unit = slow_unit(int(offsets[n][cell]), *cell)
        assert rows[n, i, j] == unit[0] * tokens + i % tokens
        assert columns[n, i, j] == unit[1] * tokens + j % tokens
    full = torch.stack(torch.meshgrid(torch.arange(6 * tokens), torch.arange(10 * tokens), indexing='ij'))
    kept = compact_map(full.expand(2, -1, -1, -1), offsets, tokens)  # shared by the batch
    assert torch.equal(kept, torch.stack((rows, columns), 1))


def test_sine_cosine_by_the_formula() -> None:
    """Half the channels for the column, then half for the row; each half is [sin(p w), cos(p w)]."""
    positions = sincos_position(3, 5, 8)
    for row, column in all_indices((3, 5)):
        angles = [[place * 10000 ** (-i / 2) for i in (0, 1)] for place in (column, row)]
        expected = [wave(angle) for half in angles for wave in (math.sin, math.cos) for angle in half]
        assert positions[row, column].tolist() == pytest.approx(expected, abs=1e-6)
    assert sincos_position(2, 3, 4, device='meta').device.type == 'meta'
    with pytest.raises(ValueError, match=r'embed_dims is 6, but .* needs a multiple of 4'):
        sincos_position(2, 2, 6)
