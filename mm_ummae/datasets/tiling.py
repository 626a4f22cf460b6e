"""Cutting of large images into tiles, so that a training crop need not decode a whole scene."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mm_ummae.checkpoints.files import whole_file

from .image_files import list_images
from .image_kinds import ImageKindError
from .scenes import FORMATS, open_scene, write_part

INDEX = 'tiles.jsonl'
LOG_EVERY = 30  # seconds


@dataclass(frozen=True)
class Tiling:
    """What :func:`tile_images` did.

    Attributes:
        images (int): Images of the folder.
        before (int): Of them, done by an earlier call.
        tiled (int): Cut by this call.
        copied (int): Copied by this call, not larger than a tile.
        tiles (int): Tiles that this call wrote.
        empty (int): Tiles that it left out.
        unreadable (list[str]): Images that cannot be read.
    """

    images: int
    before: int
    tiled: int
    copied: int
    tiles: int
    empty: int
    unreadable: list[str] = field(default_factory=list)

    def text(self) -> str:
        """One line for the screen."""
        text = f'{self.images} images: {self.tiled} cut into {self.tiles} tiles'
        if self.empty:
            text += f' ({self.empty} empty ones left out)'
        text += f', {self.copied} not larger than a tile copied'
        if self.before:
            text += f', {self.before} done before'
        if self.unreadable:
            text += f', {len(self.unreadable)} left out, which cannot be read ({self.unreadable[0]}, ...)'
        return text


@dataclass(frozen=True)
class _Settings:
    """Of all tiles of a folder."""

    tile: int
    overlap: int
    image_format: str
    quality: int
    empty: float | None


def tile_images(
    data: str | Path,
    out: str | Path,
    tile: int = 512,
    overlap: int = 0,
    *,
    image_format: str = 'png',
    quality: int = 95,
    empty: float | None = None,
    workers: int = 1,
) -> Tiling:
    """Cut the images of a folder into tiles, each image read once.

    ``a/scene.tif`` becomes ``a/scene.tiles/y000000_x000512.png`` and so on, named by the row and column of the tile's
    first pixel. Tiles begin every ``tile - overlap`` pixels; the last ones of a row or column are shifted inwards to
    end with the image, so that all are full and nothing is padded. Where a side of the image is shorter than ``tile``,
    so is that of its tiles. Images not larger than a tile are copied as they are.

    Tiles have the values, depth and bands of the image. Of 8 bits, grey or RGB, they are PNG files or, with a loss,
    JPEG; palettes are kept in PNG. All others are uncompressed TIFF files. Images are turned as their EXIF orientation
    says; geographic references are not kept.

    Of a TIFF only the rows of one row of tiles are read at a time, if it is stored in strips or tiles and tifffile
    knows its compression (most others by ``pip install imagecodecs``). All other images are decoded as a whole.

    Files are whole at any time. ``tiles.jsonl`` in ``out`` has the settings and the images that are done, which another
    call leaves as they are unless they were modified. Images that cannot be read are logged and left out.

    Args:
        data (str | Path): Folder of images, at any depth.
        out (str | Path): Folder of the tiles: a new one, or that of an earlier call with the same settings.
        tile (int): Side of a tile in pixels. Default 512.
        overlap (int): Pixels that neighbours share, below ``tile``. Default 0.
        image_format (str): ``png`` or ``jpeg``, for grey and RGB of 8 bits. Default ``png``.
        quality (int): Of JPEG, 1 to 100. Default 95.
        empty (float, optional): Leave out tiles of which at least this share of the pixels, above 0.5, has one and the
            same value, such as borders without data. Default: keep all.
        workers (int): Processes. Default 1.
    Returns:
        Tiling: Numbers of images and tiles.
    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If there are DICOM files, and pydicom is missing.
        ValueError: If an argument is illegal, ``out`` lies in ``data`` or holds something else, two images would have
            the same tiles, or no image can be read.
    """
    settings = _Settings(tile, overlap, image_format, quality, empty)
    _check(settings, workers)
    data, out = Path(data).absolute(), Path(out).absolute()
    if not data.is_dir():
        raise FileNotFoundError(f'data is {data}, but there is no such folder')
    if data.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f'out is {out}, but it lies in data ({data}): tiles would become images of the next call')
    names = list_images(data)
    if not names:
        raise ValueError(f'data is {data}, but it holds no image')
    _check_names(names)
    index = _Index(out, settings)
    left = [name for name in names if not index.has(name, data)]
    work = partial(_tile_image, data=data, out=out, settings=settings)
    counts, problems, shown = Counter(tiles=0, empty=0, copied=0), {}, time.monotonic()
    with _mapped(work, left, workers) as results:
        for number, (name, result) in enumerate(zip(left, results, strict=True), 1):
            if isinstance(result, str):
                problems[name] = result
                print_log(f'left out: {data / name} {result}', 'current', logging.WARNING)
            else:
                index.add(name, result)
                counts.update({key: result[key] for key in counts})
            if time.monotonic() - shown > LOG_EVERY:
                shown = time.monotonic()
                print_log(f'{number} of {len(left)} images, {counts["tiles"]} tiles', 'current')
    if len(problems) == len(names):
        raise ValueError(
            f'data is {data}, but none of its {len(names)} images can be read: {names[0]} {problems[names[0]]}'
        )
    tiled = len(left) - len(problems) - counts['copied']
    done = Tiling(len(names), len(names) - len(left), tiled, **counts, unreadable=list(problems))
    print_log(f'{out}: {done.text()}', 'current')
    return done


def _check(settings: _Settings, workers: int) -> None:
    for name, value in dict(tile=settings.tile, workers=workers).items():
        if value < 1:
            raise ValueError(f'{name} is {value}, but it must be at least 1')
    if not 0 <= settings.overlap < settings.tile:
        raise ValueError(f'overlap is {settings.overlap}, but it must be at least 0 and below tile ({settings.tile})')
    if settings.image_format not in FORMATS:
        raise ValueError(f'image_format is {settings.image_format!r}, but it must be {" or ".join(FORMATS)}')
    if not 1 <= settings.quality <= 100:
        raise ValueError(f'quality is {settings.quality}, but it must be in 1..100')
    if settings.empty is not None and not 0.5 < settings.empty <= 1:
        raise ValueError(f'empty is {settings.empty}, but a share of pixels must be above 0.5, and at most 1')


def _check_names(names: list[str]) -> None:
    """Refuse images whose names differ in their endings alone."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_folder(name), name)
        if other != name:
            raise ValueError(
                f'{other} and {name} would both become {_folder(name)}: rename one of them, or move it to another data '
                'folder'
            )


