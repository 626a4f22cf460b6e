"""The raw material of the demo data: ten photographs and 1,797 handwritten digits, split in train and val.

Nothing is downloaded: the photographs ship inside the scikit-image and scikit-learn wheels, the digits inside
the scikit-learn wheel.
"""

import colorsys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

SPLITS = ('train', 'val')

# Pixels between the train and the val region of a photograph that belong to neither.
REGION_GAP = 8

# Every n-th sample of a digit class is a val sample.
VAL_DIGIT_STRIDE = 5

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


class Photograph(NamedTuple):
    """Where a photograph lies and which part of it is kept for validation.

    Attributes:
        name: Class name, also the folder name in the labelled set.
        package: Installed package that ships the file.
        file: Path of the file inside the package.
        val_side: Side of the photograph that the val region touches: 'left' or 'right'.
        val_share: Share of the width, between 0 and 1, that the val region (with the gap) takes.
    """

    name: str
    package: str
    file: str
    val_side: str
    val_share: float


# In alphabetical order, so that the index here is the one that readers of class folders derive by sorting.
# The sides are chosen so that both regions show what the photograph is known by (half a cat, half a pagoda).
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
SEGMENTATION_CLASSES = DIGIT_CLASSES + PHOTOGRAPH_CLASSES


def _hues(count: int, offset: float, saturation: float, value: float) -> tuple[tuple[int, int, int], ...]:
    """``count`` RGB colours (0..255) evenly around the colour circle."""
    colours = (colorsys.hsv_to_rgb((i + offset) / count, saturation, value) for i in range(count))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)


# Bright colours for the digits, dull ones for the backgrounds; RGB, in the order of SEGMENTATION_CLASSES.
SEGMENTATION_PALETTE = _hues(10, 0.0, 0.9, 1.0) + _hues(10, 0.5, 0.4, 0.6)


def check_split(split: str) -> None:
    """Checks that a split is one of :data:`SPLITS`.

    Args:
        split: Name of the split.

    Raises:
        ValueError: If it is another name.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, but is {split!r}')


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        wheels = 'scikit-image and scikit-learn'
        raise ModuleNotFoundError(f'the demo data are cut from images in {wheels}; pip install them') from error


@cache
def load_photograph(index: int) -> np.ndarray:
    """Reads one of the ten photographs from the package that ships it.

    Args:
        index: Position in :data:`PHOTOGRAPHS`.

    Returns:
        Read-only RGB image of shape (H, W, 3), uint8; a grey photograph has three equal channels.

    Raises:
        FileNotFoundError: If the installed package does not ship the photograph.
    """
    photograph = PHOTOGRAPHS[index]
    path = Path(_package(photograph.package).__file__).parent / photograph.file
    # Not with OpenCV: it prints a warning about the colour profile of one of the files.
    with Image.open(path) as file:
        picture = np.array(file.convert('RGB'))
    picture.flags.writeable = False
    return picture


@cache
def region_box(index: int, split: str) -> Box:
    """The part of a photograph that a split may use; the two splits share no pixel.

    Args:
        index: Position in :data:`PHOTOGRAPHS`.
        split: 'train' or 'val'.

    Returns:
        The region as a :data:`Box` in pixels of the photograph.

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
    """Side of the largest square that fits both regions of a photograph.

    Crops are measured against it in both splits, so that train and val show a photograph at the same scales.

    Args:
        index: Position in :data:`PHOTOGRAPHS`.

    Returns:
        The side in pixels of the photograph.
    """
    boxes = (region_box(index, split) for split in SPLITS)
    return min(min(right - left, bottom - top) for left, top, right, bottom in boxes)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    _package('sklearn')
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target.astype(np.int64)


def digit_picture(sample: int) -> np.ndarray:
    """One handwritten digit.

    Args:
        sample: Position of the digit in scikit-learn's set, 0..1796.

    Returns:
        Ink of shape (8, 8), float32, from 0 (none) to 1 (full).
    """
    return _digits()[0][sample]


@cache
def digit_samples(label: int, split: str) -> np.ndarray:
    """The samples of a digit class that a split may use; the two splits share no sample.

    The rule depends on no seed: of each class, every fifth sample is a val sample.

    Args:
        label: Digit class, 0..9.
        split: 'train' or 'val'.

    Returns:
        Read-only positions in scikit-learn's set, shape (N,), int64.

    Raises:
        ValueError: If the split is unknown.
    """
    check_split(split)
    samples = np.flatnonzero(_digits()[1] == label)
    is_val = np.arange(len(samples)) % VAL_DIGIT_STRIDE == VAL_DIGIT_STRIDE - 1
    samples = samples[is_val if split == 'val' else ~is_val]
    samples.flags.writeable = False
    return samples
