"""What anything that can be called costs: multiply-adds, seconds and memory."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_multiply_adds(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Count multiply-adds of matrix products, attention and convolutions: what papers on detection call FLOPs.

    PyTorch's counter sees each operation of ATen while it runs and counts two for a multiply-add; this is half of it.
    Not counted are biases, norms, activations and interpolation, and kernels with formulas of their own: MMCV's
    (RoIAlign, deformable convolution) and the fast path of ``nn.MultiheadAttention``.

    Args:
        model (nn.Module): The network.
        run (Callable[[], Any]): Runs it once, without gradients.
    Returns:
        dict[str, int]: Multiply-adds of each child of the model that has any, in the order they ran, and of what runs
        in none as ``other``.
    """
    counter = flop_counter()
    counts: Counter[str] = Counter()
    open_modules: list[int] = []

    def enter(module: nn.Module, args: tuple) -> None:
        open_modules.append(counter.get_total_flops())

    def leave(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            before = open_modules.pop()
            if not open_modules:
                counts[name] += counter.get_total_flops() - before

        return hook

    # Of every module, because hosts call parts of a head and not the head: the outermost one that runs counts
    handles = []
    for name, child in model.named_children():
        for module in child.modules():
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(name))]
    try:
        with counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    counts['other'] = counter.get_total_flops() - counts.total()
    return {name: count // 2 for name, count in counts.items() if count}


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which also knows fused attention on a CPU; two operations are a multiply-add."""
    return FlopCounterMode(display=False, custom_mapping=_cpu_attention_formulas())


def time_interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, device: str = 'cpu'
) -> dict[str, list[float]]:
    """Time several things in turn, round by round, so that what disturbs the machine disturbs all of them.

    Args:
        runs (Mapping[str, Callable[[], Any]]): What to time, by name.
        rounds (int): How often each is timed.
        warmup (int): Rounds before those, which are not timed. Default 1.
        device (str): Whose work a time has to cover; a GPU is waited for. Default ``cpu``.
    Returns:
        dict[str, list[float]]: Seconds of each round, by name.
    Raises:
        ValueError: If there is no round, or a negative number of them for warming up.
    """
    at_least(1, rounds=rounds)
    at_least(0, warmup=warmup)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-warmup, rounds):
        for name, run in runs.items():
            start = _now(device)
            run()
            end = _now(device)
            if i >= 0:
                seconds[name].append(end - start)
    return seconds


def round_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Ratio of two things that were measured in turn: the median of the rounds' own ratios."""
    return median(value / other for value, other in zip(values, others, strict=True))


def peak_memory(model: nn.Module, run: Callable[[], Any], device: str) -> int | None:
    """Memory of a GPU that a network needs while it runs: its weights, and the most that a run adds.

    Args:
        model (nn.Module): The network; others may lie on the GPU beside it.
        run (Callable[[], Any]): Runs it once.
        device (str): Where it runs.
    Returns:
        int | None: Bytes; None where the device is no GPU.
    """
    if device != 'cuda':
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    added = torch.cuda.max_memory_allocated() - before
    return added + sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


class MatrixProduct:
    """A product of two large square matrices; each call is one.

    It is a machine's practical limit: no network is faster, operation by operation.

    Args:
        device (str): ``cpu`` or ``cuda``.
        dtype (str): ``float32``, ``float16`` or ``bfloat16``.

    Attributes:
        operations (int): Floating-point operations of a call, two a multiply-add.
    """

    def __init__(self, device: str, dtype: str) -> None:
        side = 8192 if device == 'cuda' else 2048
        self.operations = 2 * side**3
        self._matrix = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))

    def __call__(self) -> Tensor:
        """The product."""
        return self._matrix @ self._matrix


def process_growth(
    make: Callable[[], Callable[[], Any]], warmup: Callable[[], Callable[[], Any]], runs: int = 3
) -> int:
    """By how much a process of its own grows at most while it makes something and runs it.

    That counts weights, activations, buffers of kernels, and what an allocator keeps beside them. Something smaller is
    made, run and dropped before, so that the code of libraries, which is read when it is first called, does not count.

    Args:
        make (Callable[[], Callable[[], Any]]): Makes what is run; both happen in the process, so it must be one that
            ``pickle`` takes, such as a ``functools.partial`` of a function.
        warmup (Callable[[], Callable[[], Any]]): As ``make``, of something smaller.
        runs (int): How often it is run. Default 3.
    Returns:
        int: Bytes.
    Raises:
        ValueError: If it is not run at all.
        RuntimeError: If the process was killed, for want of memory say.
    """
    at_least(1, runs=runs)
    # A fresh interpreter, which has loaded nothing but what `make` needs
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        try:
            return pool.submit(_grow, make, warmup, runs, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise RuntimeError('the process whose memory is measured was killed: memory may not suffice') from error


def _grow(
    make: Callable[[], Callable[[], Any]], warmup: Callable[[], Callable[[], Any]], runs: int, threads: int
) -> int:
    torch.set_num_threads(threads)
    warmup()()
    gc.collect()
    if sys.platform == 'linux':
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed would be used again and not be seen
        Path('/proc/self/clear_refs').write_text('5')  # the most so far is what there is now
    before = _memory('VmRSS')
    run = make()
    for _ in range(runs):
        run()
    return _memory('VmHWM') - before


def _memory(name: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path('/proc/self/status')
    if status.exists():
        return 1024 * int(re.search(rf'^{name}:\s+(\d+) kB$', status.read_text(), re.MULTILINE)[1])
    # Elsewhere only the most is told; on Linux it would begin with what the parent had
    return (1 if sys.platform == 'darwin' else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu_attention_formulas() -> dict[Any, Callable]:
    """Of fused attention on the CPU, which PyTorch's counter misses; 2.1 has it under a name that the counter knows."""
    fused = '_scaled_dot_product_flash_attention_for_cpu'

    def forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *args, **kwargs
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    formulas = {fused: forward, f'{fused}_backward': backward}
    return {getattr(torch.ops.aten, name): count for name, count in formulas.items() if hasattr(torch.ops.aten, name)}


def _now(device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def check_device(device: str) -> None:
    """Raise if nothing can be measured there.

    Raises:
        ValueError: If it is neither ``cpu`` nor ``cuda``.
        RuntimeError: If it is ``cuda`` and there is no GPU.
    """
    if device not in ('cpu', 'cuda'):
        raise ValueError(f'device is {device!r}, but it must be cpu or cuda')
    if device == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError('device is cuda, but PyTorch finds no GPU here')


def at_least(limit: int, **values: int) -> None:
    """Raise ValueError for the first value below the limit; it is named."""
    for name, value in values.items():
        if value < limit:
            raise ValueError(f'{name} is {value}, but it must be at least {limit}')
