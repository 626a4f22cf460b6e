"""A look at the images of a folder before training: sizes, channels, depth, statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .decoding import PERCENTILES, TILING, decode, raw_pixels
from .image_kinds import ImageKindError
from .reading import read_file
from .sampling import random_sample

SAMPLE = 200  # images that are read
ELONGATED = 6  # long side to short side; a random box of a fifth of the area fits no longer, and the centre is taken


@dataclass(frozen=True)
class Survey:
    """What a sample of images has.

    Attributes:
        images (int): Files of the data set.
        read (int): Files that were read for this.
        sizes (tuple[int, int, int]): Smallest, median and largest short side in pixels.
        channels (dict[int, int]): Number of images by their number of channels.
        depths (dict[str, int]): Number of images by type of their values, such as ``uint8``.
        value_range (tuple[float, float], optional): Of the images of more than 8 bits: the values that 0.5 and 99.5 %
            of their pixels lie below. None if there is none.
        unreadable (list[str]): Files that cannot be decoded.
        elongated (int): Images of which random crops see the centre alone, because they are so long.
    """

    images: int
    read: int
    sizes: tuple[int, int, int]
    channels: dict[int, int]
    depths: dict[str, int]
    value_range: tuple[float, float] | None = None
    unreadable: list[str] = field(default_factory=list)
    elongated: int = 0

    def text(self) -> str:
        """One line for the screen."""
        channels = ', '.join(f'{count} of {channels}' for channels, count in sorted(self.channels.items()))
        depths = ', '.join(f'{count} {depth}' for depth, count in self.depths.items())
        text = (
            f'{self.images} images; of {self.read} that were looked at: short side {self.sizes[0]} to {self.sizes[2]} '
            f'px (median {self.sizes[1]}), channels: {channels}; values: {depths}'
        )
        if self.elongated:
            text += (
                f'; {self.elongated} are longer than {ELONGATED}:1, of which crops see the centre alone: cut them into '
                f'tiles ({TILING})'
            )
        if self.unreadable:
            text += f'; {len(self.unreadable)} cannot be decoded ({self.unreadable[0]}, ...)'
        return text


def look_at_images(paths: Sequence[str | Path], sample: int = SAMPLE) -> Survey:
    """Read a random sample of images, the same each time.

    Args:
        paths (Sequence[str | Path]): Files.
        sample (int): Largest number that is read. Default 200.
    Returns:
        Survey: What they have.
    Raises:
        ValueError: If none of them can be decoded.
        ImportError: If they need a package that is missing, as DICOM does.
    """
    sides, values, unreadable, elongated = [], [], [], 0
    channels, depths = Counter(), Counter()
    for path in random_sample(paths, sample):
        try:
            pixels = raw_pixels(read_file(str(path)))
        except ImportError:  # of a package for all files of a kind
            raise
        except Exception as error:  # decoders raise all kinds
            unreadable.append(str(path))
            reason = f'{type(error).__name__}: {error}'
            continue
        sides.append(min(pixels.shape[:2]))
        elongated += max(pixels.shape[:2]) > ELONGATED * sides[-1]
        channels[pixels.shape[2]] += 1
        depths[pixels.dtype.name] += 1
        if pixels.dtype not in (np.uint8, bool):
            flat = pixels[np.isfinite(pixels)]
            values.append(flat[:: max(len(flat) // 10_000, 1)].astype(np.float64))
    if not sides:
        raise ValueError(
            f'none of {len(unreadable)} images that were looked at can be decoded: {unreadable[0]}, ... (of the last: '
            f'{reason})'
        )
    deep = np.concatenate(values) if values else np.zeros(0)
    found = tuple(float(each) for each in np.percentile(deep, PERCENTILES)) if len(deep) else None
    if found and found[0] == found[1]:
        found = (found[0], found[0] + 1)
    order = sorted(sides)
    sizes = (order[0], order[len(order) // 2], order[-1])
    return Survey(len(paths), len(sides), sizes, dict(channels), dict(depths), found, unreadable, elongated)


def pixel_statistics(
    paths: Sequence[str | Path], channels: int, value_range: Sequence[float] | str | None, sample: int = SAMPLE
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for the data preprocessor.

    Args:
        paths (Sequence[str | Path]): Files; those that cannot be decoded are left out.
        channels (int): Channels C, see :func:`~mm_ummae.datasets.decoding.decode`.
        value_range (Sequence[float] | str, optional): Likewise.
        sample (int): Largest number of images that is read. Default 200.
    Returns:
        tuple[list[float], list[float]]: Mean and standard deviation in pixel values 0..255, three channels as RGB. Each
        image counts the same.
    Raises:
        ValueError: If none can be decoded, or a channel has the same value everywhere.
        ImportError: If they need a package that is missing, as DICOM does.
    """
    moments = []
    for path in random_sample(paths, sample):
        try:
            pixels = decode(read_file(str(path)), channels=channels, value_range=value_range).astype(np.float64)
        except ImageKindError as error:
            raise ValueError(f'{path} {error}') from error
        except ImportError:
            raise
        except Exception:  # damaged
            continue
        moments.append((pixels.mean((0, 1)), np.square(pixels).mean((0, 1))))
    if not moments:
        raise ValueError('none of the images can be decoded')
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    if not (std > 0.5).all():
        raise ValueError(
            f'the pixels of the images have a standard deviation of {std.round(2).tolist()} of 255 in their channels: '
            'one is empty, or value_range does not fit the data'
        )
    if channels == 3:  # BGR
        mean, std = mean[::-1], std[::-1]
    return mean.round(3).tolist(), std.round(3).tolist()


def choose_channels(survey: Survey, files: Sequence[str]) -> int:
    """Channels to read: three, which the hosts take, unless all files have the same bands beyond colours.

    Args:
        survey (Survey): Of the images.
        files (Sequence[str]): The images.
    Returns:
        int: The number.
    """
    if len(survey.channels) == 1:
        (channels,) = survey.channels
        bands = all(Path(file).suffix.lower() in ('.tif', '.tiff') for file in files)
        if channels > 4 or (channels == 4 and bands):
            return channels
    return 3
