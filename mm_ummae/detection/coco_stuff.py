"""COCO data set that checks its stuff-thing maps, a separate download, before training starts."""

from __future__ import annotations

import os

from mmdet.datasets import CocoDataset
from mmengine.fileio import list_dir_or_file

from mm_ummae.registry import DATASETS

WAY_OUT = 'use a config named htcpp-without-semantic_* (configs/htc), which trains without stuff maps'


@DATASETS.register_module()
class CocoStuffDataset(CocoDataset):
    """COCO in which every image has a stuff-thing map.

    The semantic branch of HTC learns from these maps (arXiv 1901.07518, "Spatial Contexts from Segmentation").
    MMDetection notices a missing map only when a worker process loads its image, possibly hours into an epoch. This
    class looks up all of them when it reads the annotations.

    Args:
        args: As in MMDetection's ``CocoDataset``.
        kwargs: As in MMDetection's ``CocoDataset``; ``data_prefix`` must have ``seg``, the folder of the maps. The
            folder is not checked if it is remote (http, s3, petrel) or if ``backend_args`` selects the file backend.

    Raises:
        ValueError: While the annotations are read, if ``data_prefix`` has no ``seg``.
        FileNotFoundError: While the annotations are read, if the folder or the map of an image is missing.
    """

    def load_data_list(self) -> list[dict]:
        """Read the annotations as ``CocoDataset`` does, then check that the map of every image exists."""
        folder = self.data_prefix.get('seg')
        if not folder:
            raise ValueError(
                f'data_prefix is {self.data_prefix}, but it must have seg, the folder of the stuff-thing maps; '
                f'or {WAY_OUT}'
            )
        if self.backend_args or folder.startswith(('http', 's3', 'petrel')):
            return super().load_data_list()
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f'the folder {folder} of the stuff-thing maps does not exist; correct data_prefix.seg or {WAY_OUT}'
            )
        data_list = super().load_data_list()
        paths = [info['seg_map_path'] for info in data_list]
        # One listing of the folder: 118 287 single look-ups would take minutes on a network drive
        found = {os.path.join(folder, name) for name in list_dir_or_file(folder, list_dir=False, recursive=True)}
        missing = [path for path in paths if path not in found]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(paths)} stuff-thing maps are missing in {folder}, for example '
                f'{missing[0]}; {WAY_OUT}'
            )
        return data_list
