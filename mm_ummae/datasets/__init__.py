"""Datasets and transforms for pre-training; importing this package registers them."""

from .pretrain_images import PretrainImages
from .transforms import LoadCompleteImage, TorchRandomResizedCrop

__all__ = ['LoadCompleteImage', 'PretrainImages', 'TorchRandomResizedCrop']
