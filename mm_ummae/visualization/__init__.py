"""Reconstructions, feature maps and loss curves as image arrays and files, and a page about a run."""

from .feature_maps import (
    feature_panels,
    feature_sheet,
    load_backbone,
    model_feature_sheet,
    principal_colors,
    stage_maps,
)
from .html_report import write_report
from .run_files import RunFiles, read_run
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
    'RunFiles',
    'check_sheet_path',
    'comparison_sheet',
    'feature_panels',
    'feature_sheet',
    'image_sheet',
    'load_backbone',
    'model_feature_sheet',
    'principal_colors',
    'read_run',
    'reconstruction_panels',
    'reconstruction_sheet',
    'save_loss_curve',
    'save_reconstruction_sheet',
    'save_sheet',
    'stage_maps',
    'window_panels',
    'write_report',
]
