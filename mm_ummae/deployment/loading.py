"""Deployed files as functions of images, to compare them with the network that they are from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


def load_deployed(path: Path) -> Callable[[Tensor], Outputs]:
    """Load a file of :func:`export_network` on the CPU, as a deployment would.

    Args:
        path (Path): ``.pt`` (TorchScript), ``.pt2`` (torch.export) or ``.onnx``, which needs onnxruntime.
    Returns:
        Callable[[Tensor], tuple[Tensor, ...]]: From images (N, 3, H, W) to the outputs.
    """
    if path.suffix == '.onnx':
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, and would be printed as well
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        return lambda images: tuple(map(torch.from_numpy, session.run(None, {name: images.numpy()})))
    network = torch.jit.load(str(path)) if path.suffix == '.pt' else torch.export.load(path).module()

    def run(images: Tensor) -> Outputs:
        with torch.no_grad():
            outputs = network(images)
        return tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)

    return run
