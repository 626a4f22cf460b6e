"""Where the time of a training step goes: every operation timed by itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mm_ummae.analysis.report import markdown_table
from mm_ummae.analysis.training import Entry, TrainingStep, make_step

# Operations of ATen by what they are; other products than those of linear layers belong to attention
KINDS = {
    'linear layers': ('mm', 'addmm'),
    'attention products': ('bmm', 'baddbmm', '_scaled_dot_product'),
    'softmax': ('_softmax',),
    'convolution': ('convolution',),
    'norms': ('native_layer_norm',),
    'GELU': ('gelu',),
}
OTHERS = 'sums, copies, gathers'
PARTS = ('encoder', 'decoder', 'head', 'optimiser')


class OperationTimes(TorchDispatchMode):
    """Seconds of each kind of operation in each part of a step, forward and backward together.

    Every operation of ATen is timed by itself, and a GPU is waited for after each. So the sum is more than an
    undisturbed step takes, and small operations look larger than they are. On a CPU it is processor time.

    Args:
        device (str): Whose work is timed.

    Attributes:
        seconds (Counter[tuple[str, str]]): By part and kind.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.seconds: Counter[tuple[str, str]] = Counter()
        self._device, self._part = device, 'head'

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation of ATen and time it."""
        start = self._now()
        result = func(*args, **(kwargs or {}))
        self.seconds[self._part, _kind(func.overloadpacket.__name__)] += self._now() - start
        return result

    def _now(self) -> float:
        if self._device == 'cpu':
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, step: TrainingStep) -> None:
        """Time one step.

        Backward goes through head, decoder and encoder in turn, so the gradient of a part's output tells that this
        part begins.
        """
        with self._follow(step.model), self:
            self._part = 'head'
            loss = step.loss()
            self._part = 'head'
            loss.backward()
            self._part = 'optimiser'
            step.update()

    @contextmanager
    def _follow(self, model: nn.Module) -> Iterator[None]:
        def enter(part: str) -> Callable[..., None]:
            return lambda *_: setattr(self, '_part', part)

        def leave(part: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
                self._part = 'head'
                (output if isinstance(output, Tensor) else output[0]).register_hook(enter(part))

            return hook

        handles = []
        for part, module in (('encoder', model.backbone), ('decoder', getattr(model, 'neck', None))):
            if module is not None:
                handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave(part))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _kind(operation: str) -> str:
    matches = (kind for kind, names in KINDS.items() if operation.startswith(names))
    return next(matches, OTHERS)


def profile_step(step: TrainingStep, device: str, rounds: int = 1) -> dict[str, dict[str, float]]:
    """Where the time of a step goes.

    Args:
        step (Step): Has made at least one step.
        device (str): Where.
        rounds (int): Steps to take the mean of. Default 1.
    Returns:
        dict[str, dict[str, float]]: Seconds per image of each kind of operation, by part.
    """
    times = OperationTimes(device)
    for _ in range(rounds):
        times.step(step)
    found: dict[str, dict[str, float]] = {}
    for (part, kind), seconds in times.seconds.items():
        found.setdefault(part, {})[kind] = seconds / rounds / len(step.inputs)
    return found


def profile_networks(entries: Sequence[Entry], options: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`profile_step` of entries, each by its name; ``options`` are arguments of :class:`TrainingStep`."""
    profiles = {}
    for entry in entries:
        step = make_step(entry, options)
        step()
        profiles[entry.name] = profile_step(step, options['device'])
    return profiles


def profile_table(profiles: Mapping[str, dict[str, dict[str, float]]]) -> str:
    """Seconds per image of each kind of operation in each part, a column a network, as a Markdown table."""
    lines = []
    for part in PARTS:
        for kind in (*KINDS, OTHERS):
            values = [profile.get(part, {}).get(kind, 0.0) for profile in profiles.values()]
            if any(value >= 5e-4 for value in values):
                lines.append([f'{part}: {kind}', *(f'{value:.3f}' for value in values)])
    totals = [sum(sum(kinds.values()) for kinds in profile.values()) for profile in profiles.values()]
    lines.append(['all', *(f'{value:.3f}' for value in totals)])
    return markdown_table(['seconds per image', *profiles], lines)
