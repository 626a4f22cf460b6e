"""Parts for segmentation of own images that need MMSegmentation; importing this package registers them.

Pre-training does without MMSegmentation, so no registry imports this package by itself: a config that uses it says
``custom_imports = dict(imports=['mm_ummae.segmentation'])``.
"""

from .data_preprocessor import AnyChannelsSegPreprocessor
from .image_map_pairs import ImageMapPairs, find_pairs
from .label_map_loading import LoadLabelMap, read_label_map

__all__ = ['AnyChannelsSegPreprocessor', 'ImageMapPairs', 'LoadLabelMap', 'find_pairs', 'read_label_map']
