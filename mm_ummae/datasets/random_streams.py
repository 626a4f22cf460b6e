"""Random streams that are a function of the place in a run, so that a resumed run draws what the run would have drawn.

Every iteration and every sample starts its streams anew, from the seed of the run, the process, the iteration and, for
a sample, its place in the batch. Nothing depends on which loader process prepares the sample, or on what was drawn
before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_streams(*key: int, cuda: bool = False) -> None:
    """Start the streams of ``random``, NumPy and PyTorch.

    Args:
        key (int): Non-negative numbers that name the place in the run; other numbers give independent streams.
        cuda (bool): Also those of the GPUs, which only the process of the model has. Default False.
    """
    # One hash for all: consecutive numbers must not give related streams. It takes missing numbers for zeros, hence the
    # length.
    words = np.random.SeedSequence((len(key), *key)).generate_state(4)
    first, second, third, fourth = (int(word) for word in words)
    random.seed(first)
    np.random.seed(second)
    seed = third << 32 | fourth
    torch.default_generator.manual_seed(seed)
    if cuda and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def keeping_streams() -> Iterator[None]:
    """Restore the streams of ``random``, NumPy and PyTorch, that of the GPU too, after what is drawn meanwhile."""
    states = random.getstate(), np.random.get_state()
    try:
        # The GPU of this process alone: PyTorch warns if it has to copy the streams of many
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
