"""Deployment: networks as TorchScript, ONNX and programs of torch.export, compared with the original."""

from .exporting import FORMATS, Deployed, export_network
from .loading import load_deployed

__all__ = ['FORMATS', 'Deployed', 'export_network', 'load_deployed']
