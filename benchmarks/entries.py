"""Networks that are compared: configs of this project and of its hosts, made equal in size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mm_ummae.analysis import read_config

ROOT = Path(__file__).parents[1]


class Entry(NamedTuple):
    """A network to compare.

    Attributes:
        name (str): For tables.
        config (str): ``host::path``, or a file relative to the checkout.
        changes (Mapping[str, Any]): Values to override, by dotted keys.
    """

    name: str
    config: str
    changes: Mapping[str, Any] = {}

    def read(self) -> Config:
        """The config with its changes."""
        return read_config(self.config if '::' in self.config else ROOT / self.config, dict(self.changes))


UMMAE = 'configs/ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py'
# UM-MAE and its competitors at 256 px with a Swin-T; MAE has its ViT-B
PRETRAINING = (
    Entry('UM-MAE', UMMAE),
    Entry(
        'UM-MAE, plain formulation',
        UMMAE,
        {'model.type': 'mm_ummae.PlainUMMAE', 'custom_imports': dict(imports=['benchmarks.plain'])},
    ),
    Entry('SimMIM', 'configs/simmim/simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px.py'),
    Entry(
        'MMPretrain: SimMIM',
        'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py',
        {
            'model.backbone.arch': 'tiny',
            'model.backbone.img_size': 256,
            'model.backbone.stage_cfgs.block_cfgs.window_size': 8,  # as 6 at 192 px: the last map is one window
            'model.neck.in_channels': 768,
            'train_dataloader.dataset.pipeline.3.input_size': 256,
        },
    ),
    Entry(
        'MMPretrain: MAE, ViT-B',
        'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
        {'model.backbone.img_size': 256, 'model.neck.num_patches': 256},
    ),
)
# The same detector on this project's backbone and on the stock one. Ours also projects each stage to 768 channels
# before the FPN, as published
MASK_RCNN = 'configs/mask_rcnn/mask-rcnn_um-swin-tiny_fpn_8xb2-amp-1x_coco.py'
DETECTORS = (
    Entry('Mask R-CNN, UMSwin-T', MASK_RCNN),
    Entry('Mask R-CNN, UMSwin-T, window 7', MASK_RCNN, {'model.backbone.window_size': 7}),
    Entry('MMDetection: Mask R-CNN, Swin-T', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
)
LOADERS = (PRETRAINING[-1]._replace(name='MMPretrain: MAE', changes={}), PRETRAINING[0])
