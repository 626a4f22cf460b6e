"""Images of the demo data: crops of the photographs, mosaics of them, and scenes of digits pasted on them."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from .images import (
    DIGIT_CLASSES,
    PHOTOGRAPHS,
    Box,
    check_split,
    digit_samples,
    load_digit,
    load_photograph,
    reference_side,
    region_box,
)

MAX_OBJECT_SCALE = 0.75  # of the image's side: the largest digit that fits when it is rotated
MAX_ROTATION = 15.0  # degrees, either way
PLACING_TRIES = 50
MOSAIC_TILES = (2, 4)
CROWD_CORNER = 0.42  # side of the corner square that holds a crowd, as a share of the image's side
CROWD_SCALE = (0.15, 0.19)
CROWD_DIGITS = (5, 7)


class Crop(NamedTuple):
    """Source of a crop.

    Attributes:
        photograph (int): Index in :data:`~demo.images.PHOTOGRAPHS`.
        box (Box): The square that was cut, in pixels of that photograph.
    """

    photograph: int
    box: Box


@dataclass(frozen=True)
class SceneObject:
    """A digit in a scene, or a crowd of digits of one class.

    Attributes:
        label (int): Digit class, 0..9.
        samples (tuple[int, ...]): Indices in scikit-learn's set of the drawn digits: one, or several for a crowd.
        mask (np.ndarray): (H, W) bool, visible pixels. Without the outline of a digit, with the outlines of a crowd.
    """

    label: int
    samples: tuple[int, ...]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth.

    Attributes:
        image (np.ndarray): (H, W, 3) uint8 RGB.
        objects (tuple[SceneObject, ...]): Digits from back to front.
        crowd (SceneObject, optional): Crowd of small digits that no object touches.
        stuff (np.ndarray): (H, W) uint8, photograph behind each pixel, 0..9.
        outline (np.ndarray): (H, W) bool, pixels where the outline of a digit is visible.
        crops (tuple[Crop, ...]): The one or two background crops.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    crowd: SceneObject | None
    stuff: np.ndarray
    outline: np.ndarray
    crops: tuple[Crop, ...]


class _Digit(NamedTuple):
    """A drawn digit: coverage (h, w), float32 in 0..1, of its fill and of its fill with outline."""

    label: int
    sample: int
    fill: np.ndarray
    body: np.ndarray


def crop_photograph(
    rng: np.random.Generator,
    index: int,
    split: str,
    image_size: int,
    scale: tuple[float, float] = (0.6, 1.0),
) -> tuple[np.ndarray, Crop]:
    """Cut a random square from a split's region of a photograph and mirror it with probability 0.5.

    Args:
        rng (np.random.Generator): Source of randomness.
        index (int): Index in :data:`~demo.images.PHOTOGRAPHS`.
        split (str): ``train`` or ``val``.
        image_size (int): Side of the result in pixels.
        scale (tuple[float, float]): Range of the square's side, as a share of the photograph's
            :func:`~demo.images.reference_side`; limited to what the region holds.
    Returns:
        tuple[np.ndarray, Crop]: (image_size, image_size, 3) uint8 RGB, and its source.
    """
    left, top, right, bottom = region_box(index, split)
    side = min(round(reference_side(index) * rng.uniform(*scale)), right - left, bottom - top)
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(top, bottom - side + 1))
    square = load_photograph(index)[y : y + side, x : x + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    method = cv2.INTER_AREA if side > image_size else cv2.INTER_CUBIC
    image = cv2.resize(square, (image_size, image_size), interpolation=method)
    return image, Crop(index, (x, y, x + side, y + side))


def grey_crop(rng: np.random.Generator, index: int, split: str, image_size: int) -> tuple[np.ndarray, Crop]:
    """A crop without colour, its brightness and contrast slightly changed: only shape and texture tell the class.

    Args:
        rng (np.random.Generator): Source of randomness.
        index (int): Index in :data:`~demo.images.PHOTOGRAPHS`.
        split (str): ``train`` or ``val``.
        image_size (int): Side of the result in pixels.
    Returns:
        tuple[np.ndarray, Crop]: (image_size, image_size, 3) uint8 with equal channels, and its source.
    """
    image, crop = crop_photograph(rng, index, split, image_size)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-25, 25)
    grey = (grey - grey.mean()) * contrast + grey.mean() + brightness
    return np.repeat(_to_uint8(grey)[..., None], 3, axis=2), crop


def draw_mosaic(rng: np.random.Generator, split: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tile an image with grey crops of two to four photographs: each pixel shows that of the nearest random point.

    Args:
        rng (np.random.Generator): Source of randomness.
        split (str): ``train`` or ``val``.
        image_size (int): Side of the result in pixels.
    Returns:
        tuple[np.ndarray, np.ndarray]: (image_size, image_size, 3) uint8 with equal channels, and the index of the
        photograph at each pixel, (image_size, image_size) uint8.
    """
    count = int(rng.integers(MOSAIC_TILES[0], MOSAIC_TILES[1] + 1))
    photographs = rng.choice(len(PHOTOGRAPHS), size=count, replace=False)
    points = image_size * rng.uniform(0.1, 0.9, size=(count, 2, 1, 1))
    # (tiles, 2, H, W) -> (H, W)
    tile = ((np.mgrid[:image_size, :image_size] - points) ** 2).sum(axis=1).argmin(axis=0)
    crops = np.stack([grey_crop(rng, int(index), split, image_size)[0] for index in photographs])
    image = np.take_along_axis(crops, tile[None, ..., None], axis=0)[0]
    return image, photographs[tile].astype(np.uint8)


