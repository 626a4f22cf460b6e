"""Search for image files, and batches of them prepared as in a test pipeline."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import Compose
from mmengine.dataset import default_collate
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmpretrain.registry import TRANSFORMS

from .transforms import LoadCompleteImage

# Of image files in a folder, in upper or lower case: for training, drawing and inference alike
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.ppm', '.pgm', '.jp2', '.dcm', '.dicom')


def find_images(path: str | Path, limit: int) -> list[Path]:
    """Find image files: the given file itself, or the first ``limit`` images below a folder, sorted by path.

    Args:
        path (str | Path): File or folder; subfolders are searched as by :func:`list_images`.
        limit (int): Maximum number of images taken from a folder.
    Returns:
        list[Path]: Paths; the files are not opened.
    Raises:
        FileNotFoundError: If the path does not exist or the folder holds no image.
        ValueError: If the limit is not positive.
    """
    if limit < 1:
        raise ValueError(f'limit is {limit}, but at least one image is needed')
    path = Path(path)
    if path.is_file():
        return [path]
    images = sorted(path / name for name in list_images(path))[:limit] if path.is_dir() else []
    if not images:
        raise FileNotFoundError(f'{path} is neither an image nor a folder with images ({", ".join(SUFFIXES)})')
    return images


def list_images(folder: str | Path, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """List the images below a folder, also in linked folders; the log says how many, and what is left out.

    A link to a folder that it lies in would never end: it is left out and logged. So are links to nothing.

    Args:
        folder (str | Path): Folder.
        suffixes (Sequence[str]): Endings of the files to list, in lower case; files may have upper case. Default
            ``SUFFIXES``.
    Returns:
        list[str]: Paths relative to the folder, sorted. Names that begin with a dot are no images.
    """
    folder, left_out, others = str(folder), [], Counter()
    found = sorted(_walk(folder, '', tuple(suffixes), (), left_out, others))
    if left_out:
        print_log(
            f'{len(left_out)} links below {folder} are left out ({"; ".join(left_out[:3])}'
            f'{"; ..." if len(left_out) > 3 else ""})',
            logger='current',
            level=logging.WARNING,
        )
    if others:
        kinds = ', '.join(f'{count} {suffix}' for suffix, count in others.most_common(5))
        print_log(
            f'{len(found)} images below {folder}; {others.total()} other files are left out ({kinds}'
            f'{", ..." if len(others) > 5 else ""})',
            logger='current',
        )
    return found


def _walk(
    folder: str, prefix: str, suffixes: tuple[str, ...], above: tuple[str, ...], left_out: list[str], others: Counter
) -> Iterator[str]:
    """Images below a folder, each with the prefix of the folder; ``above`` are the folders that it was reached by.

    Links are added to ``left_out``, and the endings of other files to ``others``.
    """
    above = (*above, folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            path, name, linked = entry.path, os.path.join(prefix, entry.name), entry.is_symlink()
            # An entry knows its own kind, while following a link costs a call of the file system
            if os.path.isdir(path) if linked else entry.is_dir():
                if linked and _leads_back(path, above):
                    left_out.append(f'{path} leads back to {os.path.realpath(path)}, in which it lies')
                else:
                    yield from _walk(path, name, suffixes, above, left_out, others)
            elif linked and not os.path.exists(path):
                left_out.append(f'{path} leads nowhere')
            elif name.lower().endswith(suffixes) and not entry.name.startswith('.'):
                yield name
            else:
                others[os.path.splitext(entry.name)[1].lower() or entry.name] += 1


def loop_in(path: str) -> tuple[str, str]:
    """The first link of a path that leads back to a folder which it lies in, and that folder; else the path twice."""
    parts = Path(path).parts
    above: tuple[str, ...] = ()
    for end in range(1, len(parts) + 1):
        part = os.path.join(*parts[:end])
        if os.path.islink(part) and _leads_back(part, above):
            return part, os.path.realpath(part)
        above = (*above, part)
    return path, path


def _leads_back(link: str, above: tuple[str, ...]) -> bool:
    target = os.path.realpath(link)
    return any(os.path.commonpath((target, os.path.realpath(folder))) == target for folder in above)


def load_batch(images: Sequence[str | Path], image_size: int, load: LoadCompleteImage | None = None) -> dict:
    """Load images as a test pipeline does: resize the short side to ``image_size``, then crop the centre square.

    Args:
        images (Sequence[str | Path]): Image files.
        image_size (int): Side of the square in pixels.
        load (LoadCompleteImage, optional): First transform, see :func:`loader_of`. Default:
            ``LoadCompleteImage()``.
    Returns:
        dict: ``inputs``, (N, C, image_size, image_size) uint8 BGR, and ``data_samples``: the input of a data
        preprocessor.
    Raises:
        ValueError: If ``images`` is empty, a file cannot be read (the message names it), or ``image_size`` is below 1.
        ImportError: If a file needs a package that is missing, as DICOM does.
    """
    if not images:
        raise ValueError('images is empty, but it must name at least one image file')
    if image_size < 1:
        raise ValueError(f'image_size is {image_size}, but a side must be positive')
    load = load or LoadCompleteImage()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [TRANSFORMS.build(step) for step in centre_crop_steps(image_size, load.channels)]
    pipeline = Compose([load, *steps])
    return default_collate([_load(pipeline, path) for path in images])


def loader_of(config: Mapping[str, Any]) -> LoadCompleteImage:
    """The transform that reads the images of a pre-training, so that they are drawn as they are trained on.

    Args:
        config (Mapping[str, Any]): Config of the run.
    Returns:
        LoadCompleteImage: With the channels and the range of values of the training set's pipeline, if it begins with
        such a transform.
    """
    dataset = (config.get('train_dataloader') or {}).get('dataset') or {}
    first = dict(next(iter(dataset.get('pipeline') or ()), {}))
    kind = first.pop('type', '')
    known = kind is LoadCompleteImage or str(kind).rpartition('.')[2] == LoadCompleteImage.__name__
    return LoadCompleteImage(**first) if known else LoadCompleteImage()


def centre_crop_steps(image_size: int, channels: int = 3) -> tuple[dict, ...]:
    """Test-time transforms of a loaded image: short side to ``image_size``, centre crop, packing."""
    backend = 'pillow' if channels == 3 else 'cv2'  # Pillow resizes nothing else
    return (
        dict(type='ResizeEdge', scale=image_size, edge='short', backend=backend, interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=image_size),
        dict(type='PackInputs'),
    )


def _load(pipeline: Compose, path: str | Path) -> dict:
    try:
        return pipeline(dict(img_path=str(path)))
    except ImportError:  # of a package for all files of a kind
        raise
    except Exception as error:  # decoders raise many types
        raise ValueError(f'the image {path} cannot be read: {type(error).__name__}: {error}') from error
