"""Python API: models by name, inference, feature extraction, reconstruction."""

from .models import FeatureExtractor, get_model, inference_model, list_models, load_weights, register_models
from .reconstruction import reconstruct

__all__ = [
    'FeatureExtractor',
    'get_model',
    'inference_model',
    'list_models',
    'load_weights',
    'reconstruct',
    'register_models',
]
