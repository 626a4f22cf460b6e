"""Sine-cosine positions against their formula."""

from __future__ import annotations

import math

import pytest

from mm_ummae.masking import sincos_position


def test_sine_cosine_by_the_formula() -> None:
    """Half the channels for the column, then half for the row; each half is [sin(p w), cos(p w)]."""
    positions = sincos_position(3, 5, 8).tolist()
    for row in range(3):
        for column in range(5):
            angles = [[place * 10000 ** (-i / 2) for i in (0, 1)] for place in (column, row)]
            expected = [wave(angle) for half in angles for wave in (math.sin, math.cos) for angle in half]
            assert positions[row][column] == pytest.approx(expected, abs=1e-6)


def test_width_is_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match=r'embed_dims is 6, but .* needs a multiple of 4'):
        sincos_position(2, 2, 6)
    assert sincos_position(2, 3, 4, device='meta').device.type == 'meta'