def draw_scene(
    rng: np.random.Generator,
    split: str,
    image_size: int,
    *,
    num_objects: tuple[int, int] = (1, 3),
    object_scale: tuple[float, float] = (0.45, 0.75),
    two_photographs: float = 0.3,
    min_visible: float = 0.7,
    with_crowd: bool = False,
) -> Scene:
    """Paste random digits on a random background.

    A digit that would hide too much of an earlier one, or touch the crowd, is drawn again elsewhere; after fifty
    failed tries it is left out.

    Args:
        rng (np.random.Generator): Source of randomness.
        split (str): ``train`` or ``val``, of digits and background.
        image_size (int): Side of the scene in pixels.
        num_objects (tuple[int, int]): Smallest and largest number of digits.
        object_scale (tuple[float, float]): Range of a digit's height, as a share of the scene's side.
        two_photographs (float): Probability that a straight line divides the background between two photographs.
        min_visible (float): Share of each digit's pixels, 0..1, that later digits must leave visible.
        with_crowd (bool): Put a crowd of small digits of one class into a corner.
    Returns:
        Scene: (image_size, image_size).
    Raises:
        ValueError: If the split is unknown, or a range or share is invalid.
    """
    check_split(split)
    if not 1 <= num_objects[0] <= num_objects[1]:
        raise ValueError(f'num_objects must be an ascending range from 1 on, but is {num_objects}')
    if not 0 < object_scale[0] <= object_scale[1] <= MAX_OBJECT_SCALE:
        raise ValueError(
            f'object_scale must be an ascending range above 0 and up to {MAX_OBJECT_SCALE}, but is {object_scale}'
        )
    for name, share in (('two_photographs', two_photographs), ('min_visible', min_visible)):
        if not 0 <= share <= 1:
            raise ValueError(f'{name} must lie between 0 and 1, but is {share}')

    image, stuff, crops = _draw_background(rng, split, image_size, two_photographs)
    canvas = image.astype(np.float32)
    # Owner of each pixel: 0 background, k the fill of the k-th object, -1 an outline or the crowd
    owner = np.zeros((image_size, image_size), np.int32)
    forbidden = np.zeros(owner.shape, bool)

    crowd = None
    if with_crowd:
        crowd, forbidden = _draw_crowd(rng, split, canvas, owner)

    placed: list[_Digit] = []
    full_areas: list[int] = []
    for _ in range(rng.integers(num_objects[0], num_objects[1] + 1)):
        for _ in range(PLACING_TRIES):
            digit = _random_digit(rng, split, image_size * rng.uniform(*object_scale))
            y, x = (int(rng.integers(0, image_size - length + 1)) for length in digit.body.shape)
            if forbidden[_window(digit, y, x)][digit.body > 0].any():
                continue
            attempt = owner.copy()
            full_area = _claim(attempt, digit, y, x, len(placed) + 1)
            visible = np.bincount(attempt[attempt > 0], minlength=len(placed) + 2)[1:]
            if np.all(visible >= min_visible * np.array([*full_areas, full_area])):
                owner = attempt
                placed.append(digit)
                full_areas.append(full_area)
                _paint(rng, canvas, digit, y, x)
                break

    objects = (SceneObject(d.label, (d.sample,), owner == k) for k, d in enumerate(placed, start=1))
    outline = owner == -1
    if crowd is not None:
        outline &= ~crowd.mask
    return Scene(_to_uint8(canvas), tuple(objects), crowd, stuff, outline, crops)


