"""BEiT's ViT for fine-tuning from LoMaR's local windows (arXiv 2206.00790, 2106.08254)."""

from __future__ import annotations

import numpy as np
import torch
from mmpretrain.models.backbones import BEiTViT
from scipy.interpolate import make_interp_spline
from scipy.optimize import brentq
from torch import Tensor

from mm_ummae.checkpoints.loading import start_from_checkpoint
from mm_ummae.models.layers import encode_none
from mm_ummae.registry import MODELS

TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'
SHARED = f'rel_pos_bias.{TABLE}'
CLASS_BUCKETS = 3  # last rows of a table: class token to patch, patch to class token, class token to itself


@MODELS.register_module()
class LoMaRBEiTViT(BEiTViT):
    """MMPretrain's BEiT, started from windows: a whole image has more relative positions than a window.

    MMPretrain resizes tables of relative positions as BEiT does, but with a function that SciPy no longer has (1.14),
    and not far enough for 5x5 windows at 224 px or 7x7 windows at 384 px. This class resizes them itself, and raises
    where a checkpoint does not fit. Its arguments are those of MMPretrain's ``BEiTViT``.
    """

    # A pre-training checkpoint holds these though a fine-tuned backbone does not.
    PRETRAINING_ONLY = ('mask_token', 'ln1.weight', 'ln1.bias')

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W), normalised -> what ``out_type`` says of each of ``out_indices``."""
        encode = super().forward
        return encode(images) if images.shape[0] else encode_none(encode, images)

    def init_weights(self) -> None:
        """Initialise as MMPretrain does, or load a checkpoint strictly (see :func:`start_from_checkpoint`)."""
        if not start_from_checkpoint(self):
            super().init_weights()

    def train(self, mode: bool = True) -> LoMaRBEiTViT:
        """Set the mode and return the module, as PyTorch's modules do; MMPretrain's backbones return None."""
        super().train(mode)
        return self

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give each layer the shared table of relative positions, resize tables, and start the last norm as it is."""
        own, shared = self.state_dict(), state.get(SHARED)
        tables = [name for name in own if name.endswith(TABLE)]
        adapted = {name: value for name, value in state.items() if not name.endswith(INDEX)}
        if tables:
            adapted.pop(SHARED, None)
        for name in tables:
            if name in state or shared is not None:
                adapted[name] = resize_bias_table(state.get(name, shared), _side(own[name]))
        for name, value in own.items():
            if name.endswith(INDEX) or (name.startswith('ln2.') and name not in state):
                adapted[name] = value
        return adapted


def _side(table: Tensor) -> int:
    """Differences of rows, and of columns, in the table of a square image."""
    return round((len(table) - CLASS_BUCKETS) ** 0.5)


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """Stretch a table of relative positions, as BEiT does (arXiv 2106.08254, its published code).

    The old differences are placed at distances whose gaps grow geometrically from 1 until the largest is the new
    largest one, so that neighbours keep their values, and a cubic spline runs through them. A smaller table is cut out
    of the middle.

    Args:
        table (Tensor): (S * S + 3, H): S x S differences of rows and columns, then the class token's; H heads.
        side (int): S of the new table, odd.
    Returns:
        Tensor: (side * side + 3, H).
    Raises:
        ValueError: If the table is not that of a square.
    """
    old = _side(table)
    if old % 2 == 0 or len(table) != old**2 + CLASS_BUCKETS:
        raise ValueError(
            f'{TABLE} has {len(table)} rows, but a table of square images has S * S + {CLASS_BUCKETS} with S odd'
        )
    if old == side:
        return table
    # (s, old): weights of the values at the old places in the cubic spline at the new ones
    places = _geometric_places(old // 2, side // 2)
    spline = make_interp_spline(places, np.eye(old), k=min(3, old - 1))
    weights = torch.from_numpy(spline(np.arange(-(side // 2), side // 2 + 1)))
    differences = table[:-CLASS_BUCKETS].double().unflatten(0, (old, old))
    differences = torch.einsum('ra,cb,abh->rch', weights, weights, differences).flatten(0, 1)
    return torch.cat((differences.to(table.dtype), table[-CLASS_BUCKETS:]))


def _geometric_places(count: int, last: int) -> np.ndarray:
    """-last ... -1, 0, 1 ... last, ``count`` on each side, with gaps that grow by a constant factor of at least 1."""
    if last <= count or count < 2:  # a single gap cannot grow: what lies beyond is extrapolated
        gaps = np.ones(count)
    else:
        powers = np.arange(count)
        factor = brentq(lambda factor: (factor**powers).sum() - last, 1, last)
        gaps = factor**powers
    places = gaps.cumsum()
    return np.concatenate((-places[::-1], [0], places))
