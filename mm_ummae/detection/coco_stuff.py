"""COCO with stuff-thing maps, which are a download of their own and easily forgotten."""

from __future__ import annotations

import os

from mmdet.datasets import CocoDataset
from mmengine.fileio import list_dir_or_file

from mm_ummae.registry import DATASETS

WITHOUT = 'use a config named htcpp-without-semantic_* (configs/htc), which trains without stuff maps'


@DATASETS.register_module()
class CocoStuffDataset(CocoDataset):
    """COCO whose every image has a map of stuff and things.

    HTC's semantic branch learns from these maps (arXiv 1901.07518, "Spatial Contexts from Segmentation"). A missing one
    would only be noticed when a loader process comes to its image, hours into an epoch. Here all are looked up when
    the annotations are read.

    Args:
        args: Those of mmdet's ``CocoDataset``.
        kwargs: Those of mmdet's ``CocoDataset``; ``data_prefix`` must have ``seg``, the folder of the maps. It is not
            looked into if it is remote (http, s3, petrel) or ``backend_args`` says how to read it.

    Raises:
        ValueError: When the annotations are read, if ``data_prefix`` has no ``seg``.
        FileNotFoundError: When they are read, if the folder or any image's map is missing.
    """

    def load_data_list(self) -> list[dict]:
        """As ``CocoDataset`` has it; each image's map exists."""
        folder = self.data_prefix.get('seg')
        if not folder:
            raise ValueError(
                f'data_prefix is {self.data_prefix}, but it must have seg, the folder of the stuff-thing maps; '
                f'or {WITHOUT}'
            )
        if self.backend_args or folder.startswith(('http', 's3', 'petrel')):
            return super().load_data_list()
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f'the folder {folder} of the stuff-thing maps does not exist; correct data_prefix.seg or {WITHOUT}'
            )
        data_list = super().load_data_list()
        paths = [info['seg_map_path'] for info in data_list]
        # One listing: asking for each of 118 287 files would take minutes on a network drive
        found = {os.path.join(folder, name) for name in list_dir_or_file(folder, list_dir=False, recursive=True)}
        missing = [path for path in paths if path not in found]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(paths)} stuff-thing maps are missing in {folder}, for example '
                f'{missing[0]}; {WITHOUT}'
            )
        return data_list
