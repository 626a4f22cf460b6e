"""Parts of HTC++ that need MMDetection; importing this package registers them.

Pre-training does without MMDetection, so no registry imports this package by itself: a config that uses it says
``custom_imports = dict(imports=['mm_ummae.detection'])``.
"""

from .coco_stuff import CocoStuffDataset
from .data_preprocessor import AnyChannelsDetPreprocessor
from .htc_roi_head import HTCRoIHead
from .instaboost import InstaBoost, MoveStuff
from .instance_tta import InstanceTTAModel

__all__ = [
    'AnyChannelsDetPreprocessor',
    'CocoStuffDataset',
    'HTCRoIHead',
    'InstaBoost',
    'InstanceTTAModel',
    'MoveStuff',
]
