"""Images that are read in rows, a TIFF without decoding the rest, and parts of them as files of their own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps
from tifffile import PHOTOMETRIC

from mm_ummae.checkpoints.files import whole_file

from .decoding import TIFF, check_page, raw_pixels
from .dicom import is_dicom
from .image_kinds import ImageKindError, MissingCodecError
from .reading import read_file

FORMATS = {'png': '.png', 'jpeg': '.jpg'}  # of grey and RGB parts of 8 bits; all others are TIFF files
PNG_LEVEL = 1  # of compression; Pillow's default is slower, for files that are a few per cent smaller
ORIENTATION = 274  # tag of a TIFF


class Scene:
    """An image that is decoded as a whole.

    Args:
        content (bytes): Content of the file.

    Attributes:
        height (int): Rows.
        width (int): Columns.
        palette (list[int], optional): Red, green and blue of the values, one after another.
        meaning (dict): Of the bands: arguments of tifffile.
    """

    palette: list[int] | None = None

    def __init__(self, content: bytes) -> None:
        with _any_size():
            pixels = self._read_palette(content)
            self._pixels = raw_pixels(content) if pixels is None else pixels
        self.height, self.width, bands = self._pixels.shape
        self.meaning = dict(photometric='rgb' if bands in (3, 4) else 'minisblack')
        if bands in (2, 4):
            self.meaning['extrasamples'] = ['unassalpha']

    def _read_palette(self, content: bytes) -> np.ndarray | None:
        if content[:4] in TIFF or is_dicom(content):
            return None
        with Image.open(io.BytesIO(content)) as image:
            if image.mode != 'P' or 'transparency' in image.info:
                return None
            self.palette = image.getpalette()
            return np.asarray(ImageOps.exif_transpose(image))[..., None]

    def rows(self, top: int, bottom: int) -> list[np.ndarray]:
        """Rows of each page.

        Args:
            top (int): The first.
            bottom (int): The one behind the last.
        Returns:
            list[numpy.ndarray]: Each (bottom - top, W, B) of the file's type; three bands are RGB.
        """
        return [self._pixels[top:bottom]]


class TiffScene:
    """A TIFF, of which the strips or tiles of the wanted rows are decoded; several pages if they may be bands.

    Args:
        file (tifffile.TiffFile): Open file.

    Attributes: those of :class:`Scene`.
    """

    palette = None

    def __init__(self, file: tifffile.TiffFile) -> None:
        first = file.pages[0]
        if first.tags.valueof(ORIENTATION, default=1) != 1:
            raise ImageKindError('is a TIFF that is stored turned (its orientation is not 1): turn it first')
        same = [page for page in file.pages if page.shape == first.shape and page.dtype == first.dtype]
        self._pages = [_Page(page) for page in (same if first.samplesperpixel == 1 else same[:1])]
        _, _, self.height, self.width, _ = first.shaped
        decoded_by_jpeg = first.photometric == PHOTOMETRIC.YCBCR and first.compression == tifffile.COMPRESSION.JPEG
        self.meaning = dict(
            photometric=PHOTOMETRIC.RGB if decoded_by_jpeg else first.photometric,
            extrasamples=first.extrasamples or None,
            colormap=first.colormap,
        )

    def rows(self, top: int, bottom: int) -> list[np.ndarray]:
        """See :meth:`Scene.rows`."""
        return [page.rows(top, bottom) for page in self._pages]


class _Page:
    """A page of a TIFF. What was decoded last is kept, since the next rows may lie in the same strips or tiles."""

    def __init__(self, page: tifffile.TiffPage) -> None:
        check_page(page)
        self.page = page
        self.places = [page.decode(None, index)[1:] for index in range(len(page.dataoffsets))]
        self.decoded: dict[int, np.ndarray] = {}
        file = page.parent.filehandle
        self.whole = tifffile.memmap(file.path, page=page.index, mode='r') if page.is_memmappable else None

    def rows(self, top: int, bottom: int) -> np.ndarray:
        planes, depth, _, width, samples = self.page.shaped
        if depth != 1:
            raise ImageKindError('is a TIFF with a volume in a page')
        if self.whole is not None:
            rows = np.array(self.whole.reshape(self.page.shaped)[:, 0, top:bottom])
        else:
            rows, decoded = np.zeros((planes, bottom - top, width, samples), self.page.dtype), {}
            for index, ((plane, _, row, column, _), (_, height, across, _)) in enumerate(self.places):
                start, end = max(row, top), min(row + height, bottom)
                if start < end:
                    part = decoded[index] = self.decoded[index] if index in self.decoded else self._decode(index)
                    part = part[start - row : end - row, : width - column]
                    rows[plane, start - top : end - top, column : column + across] = part
            self.decoded = decoded
        return np.moveaxis(rows, 0, 2).reshape(bottom - top, width, planes * samples)

    def _decode(self, index: int) -> np.ndarray:
        """A strip or tile, (h, w, B)."""
        page, file = self.page, self.page.parent.filehandle
        file.seek(page.dataoffsets[index])
        content = file.read(page.databytecounts[index]) or None
        pixels, _, shape = page.decode(content, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        return np.full(shape[1:], page.nodata, page.dtype) if pixels is None else pixels[0]  # None: not stored


@contextmanager
def open_scene(path: Path) -> Iterator[Scene | TiffScene]:
    """Open an image.

    Args:
        path (Path): File.
    Yields:
        Scene | TiffScene: The image.
    Raises:
        ImageKindError: If it is of a kind that cannot be read in parts.
        ImportError: If it needs a package that is missing, as DICOM does.
        Exception: ``OSError``, ``SyntaxError`` and whatever else a decoder raises for a damaged file.
    """
    with path.open('rb') as file:
        tiff = file.read(4) in TIFF
    if tiff:
        with tifffile.TiffFile(path) as file:
            try:
                scene: Scene | TiffScene = TiffScene(file)
            except MissingCodecError:  # Pillow has some of its own
                scene = Scene(read_file(str(path)))
            yield scene
    else:
        yield Scene(read_file(str(path)))


def write_part(
    pages: list[np.ndarray], scene: Scene | TiffScene, path: Path, image_format: str = 'png', quality: int = 95
) -> None:
    """Write a part of an image.

    Args:
        pages (list[numpy.ndarray]): Each (H, W, B), in the order of :meth:`Scene.rows`.
        scene (Scene | TiffScene): The image.
        path (Path): File without its ending.
        image_format (str): One of ``FORMATS``, for grey and RGB of 8 bits. Default ``png``.
        quality (int): Of JPEG, 1 to 100. Default 95.
    """
    bands, photometric = pages[0].shape[2], scene.meaning['photometric']
    plain = photometric in ('minisblack', 'rgb', PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
    if len(pages) > 1 or pages[0].dtype != np.uint8 or bands not in (1, 3) or not plain:
        with whole_file(path.with_suffix('.tif')) as part, tifffile.TiffWriter(part) as file:
            for pixels in pages:
                shaped = pixels if bands > 1 else pixels[..., 0]
                file.write(shaped, planarconfig='contig' if bands > 1 else None, metadata=None, **scene.meaning)
        return
    image = Image.fromarray(pages[0] if bands == 3 else pages[0][..., 0])
    if scene.palette is not None:
        image.putpalette(scene.palette)
    with whole_file(path.with_suffix(FORMATS[image_format])) as part:
        if image_format == 'png':
            image.save(part, 'PNG', compress_level=PNG_LEVEL)
        else:
            image.convert('RGB' if scene.palette else image.mode).save(part, 'JPEG', quality=quality)


@contextmanager
def _any_size() -> Iterator[None]:
    """Without Pillow's limit of pixels, a guard of servers against malicious files."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
