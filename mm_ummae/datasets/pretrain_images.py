"""Pre-training dataset: an image folder without labels that tolerates damaged files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from mmengine.fileio import get_file_backend, list_from_file
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset

from mm_ummae.registry import DATASETS

from .damaged import DataError, examine
from .file_flags import UNDECODED, UNREAD, FileFlags
from .image_files import SUFFIXES, list_images
from .image_kinds import ImageKindError
from .reading import UnreadableFileError, is_unreadable

PROBLEMS = {UNDECODED: 'cannot be decoded', UNREAD: 'cannot be read'}
REMEDIES = {UNDECODED: 'repair the data', UNREAD: 'check whether the storage is there and answers'}
MAX_UNREAD_IN_A_ROW = 10  # each was tried several times: the storage has failed, and not some of its files
NAMED = 3  # files in an error
LABEL = re.compile(r'\s+-?\d+$')  # behind the name of a file in a list


@DATASETS.register_module()
class PretrainImages(CustomDataset):
    """All images below a folder, without labels.

    Among a million files some cannot be decoded, and storage may fail to give some for a while. Such a file is logged
    by name and replaced by another image; it is tried again when its turn comes. If more than ``max_bad_share`` of all
    files cannot be decoded, or cannot be read, or if many in a row cannot be read, the run stops. The loader processes
    of a rank share the flags of these files, and :class:`~mm_ummae.engine.DamagedFilesHook` merges those of all ranks.

    With ``repeats`` each file is read and decoded once, and the rest of the pipeline runs several times on it (repeated
    augmentation: Hoffer et al., Augment Your Batch, CVPR 2020). ``batch_size`` of the loader and the length of an epoch
    still count files: a batch has ``batch_size * repeats`` samples, and those of one file are adjacent.

    Args:
        data_root (str): Root folder of the dataset. Default ''.
        data_prefix (str): Image folder relative to ``data_root``; subfolders are searched. Default ''.
        ann_file (str): Text file with an image per line instead of a search: a path, absolute or below the image
            folder, or the key of another file backend. Labels behind the names are left out. Default ''.
        max_bad_share (float): Tolerated share of files that cannot be decoded, and of files that cannot be read at the
            moment, in [0, 1). Default 0.01.
        repeats (int): Samples drawn from each file. Default 1.
        kwargs: Other arguments of MMPretrain's ``CustomDataset``. The first transform of ``pipeline`` must load the
            image; with ``repeats`` the others must not modify its pixels in place.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the folder holds no image, or ``max_bad_share`` or ``repeats`` is out of range.
        DataError: While loading, if too many files are bad.

    Attributes:
        flags (FileFlags): Flags of the files that cannot be decoded or read.
    """

    def __init__(
        self, data_root: str = '', data_prefix: str = '', max_bad_share: float = 0.01, repeats: int = 1, **kwargs
    ) -> None:
        if not 0 <= max_bad_share < 1:
            raise ValueError(f'max_bad_share is {max_bad_share}, but it must be in [0, 1)')
        if repeats < 1:
            raise ValueError(f'repeats is {repeats}, but it must be at least 1')
        self.max_bad_share = max_bad_share
        self.repeats = repeats
        kwargs.setdefault('with_label', False)
        kwargs.setdefault('extensions', SUFFIXES)
        super().__init__(data_root=data_root, data_prefix=data_prefix, **kwargs)

    def full_init(self) -> None:
        """Scan the folder."""
        if not self._fully_initialized:
            super().full_init()
            self.flags = FileFlags(len(self))
            self._unread_in_a_row = 0  # of this process

    def load_data_list(self) -> list[dict]:
        """List the files as ``dict(img_path=...)``."""
        folder = self.img_prefix
        if self.ann_file and not self.with_label:
            return self._listed()
        if '://' in folder:  # remote
            return super().load_data_list()
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f'the data folder {folder} does not exist: set data_root (now {self.data_root!r}) and data_prefix, '
                'a folder below it'
            )
        if self.with_label:
            return super().load_data_list()
        files = list_images(folder, self.extensions)
        if not files:
            raise ValueError(
                f'the data folder {folder} holds no image: set data_root and data_prefix to a folder with files that '
                f'end in {", ".join(sorted(self.extensions))}'
            )
        return [dict(img_path=os.path.join(folder, file)) for file in files]

    def _listed(self) -> list[dict]:
        """Files of the list ``ann_file``: paths, absolute or below the folder, or keys of another file backend."""
        names = [line.strip() for line in list_from_file(self.ann_file) if line.strip()]
        if not names:
            raise ValueError(f'the list {self.ann_file} (ann_file) names no image')
        # A label may stand behind a name; a name may have spaces and numbers too, but none behind its suffix
        bare = [LABEL.sub('', name) for name in names]
        labelled = [
            name != given and name.lower().endswith(self.extensions) for name, given in zip(bare, names, strict=True)
        ]
        if any(labelled):
            print_log(f'{sum(labelled)} labels in the list {self.ann_file} are left out', logger='current')
        names = [name if known else given for name, given, known in zip(bare, names, labelled, strict=True)]
        folder = self.img_prefix or ''
        backend = get_file_backend(folder, enable_singleton=True)
        paths = [backend.join_path(folder, name) for name in names] if folder else names
        loader = next(iter(self.pipeline.transforms), None)
        if getattr(loader, 'backend_args', None) is None and '://' not in paths[0] and not os.path.exists(paths[0]):
            raise FileNotFoundError(
                f'{paths[0]}, the first of {len(paths)} images in the list {self.ann_file}, does not exist: its lines '
                f'must be absolute paths, or paths below data_root and data_prefix (now {folder!r})'
            )
        return [dict(img_path=path) for path in paths]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Samples of several files in one list; PyTorch's loader calls this and collates the result."""
        samples = [self[index] for index in indices]
        return samples if self.repeats == 1 else list(chain.from_iterable(samples))

    def prepare_data(self, idx: int) -> dict | list[dict] | None:
        """Run the pipeline on one file.

        Args:
            idx (int): Index of the file.
        Returns:
            dict | list[dict] | None: A sample, or a list of ``repeats`` samples if ``repeats`` is above 1. None for a
            bad file: MMEngine then draws another index.
        Raises:
            DataError: If more than ``max_bad_share`` of the files are bad, or many in a row cannot be read.
        """
        info = self.get_data_info(idx)
        load, *rest = self.pipeline.transforms
        try:
            results = load(info)
            if results is None or results.get('img') is None or results['img'].size == 0:
                raise ValueError('no pixels')
        except ImportError:  # of a file backend, or of pydicom for DICOM files
            raise
        # Decoders raise OSError, SyntaxError, cv2.error and more. Only loading is guarded: an error in a later
        # transform is a mistake in the config and must not be mistaken for a bad file.
        except Exception as error:
            self._report(idx, info['img_path'], error)
            return None
        self._unread_in_a_row = 0
        if self.flags.clear(idx):
            print_log(f'{info["img_path"]} can be decoded again', logger='current')
        samples = [_run(rest, dict(results)) for _ in range(self.repeats)]
        if None in samples:
            return None
        return samples if self.repeats > 1 else samples[0]

    def check_share(self, last: str = '') -> None:
        """Raise if more than ``max_bad_share`` of the files are flagged.

        Args:
            last (str): What is wrong with the last of them. Default: not told.
        Raises:
            DataError: Names the share and some of the files.
        """
        for kind, problem in PROBLEMS.items():
            bad = self.flags.count(kind)
            if bad > self.max_bad_share * len(self):
                paths = [self.get_data_info(index)['img_path'] for index in self.flags.find(kind)[:NAMED]]
                raise DataError(
                    f'{bad} of {len(self)} files below {self.img_prefix} {problem}, more than max_bad_share '
                    f'{self.max_bad_share} allows ({", ".join(paths)}{", ..." if bad > NAMED else ""}): '
                    f'{REMEDIES[kind]} or raise max_bad_share{f". The last one: {last}" if last else ""}'
                )

    def _report(self, idx: int, path: str, error: Exception) -> None:
        kind = UNREAD if is_unreadable(error) else UNDECODED
        damage = examine(path) if kind == UNDECODED else None
        reason = f'{path} {damage or f"{PROBLEMS[kind]} ({type(error).__name__}: {error})"}'
        if isinstance(error, UnreadableFileError):
            reason = str(error)  # says all that
        elif isinstance(error, ImageKindError):
            reason = f'{path} {error}'
        if self.flags.set(idx, kind):
            print_log(f'{reason}; another image takes its place', logger='current', level=logging.WARNING)
        self._unread_in_a_row = self._unread_in_a_row + 1 if kind == UNREAD else 0
        if self._unread_in_a_row >= MAX_UNREAD_IN_A_ROW:
            raise DataError(
                f'{self._unread_in_a_row} files in a row cannot be read: {REMEDIES[UNREAD]}. The last one: {reason}'
            ) from error
        self.check_share(reason)


def _run(transforms: list[Callable], results: dict) -> dict | None:
    for transform in transforms:
        results = transform(results)
        if results is None:
            return None
    return results


def find_files(data: Path) -> list[str]:
    """Images of a folder at any depth, or of a text file with a path per line.

    Args:
        data (Path): The folder or file.
    Returns:
        list[str]: Paths, sorted or in the order of the file.
    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If there is no image.
    """
    if data.is_dir():
        files = [str(data / name) for name in list_images(data)]
        if not files:
            raise ValueError(f'data is {data}, but it holds no image ({", ".join(SUFFIXES)})')
        return files
    if not data.is_file():
        raise FileNotFoundError(f'data is {data}, but there is no such folder, nor a file with paths')
    dataset = PretrainImages(ann_file=str(data), pipeline=[])
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
