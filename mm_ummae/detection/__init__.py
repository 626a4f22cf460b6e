"""What HTC++ adds to MMDetection; importing this package registers it and needs mmdet.

Pre-training does not: configs that use it say ``custom_imports = dict(imports=['mm_ummae.detection'])``.
"""

from .coco_stuff import CocoStuffDataset
from .htc_roi_head import HTCRoIHead
from .instaboost import InstaBoost, MoveStuff
from .instance_tta import InstanceTTAModel

__all__ = ['CocoStuffDataset', 'HTCRoIHead', 'InstaBoost', 'InstanceTTAModel', 'MoveStuff']
