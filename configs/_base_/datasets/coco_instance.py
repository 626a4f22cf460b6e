# COCO with masks as in MMDetection: images of at most 1333x800.
_base_ = ['mmdet::_base_/datasets/coco_instance.py']

num_classes = 80
