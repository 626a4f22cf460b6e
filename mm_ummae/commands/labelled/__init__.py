"""Labelled images as people have them: COCO files, folders of images and label maps, a folder for each class.

Each reader finds the parts for training, validation and tests, splits the images if there is no validation set, and
reads the classes from the data.
"""

from .class_folders import read_class_folders
from .coco_files import read_coco
from .image_map_folders import read_pairs
from .parts import LabelledData

__all__ = ['LabelledData', 'read_class_folders', 'read_coco', 'read_pairs']
