"""Acceptance bars of the project for pre-training steps."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from mm_ummae.analysis import markdown_table
from mm_ummae.analysis.measuring import round_ratio

from .entries import PRETRAINING


class Target(NamedTuple):
    """A bar and the measured value.

    Attributes:
        name (str): What is compared.
        limit (float): At most this, or at least if ``at_most`` is False.
        value (float): As measured.
        at_most (bool): On which side of the limit the value has to be.
    """

    name: str
    limit: float
    value: float
    at_most: bool = True

    def reached(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def cells(self) -> list[str]:
        """Limit, value and whether it is reached, for a table."""
        sign = '≤' if self.at_most else '≥'
        return [f'{sign} {self.limit:.3g}', f'{self.value:.3g}', 'yes' if self.reached() else 'no']


def product_share(run: dict[str, Any], network: dict[str, Any]) -> float:
    """FLOP/s of a step over those of the matrix product in the same round: the median over the rounds."""
    product = run['matrix_product']
    rounds = zip(network['seconds'], product['seconds'], strict=True)
    return median(network['flops']['step'] / own / (product['flops'] / other) for own, other in rounds)


def targets(run: dict[str, Any]) -> list[Target]:
    """The bars for the device and precision of a run of :data:`~benchmarks.entries.PRETRAINING`, with its values."""
    networks = {network['name']: network for network in run['networks']}
    ours, plain, simmim, stock, _ = (networks[entry.name] for entry in PRETRAINING)
    on_gpu, half = run['arguments']['device'] == 'cuda', run['arguments']['dtype'] != 'float32'
    factor = 1.1 if on_gpu else 1.05
    flops = ours['flops']['step'] / simmim['flops']['step']
    to_plain, share = (0.4, 0.35) if on_gpu else (0.6, 0.5) if half else (0.75, 0.8)

    def time(other: dict[str, Any]) -> float:
        return round_ratio(ours['seconds'], other['seconds'])

    found = [
        Target('step time, to plain formulation', to_plain, time(plain)),
        Target(f'step time, to SimMIM ({factor} x FLOPs)', factor * flops, time(simmim)),
        Target("step time, to MMPretrain's SimMIM", 0.35, time(stock)),
        Target('share of matrix products', share, product_share(run, ours), at_most=False),
    ]
    if ours['memory'] is not None:
        limits = (0.4, 0.35) if on_gpu else (0.7, 0.4)
        for other, name, limit in zip((plain, simmim), ('plain formulation', 'SimMIM'), limits, strict=True):
            found.append(Target(f'peak memory, to {name}', limit, ours['memory'] / other['memory']))
    return found


def target_table(found: Sequence[Target]) -> str:
    """Targets as a Markdown table."""
    rows = [[target.name, *target.cells()] for target in found]
    return markdown_table(['target', 'limit', 'measured', 'reached'], rows)
