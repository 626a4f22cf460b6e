"""Golden cases: outputs of the published implementation on tiny models (see data/golden/README.md)."""

from __future__ import annotations

import json
import zlib
from math import isqrt, prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.checkpoints.conversion import to_ours
from mm_ummae.checkpoints.names import recognise
from mm_ummae.masking import sincos_position

FOLDER = Path(__file__).parent / 'data' / 'golden'
TINY = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), position_dims=8)


class GoldenCase:
    """One case: ``meta`` (loss, gradient norms, published names) and ``arrays``.

    Args:
        name (str): File name without suffix.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.meta = json.loads((FOLDER / f'{name}.json').read_text())
        with np.load(FOLDER / f'{name}.npz') as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def published_state(self) -> dict[str, Tensor]:
        """The case's weights under published names, as a released file would hold them."""
        return {name: made_weight(name, **spec) for name, spec in self.meta['params'].items()}

    def load_into(self, model: nn.Module, prefixes: dict[str, str]) -> None:
        """Load the case's weights into ``model``; each has all parameters of the other.

        Args:
            model (nn.Module): The model, or a module with its parts.
            prefixes (dict[str, str]): Prefixes of ``backbone``, ``neck`` and ``head`` in it.
        """
        state = to_ours(self.published_state())
        model.load_state_dict({self._place(name, prefixes): value for name, value in state.items()}, strict=True)

    def check_gradients(self, model: nn.Module, prefixes: dict[str, str], rtol: float = 1e-4) -> None:
        """Compare the gradient norms of all parameters; the same ones are trained in both models."""
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        expected = self.meta['grad_norms']
        names = recognise(self.published_state()).names
        places = {theirs: self._place(ours, prefixes) for theirs, ours in names.items() if theirs in expected}
        assert set(places) == set(expected) and set(places.values()) == set(parameters)
        # A constant added to all logits cancels in softmax: the gradient of posmlp.2.bias is 0, and its published norm
        # is rounding noise of 1e-8 of the largest norm. The absolute term covers that alone.
        noise = 1e-7 * max(expected.values())
        found = {name: parameters[places[name]].grad.norm().item() for name in expected}
        wrong = {
            name: (found[name], norm)
            for name, norm in expected.items()
            if abs(found[name] - norm) > rtol * norm + noise
        }
        assert not wrong, wrong

    def _place(self, name: str, prefixes: dict[str, str]) -> str:
        part, _, rest = name.partition('.')
        return prefixes[part] + rest.removeprefix('0.' if self.name.startswith('det') and part == 'neck' else '')


def published(name: str) -> dict[str, Tensor]:
    """The weights of a case under published names."""
    return GoldenCase(name).published_state()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same names, types and values."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def made_weight(name: str, shape: list[int], kind: str) -> Tensor:
    """The weight of a published parameter, a function of its name."""
    if kind == 'sincos':
        side = isqrt(shape[1])
        table = sincos_position(side, side, shape[2]).flatten(0, 1)
        return F.pad(table, (0, 0, shape[1] - side**2, 0))[None]  # a row of zeros for ViT's class token
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(prod(shape)).reshape(shape)
    value = {
        'weight': lambda: n / np.sqrt(prod(shape[1:])),
        'bias': lambda: 0.1 * n,
        'norm_weight': lambda: 1 + 0.1 * n,
        'token': lambda: 0.5 * n,
    }[kind]()
    return torch.from_numpy(value.astype(np.float32))


def made_images(seed: int, n: int, height: int, width: int) -> Tensor:
    """Normalised images of a case, (n, 3, height, width)."""
    values = np.random.RandomState(seed).standard_normal((n, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))
