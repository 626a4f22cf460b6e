"""Reconstructions, feature maps and loss curves as image arrays and files."""

from .feature_maps import feature_panels, feature_sheet, load_backbone, principal_colors, stage_maps
from .sheets import (
    check_sheet_path,
    comparison_sheet,
    image_sheet,
    reconstruction_panels,
    reconstruction_sheet,
    save_loss_curve,
    save_reconstruction_sheet,
    save_sheet,
    window_panels,
)

__all__ = [
    'check_sheet_path',
    'comparison_sheet',
    'feature_panels',
    'feature_sheet',
    'image_sheet',
    'load_backbone',
    'principal_colors',
    'reconstruction_panels',
    'reconstruction_sheet',
    'save_loss_curve',
    'save_reconstruction_sheet',
    'save_sheet',
    'stage_maps',
    'window_panels',
]
