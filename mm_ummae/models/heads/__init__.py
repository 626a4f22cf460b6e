"""Heads that predict pixels."""

from .pixel_heads import LoMaRHead, UMMAEHead, UMSimMIMHead

__all__ = ['LoMaRHead', 'UMMAEHead', 'UMSimMIMHead']
