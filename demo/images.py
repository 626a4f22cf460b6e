"""Source images of the demo data: ten photographs and 1,797 handwritten digits, split into train and val.

Nothing is downloaded: the photographs are in the wheels of scikit-image and scikit-learn, the digits in that of
scikit-learn. The split is fixed: no seed changes it.
"""

from __future__ import annotations

import colorsys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

SPLITS = ('train', 'val')
REGION_GAP = 8  # pixels between the train and the val region of a photograph, in neither of them
VAL_DIGIT_STRIDE = 5  # every n-th sample of a digit class is a val sample

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


class Photograph(NamedTuple):
    """A photograph and its validation part.

    Attributes:
        name (str): Class name, also the folder name in the labelled set.
        package (str): Installed package that contains the file.
        file (str): Path of the file inside the package.
        val_side (str): Side of the photograph that the val region touches: ``left`` or ``right``.
        val_share (float): Share of the width, between 0 and 1, of the val region and the gap.
    """

    name: str
    package: str
    file: str
    val_side: str
    val_share: float


# In alphabetical order: the index here is the label that readers of class folders derive by sorting. The sides are
# chosen so that both regions show what characterises the photograph (half a cat, half a pagoda).
PHOTOGRAPHS = (
    Photograph('brick', 'skimage', 'data/brick.png', 'right', 0.35),
    Photograph('cat', 'skimage', 'data/chelsea.png', 'right', 0.45),
    Photograph('coins', 'skimage', 'data/coins.png', 'right', 0.42),
    Photograph('galaxies', 'skimage', 'data/hubble_deep_field.jpg', 'right', 0.30),
    Photograph('grass', 'skimage', 'data/grass.png', 'right', 0.35),
    Photograph('gravel', 'skimage', 'data/gravel.png', 'right', 0.35),
    Photograph('motorcycle', 'skimage', 'data/motorcycle_left.png', 'right', 0.42),
    Photograph('page', 'skimage', 'data/page.png', 'right', 0.45),
    Photograph('pagoda', 'sklearn', 'datasets/images/china.jpg', 'left', 0.28),
    Photograph('tissue', 'skimage', 'data/ihc.png', 'right', 0.35),
)

PHOTOGRAPH_CLASSES = tuple(photograph.name for photograph in PHOTOGRAPHS)
DIGIT_CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def _hues(count: int, offset: float, saturation: float, value: float) -> tuple[tuple[int, int, int], ...]:
    """``count`` RGB colours (0..255), evenly spaced on the colour circle."""
    colours = (colorsys.hsv_to_rgb((i + offset) / count, saturation, value) for i in range(count))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)


# RGB in the order of PHOTOGRAPH_CLASSES
SEGMENTATION_PALETTE = _hues(10, 0.0, 0.9, 1.0)


def check_split(split: str) -> None:
    """Raise ValueError unless the split is one of ``SPLITS``."""
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, but is {split!r}')


@cache
def load_photograph(index: int) -> np.ndarray:
    """A photograph as read-only RGB, (H, W, 3) uint8; a grey one has three equal channels."""
    photograph = PHOTOGRAPHS[index]
    path = Path(_package(photograph.package).__file__).parent / photograph.file
    # OpenCV would print a warning about the colour profile of one of the files
    with Image.open(path) as file:
        image = np.array(file.convert('RGB'))
    image.flags.writeable = False
    return image


@cache
def region_box(index: int, split: str) -> Box:
    """Region of a photograph that a split may use; the two splits share no pixel.

    Raises:
        ValueError: If the split is unknown.
    """
    check_split(split)
    photograph = PHOTOGRAPHS[index]
    height, width = load_photograph(index).shape[:2]
    cut = round(width * photograph.val_share)
    if photograph.val_side == 'left':
        left, right = (0, cut - REGION_GAP) if split == 'val' else (cut, width)
    else:
        left, right = (width - cut + REGION_GAP, width) if split == 'val' else (0, width - cut)
    return left, 0, right, height


def reference_side(index: int) -> int:
    """Side in pixels of the largest square that fits both regions of a photograph.

    The scale of a crop is relative to it in both splits, so that train and val show a photograph at the same scales.
    """
    boxes = (region_box(index, split) for split in SPLITS)
    return min(min(right - left, bottom - top) for left, top, right, bottom in boxes)


def load_digit(sample: int) -> np.ndarray:
    """Ink of a sample of scikit-learn's digits (0..1796), (8, 8) float32 from 0 (none) to 1 (full)."""
    return _digits()[0][sample]


@cache
def digit_samples(label: int, split: str) -> np.ndarray:
    """Samples of a digit class (0..9) that a split may use, read-only (N, ) int64; the two splits share none.

    Raises:
        ValueError: If the split is unknown.
    """
    check_split(split)
    samples = np.flatnonzero(_digits()[1] == label)
    is_val = np.arange(len(samples)) % VAL_DIGIT_STRIDE == VAL_DIGIT_STRIDE - 1
    samples = samples[is_val if split == 'val' else ~is_val]
    samples.flags.writeable = False
    return samples


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the demo data are made of images from scikit-image and scikit-learn: pip install scikit-image scikit-learn'
        ) from error


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Ink (1797, 8, 8) and labels (1797, )."""
    _package('sklearn')
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target.astype(np.int64)