def _folder(name: str) -> str:
    """Folder of an image's tiles."""
    return str(PurePath(name).with_suffix('.tiles'))


class _Index:
    """``tiles.jsonl``: a line with the settings, and one for each image that is done.

    Args:
        out (Path): Folder of the tiles.
        settings (_Settings): Of this call.
    """

    def __init__(self, out: Path, settings: _Settings) -> None:
        self.path, self.done = out / INDEX, {}
        lines = self.path.read_text('utf-8').split('\n') if self.path.exists() else []
        whole = lines[:-1]  # behind the last line break is nothing, or what an interrupted call wrote
        if not whole:
            if out.exists() and any(each for each in out.iterdir() if INDEX not in each.name):
                raise ValueError(f'out is {out}, but it holds something else than tiles: give a new or empty folder')
            whole = [json.dumps(asdict(settings))]
        for key, value in json.loads(whole[0]).items():
            if value != asdict(settings)[key]:
                raise ValueError(
                    f'out is {out}, but its tiles have {key} {value}, not {asdict(settings)[key]}: give another folder'
                )
        for line in whole[1:]:
            entry = json.loads(line)
            self.done[entry['image']] = entry['modified']
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as part:
            part.write_text('\n'.join([*whole, '']), 'utf-8')

    def has(self, name: str, data: Path) -> bool:
        """Whether an image is done and was not modified since."""
        return name in self.done and self.done[name] == (data / name).stat().st_mtime_ns

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Write the line of an image."""
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(dict(image=name, **entry)) + '\n')


@contextmanager
def _mapped(work: Callable, items: list, workers: int) -> Iterator[Iterator]:
    """Results of a function in the order of the items; an error or an interruption cancels what has not begun."""
    if workers == 1 or len(items) < 2:
        yield map(work, items)
        return
    pool = ProcessPoolExecutor(min(workers, len(items)))
    try:
        yield pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _tile_image(name: str, data: Path, out: Path, settings: _Settings) -> dict[str, Any] | str:
    """Cut or copy an image: the entry of the index, or what is wrong with the image."""
    source, folder = data / name, out / _folder(name)
    modified = source.stat().st_mtime_ns  # before it is read
    with ExitStack() as opened:
        try:
            scene = opened.enter_context(open_scene(source))
        except ImportError:  # of a package for all files of a kind
            raise
        except Exception as error:  # decoders raise all kinds
            return _problem(error)
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted call, or of the image before it was modified
        (out / name).unlink(missing_ok=True)
        entry = dict(modified=modified, height=scene.height, width=scene.width, tiles=0, empty=0, copied=False)
        if max(scene.height, scene.width) <= settings.tile:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(out / name) as part:
                shutil.copyfile(source, part)
            return entry | dict(copied=True)
        folder.mkdir(parents=True)
        height, width = min(settings.tile, scene.height), min(settings.tile, scene.width)
        for top in _starts(scene.height, height, settings.overlap):
            try:
                pages = scene.rows(top, top + height)
            except Exception as error:
                shutil.rmtree(folder)
                return _problem(error)
            for left in _starts(scene.width, width, settings.overlap):
                tiles = [np.ascontiguousarray(page[:, left : left + width]) for page in pages]
                if settings.empty is not None and _same_share(tiles) >= settings.empty:
                    entry['empty'] += 1
                    continue
                path = folder / f'y{top:06}_x{left:06}'
                write_part(tiles, scene, path, settings.image_format, settings.quality)
                entry['tiles'] += 1
    return entry


def _problem(error: Exception) -> str:
    return str(error) if isinstance(error, ImageKindError) else f'cannot be read ({type(error).__name__}: {error})'


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along a side; the last tile ends with the side."""
    last = side - tile
    return [*range(0, last, max(tile - overlap, 1)), last]


def _same_share(pages: list[np.ndarray]) -> float:
    """Share of pixels with the most frequent value, if it is more than half of them; else any share up to a half."""
    pixels = np.concatenate([page.reshape(-1, page.shape[2]) for page in pages], axis=1)  # (H * W, B)
    if pixels.dtype.kind == 'f':  # by their bits: NaN is not equal to itself
        pixels = pixels.view(f'u{pixels.dtype.itemsize}')
    middle = len(pixels) // 2  # more than half of the values are equal: so is the middle one
    value = np.partition(pixels, middle, axis=0)[middle]
    return float((pixels == value).all(1).mean())
