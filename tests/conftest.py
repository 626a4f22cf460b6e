"""Shared settings of all tests."""

from __future__ import annotations

import torch

# Networks here are tiny: more threads make them slower, and many times so where other work shares the cores.
torch.set_num_threads(1)