def label_map(scene: Scene) -> np.ndarray:
    """Semantic segmentation of a scene.

    Returns:
        np.ndarray: (H, W) uint8: 0..9 on digits, 10..19 on photographs, 255 (to be ignored) on outlines and crowds.
    """
    labels = scene.stuff + np.uint8(len(DIGIT_CLASSES))
    for thing in scene.objects:
        labels[thing.mask] = thing.label
    labels[scene.outline] = 255
    if scene.crowd is not None:
        labels[scene.crowd.mask] = 255
    return labels


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _draw_background(
    rng: np.random.Generator, split: str, image_size: int, two_photographs: float
) -> tuple[np.ndarray, np.ndarray, tuple[Crop, ...]]:
    """Background image (H, W, 3), photograph behind each pixel (H, W), and the crops."""
    first, second = (int(i) for i in rng.choice(len(PHOTOGRAPHS), size=2, replace=False))
    image, crop = crop_photograph(rng, first, split, image_size)
    stuff = np.full((image_size, image_size), first, np.uint8)
    if rng.random() >= two_photographs:
        return image, stuff, (crop,)

    other_image, other_crop = crop_photograph(rng, second, split, image_size)
    angle = rng.uniform(0, 2 * np.pi)
    # The line passes near the centre: both sides are large
    centre_y, centre_x = image_size * rng.uniform(0.35, 0.65, size=2)
    y, x = np.mgrid[:image_size, :image_size]
    beyond = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle) > 0
    image[beyond] = other_image[beyond]
    stuff[beyond] = second
    return image, stuff, (crop, other_crop)


def _random_digit(rng: np.random.Generator, split: str, side: float, label: int | None = None) -> _Digit:
    """A random sample of a split, ``side`` pixels high, slightly rotated and cropped to its outline."""
    if label is None:
        label = int(rng.integers(len(DIGIT_CLASSES)))
    sample = int(rng.choice(digit_samples(label, split)))
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    ink = load_digit(sample)
    cell = side / len(ink)  # pixels per cell of the 8 x 8 grid
    outline_width = max(1, round(side / 32))

    # One affine map scales and rotates; the blur removes the steps of cubic interpolation
    size = int(np.ceil(1.3 * side)) + 2 * outline_width + 2
    matrix = cv2.getRotationMatrix2D(((len(ink) - 1) / 2,) * 2, angle, cell)
    matrix[:, 2] += (size - len(ink)) / 2
    smooth = cv2.warpAffine(ink, matrix, (size, size), flags=cv2.INTER_CUBIC)
    smooth = cv2.GaussianBlur(smooth, (0, 0), 0.28 * cell)

    # The edge is about one pixel wide at any size
    fill = np.clip(0.5 + (smooth - 0.46) * cell, 0, 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * outline_width + 1,) * 2)
    body = cv2.dilate(fill, kernel)
    x, y, width, height = cv2.boundingRect((body > 0).astype(np.uint8))
    window = (slice(y, y + height), slice(x, x + width))
    return _Digit(label, sample, fill[window], body[window])


def _window(digit: _Digit, y: int, x: int) -> tuple[slice, slice]:
    height, width = digit.body.shape
    return slice(y, y + height), slice(x, x + width)


def _claim(owner: np.ndarray, digit: _Digit, y: int, x: int, number: int) -> int:
    """Mark a digit's fill (``number``) and outline (-1) in ``owner``; returns the area of the fill."""
    part = owner[_window(digit, y, x)]
    fill = digit.fill > 0.5
    part[digit.body > 0.5] = -1
    part[fill] = number
    return int(fill.sum())


def _paint(rng: np.random.Generator, canvas: np.ndarray, digit: _Digit, y: int, x: int) -> None:
    """Paint a digit in a random vivid colour, slightly shaded, with a contrasting outline."""
    colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.8, 1), rng.uniform(0.75, 1)))
    luminance = colour @ (0.299, 0.587, 0.114)
    outline_colour = 15.0 if luminance > 110 else 240.0
    part = canvas[_window(digit, y, x)]
    shade = np.linspace(1.0, rng.uniform(0.75, 1.0), len(part))[:, None, None]
    body, fill = digit.body[..., None], digit.fill[..., None]
    part += body * (outline_colour - part)
    part += fill * (colour * shade - part)


def _draw_crowd(
    rng: np.random.Generator, split: str, canvas: np.ndarray, owner: np.ndarray
) -> tuple[SceneObject, np.ndarray]:
    """Fill a corner with small digits of one class; returns the crowd and the corner, (H, W) bool."""
    image_size = len(owner)
    label = int(rng.integers(len(DIGIT_CLASSES)))
    corner_side = round(CROWD_CORNER * image_size)
    top, left = (int(i) for i in rng.choice([0, image_size - corner_side], size=2))
    samples = []
    for _ in range(rng.integers(CROWD_DIGITS[0], CROWD_DIGITS[1] + 1)):
        digit = _random_digit(rng, split, image_size * rng.uniform(*CROWD_SCALE), label)
        y, x = (int(rng.integers(0, corner_side - length + 1)) for length in digit.body.shape)
        _claim(owner, digit, top + y, left + x, -1)
        _paint(rng, canvas, digit, top + y, left + x)
        samples.append(digit.sample)
    corner = np.zeros(owner.shape, bool)
    corner[top : top + corner_side, left : left + corner_side] = True
    return SceneObject(label, tuple(samples), owner == -1), corner
