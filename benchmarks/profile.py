"""Profile of a training step: time of each kind of operation in encoder, decoder, head and optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from mm_ummae.analysis import markdown_table
from mm_ummae.analysis.step import TrainingStep

# Beginnings of the names of ATen operations; products beside those of linear layers belong to attention
KINDS = {
    'linear layers': ('mm', 'addmm'),
    'attention products': ('bmm', 'baddbmm', '_scaled_dot_product', '_flash_attention', '_efficient_attention'),
    'softmax': ('_softmax', '_safe_softmax'),
    'convolution': ('convolution', 'mkldnn_convolution', '_mkldnn', 'cudnn_convolution', '_slow_conv', 'thnn_conv'),
    'norms': ('native_layer_norm',),
    'GELU': ('gelu',),
}
OTHERS = 'sums, copies, gathers'
PARTS = ('encoder', 'decoder', 'head', 'optimizer')
BACKWARD = 1  # scope of the events of autograd nodes


def profile_step(step: TrainingStep) -> dict[str, dict[str, float]]:
    """Profile one step with ``torch.profiler``.

    A backward operation belongs to the part whose forward operation made its autograd node. What is neither in the
    backbone nor in the neck nor in the optimizer belongs to the head.

    Args:
        step (TrainingStep): Has made at least one step.
    Returns:
        dict[str, dict[str, float]]: Seconds per image of each kind of operation, by part: of the GPU if there is one,
        else of the CPU.
    """
    times: Counter[tuple[str, str]] = Counter()
    for part, kind, seconds in operations(step):
        times[part, kind] += seconds
    found: dict[str, dict[str, float]] = {}
    for (part, kind), seconds in times.items():
        found.setdefault(part, {})[kind] = seconds / len(step.inputs)
    return found


def operations(step: TrainingStep) -> Iterator[tuple[str, str, float]]:
    """Part, kind and seconds, without those of operations inside it, of every operation of a step."""
    on_gpu = step.inputs.is_cuda
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with _labelled(step.model), torch.profiler.profile(activities=activities) as profiler:
        step.loss().backward()
        with record_function('optimizer'):
            step.update()
    makers: dict[int, str] = {}  # part that made an autograd node, by its sequence number
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU]
    for event in events:
        part, in_backward = _part(event, makers)
        if not in_backward and event.sequence_nr >= 0:
            makers[event.sequence_nr] = part  # the last operation before a node is made has its number
        if event.name.startswith('aten::'):
            yield part, _kind(event.name.removeprefix('aten::')), 1e-6 * _microseconds(event, on_gpu)


def _part(event: FunctionEvent, makers: Mapping[int, str]) -> tuple[str, bool]:
    """The part of an event, and whether it belongs to the backward pass."""
    while event is not None:
        if event.name in PARTS:
            return event.name, False
        if event.name.startswith('autograd::engine::evaluate_function'):
            nodes = [child for child in event.cpu_children if child.scope == BACKWARD]
            return next((makers[node.sequence_nr] for node in nodes if node.sequence_nr in makers), 'head'), True
        event = event.cpu_parent
    return 'head', False


def _microseconds(event: FunctionEvent, on_gpu: bool) -> float:
    if not on_gpu:
        return event.self_cpu_time_total
    # Before PyTorch 2.5 by another name
    return getattr(event, 'self_device_time_total', None) or getattr(event, 'self_cuda_time_total', 0)


def _kind(operation: str) -> str:
    return next((kind for kind, names in KINDS.items() if operation.startswith(names)), OTHERS)


@contextmanager
def _labelled(model: nn.Module) -> Iterator[None]:
    """Label backbone and neck in the profile."""
    labels: list[record_function] = []

    def enter(part: str) -> None:
        labels.append(record_function(part))
        labels[-1].__enter__()

    handles = []
    for part, module in (('encoder', model.backbone), ('decoder', getattr(model, 'neck', None))):
        if module is not None:
            handles += [
                module.register_forward_pre_hook(lambda *_, part=part: enter(part)),
                module.register_forward_hook(lambda *_: labels.pop().__exit__(None, None, None)),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def profile_table(profiles: Mapping[str, dict[str, dict[str, float]]], smallest: float = 5e-4) -> str:
    """Seconds per image of each kind of operation in each part, a column for each network, as a Markdown table.

    Args:
        profiles (Mapping[str, dict]): Network -> part -> kind of operation -> seconds per image.
        smallest (float): Rows in which no network has as many seconds stand together as ``all else``. Default 5e-4.
    """
    lines, rest = [], [0.0] * len(profiles)
    for part in PARTS:
        for kind in (*KINDS, OTHERS):
            values: list[Any] = [profile.get(part, {}).get(kind, 0.0) for profile in profiles.values()]
            if any(value >= smallest for value in values):
                lines.append([f'{part}: {kind}', *(f'{value:.3f}' for value in values)])
            else:
                rest = [sum(pair) for pair in zip(rest, values, strict=True)]
    totals = [sum(sum(kinds.values()) for kinds in profile.values()) for profile in profiles.values()]
    if any(value >= 5e-4 for value in rest):
        lines.append(['all else', *(f'{value:.3f}' for value in rest)])
    lines.append(['all', *(f'{value:.3f}' for value in totals)])
    return markdown_table(['seconds per image', *profiles], lines)
