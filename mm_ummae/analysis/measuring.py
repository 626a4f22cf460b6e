"""FLOPs, latency and memory of a callable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

DTYPES = {'float32': None, 'float16': torch.float16, 'bfloat16': torch.bfloat16}  # of autocast; None is without


@dataclass(frozen=True)
class Settings:
    """Device, precision and repetitions of a measurement.

    Args:
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` (on a GPU) or ``bfloat16`` for mixed precision by autocast. Default
            ``float32``.
        rounds (int): Timed rounds. Default 5.
        warmup (int): Rounds before those, which are not timed. Default 1.

    Raises:
        ValueError: If a value is not one of these.
        RuntimeError: If the device is ``cuda`` and there is no GPU.
    """

    device: str = 'cpu'
    dtype: str = 'float32'
    rounds: int = 5
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.device not in ('cpu', 'cuda'):
            raise ValueError(f'device is {self.device!r}, but it must be cpu or cuda')
        if self.dtype not in DTYPES or (self.device, self.dtype) == ('cpu', 'float16'):
            raise ValueError(
                f'dtype is {self.dtype!r}, but it must be one of {", ".join(DTYPES)}, on a CPU not float16'
            )
        at_least(1, rounds=self.rounds)
        at_least(0, warmup=self.warmup)
        if self.device == 'cuda' and not torch.cuda.is_available():
            raise RuntimeError('device is cuda, but PyTorch finds no GPU here')

    def autocast(self) -> torch.autocast:
        """Context of the precision."""
        dtype = DTYPES[self.dtype]
        return torch.autocast(self.device, dtype, enabled=dtype is not None)

    def time(self, runs: Mapping[Any, Callable[[], Any]]) -> dict[Any, list[float]]:
        """Seconds of each round of each callable; see :func:`time_interleaved`."""
        return time_interleaved(runs, self.rounds, self.warmup, self.device)


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """PyTorch's counter of floating-point operations, two for a multiply-add.

    It counts matrix products, attention and convolutions. Attention is not fused while it counts: the counter does not
    know the fused kernel of a CPU, and products that a fused backward recomputes are not FLOPs of the model.
    """
    with FlopCounterMode(display=False) as counter, _unfused_attention():
        yield counter


def _unfused_attention() -> AbstractContextManager:
    if hasattr(torch.nn, 'attention'):
        return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)  # before PyTorch 2.3


def count_multiply_adds(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Count multiply-adds of backbone, neck and the rest: what papers on detection call FLOPs.

    Not counted are biases, norms, activations and interpolation, and operations of MMCV (RoIAlign, deformable
    convolution).

    Args:
        model (nn.Module): The network.
        run (Callable[[], Any]): Runs it once, without gradients.
    Returns:
        dict[str, int]: ``backbone`` and ``neck``, if the model has and calls them, and ``heads``, everything else.
    """
    counts: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> list[RemovableHandle]:
        return [
            module.register_forward_pre_hook(lambda *_: counts.update({name: -counter.get_total_flops()})),
            module.register_forward_hook(lambda *_: counts.update({name: counter.get_total_flops()})),
        ]

    # The counter's own counts by module miss heads, which hosts use without calling their `forward`
    parts = {name: getattr(model, name, None) for name in ('backbone', 'neck')}
    with flop_counter() as counter:
        handles = [handle for part in parts.items() if part[1] is not None for handle in watch(*part)]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    counts['heads'] = counter.get_total_flops() - counts.total()
    return {name: count // 2 for name, count in counts.items() if count}


def time_interleaved(
    runs: Mapping[Any, Callable[[], Any]], rounds: int, warmup: int = 1, device: str = 'cpu'
) -> dict[Any, list[float]]:
    """Time several callables in turn, round by round, so that other load on the machine affects all of them alike.

    (``torch.utils.benchmark.Timer`` makes two warm-up calls before each measurement, which would triple the time of
    long steps, and does not interleave.)

    Args:
        runs (Mapping[Any, Callable[[], Any]]): Callables by name.
        rounds (int): Timed rounds.
        warmup (int): Rounds before those, which are not timed. Default 1.
        device (str): With ``cuda`` each time includes the work that a call leaves in the GPU's queue. Default ``cpu``.
    Returns:
        dict[Any, list[float]]: Seconds of each round, by name.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for i in range(-warmup, rounds):
        for name, run in runs.items():
            start = _now(device)
            run()
            end = _now(device)
            if i >= 0:
                seconds[name].append(end - start)
    return seconds


def _now(device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def round_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Ratio of two series that were measured in turn: the median of the ratios of each round."""
    return median(value / other for value, other in zip(values, others, strict=True))


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Peak memory of a call over what is there before it: on ``cuda`` of PyTorch's allocator, on ``cpu`` of tensors.

    Args:
        run (Callable[[], Any]): What to call, once.
        device (str): ``cpu`` or ``cuda``.
    Returns:
        int: Bytes.
    """
    if device == 'cpu':
        with PeakMemory() as memory:
            run()
        return memory.peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


class PeakMemory(TorchDispatchMode):
    """Bytes of tensors that are made inside this context: alive now, and at most so far.

    Storages are counted: a view, or a result written in place, adds nothing, and a storage lives as long as anything
    holds it, for example an autograd graph. Tensors from before the context do not count, nor does memory that a kernel
    allocates and frees itself. (PyTorch's ``MemTracker`` does this by module, but does not exist in PyTorch 2.1.)

    Attributes:
        peak (int): The most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._counted = 0  # bytes of _storages, with those that died since the last look
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def live(self) -> int:
        """Bytes alive now."""
        # weakref's references would call back when a storage dies, but crash with PyTorch 2.1
        for key in [key for key, (storage, _) in self._storages.items() if storage.expired()]:
            self._counted -= self._storages.pop(key)[1]
        return self._counted

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an ATen operation and count its new storages."""
        result = func(*args, **(kwargs or {}))
        if _makes_storage(func):
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor):
                    self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata in self._storages:
            return
        # The reference also keeps the address from being used again before the entry is removed
        self._storages[reference.cdata] = reference, storage.nbytes()
        self._counted += storage.nbytes()
        if self._counted > self.peak:  # only then it matters which storages have died
            self.peak = max(self.peak, self.live)


@cache
def _makes_storage(func: Any) -> bool:
    """Whether an operation may return anything but its arguments and views of them."""
    return any(result.alias_info is None for result in func._schema.returns)


def at_least(limit: int, **values: int) -> None:
    """Raise ValueError for the first value below the limit; the message names it."""
    for name, value in values.items():
        if value < limit:
            raise ValueError(f'{name} is {value}, but it must be at least {limit}')


def check_shape(shape: Sequence[int]) -> None:
    """Raise ValueError unless the shape is a height and a width in pixels."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape is {tuple(shape)}, but it must be a height and a width of at least one pixel')
