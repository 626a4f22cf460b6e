"""Data sets; importing this package registers them."""

from .pretrain_images import PretrainImages

__all__ = ['PretrainImages']
