"""Tiles of large images: together they are the image, bit for bit; finished images are done once."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from mmengine.dataset import default_collate
from PIL import Image

from mm_ummae.datasets import PretrainImages, scenes, tiling
from mm_ummae.datasets.decoding import decode, raw_pixels
from mm_ummae.datasets.tiling import tile_images
from tests.datasets.photographs import encode, photograph

HEIGHT, WIDTH, TILE = 150, 201, 64
PLACE = re.compile(r'y(\d{6})_x(\d{6})\.(png|jpg|tif)$')
RNG = np.random.default_rng(0)
RGB = photograph(WIDTH, HEIGHT)
GREY16 = RNG.integers(0, 5000, (HEIGHT, WIDTH)).astype(np.uint16)
BANDS = RNG.integers(0, 5000, (HEIGHT, WIDTH, 4)).astype(np.uint16)
FLOAT = RNG.normal(size=(HEIGHT, WIDTH)).astype(np.float32)
PLANES = dict(photometric='minisblack', planarconfig='separate')


def pillow(pixels: np.ndarray | Image.Image, **options: Any) -> Callable[[Path], None]:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: image.save(path, **options)


def tiff(pixels: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **{'photometric': 'minisblack', **options})


# File name, how it is written, how its tiles end
KINDS = {
    'RGB': ('a.png', pillow(RGB), 'png'),
    'grey': ('a.bmp', pillow(RGB[..., 0]), 'png'),
    'alpha': ('a.png', pillow(np.dstack((RGB, RGB[..., 0]))), 'tif'),
    'palette': ('a.png', pillow(Image.fromarray(RGB).quantize(9)), 'png'),
    '16 bits PNG': ('a.png', pillow(GREY16), 'tif'),
    '16 bits RGB PNG': ('a.png', lambda path: cv2.imwrite(str(path), BANDS[..., :3]), 'tif'),
    '16 bits strips': ('a.tif', tiff(GREY16, rowsperstrip=7, compression='zlib'), 'tif'),
    '16 bits RGB': ('a.tif', tiff(BANDS[..., :3], photometric='rgb'), 'tif'),
    '4 bands tiled': ('a.tif', tiff(BANDS, tile=(48, 32), planarconfig='contig', compression='zlib'), 'tif'),
    '4 bands striped': ('a.tif', tiff(BANDS, rowsperstrip=10, planarconfig='contig'), 'tif'),
    '4 planes tiled': ('a.tif', tiff(BANDS.transpose(2, 0, 1), tile=(48, 32), planarconfig='separate'), 'tif'),
    '4 planes mapped': ('a.tif', tiff(BANDS.transpose(2, 0, 1), planarconfig='separate'), 'tif'),
    '4 pages': ('a.tif', tiff(BANDS.transpose(2, 0, 1), compression='zlib'), 'tif'),
    'float': ('a.tif', tiff(FLOAT, compression='zlib', rowsperstrip=150), 'tif'),
    'big endian': ('a.tif', tiff(GREY16, byteorder='>', rowsperstrip=16), 'tif'),
    'BigTIFF': ('a.tif', tiff(GREY16, bigtiff=True), 'tif'),
    'RGB TIFF': ('a.TIF', tiff(RGB, photometric='rgb', tile=(32, 32)), 'png'),
    'RGB LZW': ('a.tiff', pillow(RGB, compression='tiff_lzw'), 'png'),
    'white is zero': ('a.tif', tiff(RGB[..., 0], photometric='miniswhite'), 'tif'),
    'alpha TIFF': ('a.tif', tiff(np.dstack((RGB, RGB[..., 0])), photometric='rgb', extrasamples=['unassalpha']), 'tif'),
}


def put_together(folder: Path, read: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """The image of the tiles in a folder; where they overlap they are equal."""
    found = {tuple(int(each) for each in PLACE.search(path.name).groups()[:2]): path for path in folder.iterdir()}
    tiles = {place: read(path.read_bytes()) for place, path in found.items()}
    height, width = (max(place[axis] + tile.shape[axis] for place, tile in tiles.items()) for axis in (0, 1))
    first = next(iter(tiles.values()))
    image, seen = np.zeros((height, width, first.shape[2]), first.dtype), np.zeros((height, width), bool)
    for (top, left), tile in tiles.items():
        area = slice(top, top + tile.shape[0]), slice(left, left + tile.shape[1])
        known = seen[area]
        assert np.array_equal(image[area][known], tile[known], equal_nan=tile.dtype.kind == 'f')
        image[area], seen[area] = tile, True
    assert seen.all()
    return image


@pytest.mark.parametrize('overlap', [0, 9])
@pytest.mark.parametrize('kind', KINDS)
def test_the_tiles_together_are_the_image(kind: str, overlap: int, tmp_path: Path) -> None:
    """Its values, bands and depth, and what training reads of them."""
    name, write, suffix = KINDS[kind]
    source = tmp_path / 'data' / 'été 1' / 'deep' / name
    source.parent.mkdir(parents=True)
    write(source)
    done = tile_images(tmp_path / 'data', tmp_path / 'out', TILE, overlap)
    folder, content = tmp_path / 'out' / 'été 1' / 'deep' / 'a.tiles', source.read_bytes()
    tops, lefts = ([0, 64, 86], [0, 64, 128, 137]) if not overlap else ([0, 55, 86], [0, 55, 110, 137])
    names = {f'y{top:06}_x{left:06}.{suffix}' for top in tops for left in lefts}
    assert {path.name for path in folder.iterdir()} == names and done.tiles == 12 and done.tiled == 1
    assert {raw_pixels(path.read_bytes()).shape[:2] for path in folder.iterdir()} == {(64, 64)}
    for channels in (1, 3, 4):
        if channels == 4 and raw_pixels(content).shape[2] != 4 and kind != '4 pages':
            continue
        read = lambda content: decode(content, channels=channels, value_range=(0, 5000))  # noqa: B023, E731
        assert np.array_equal(put_together(folder, read), read(content))
    if kind != 'palette':
        assert np.array_equal(put_together(folder, raw_pixels), raw_pixels(content))


def test_a_label_map_keeps_its_palette(tmp_path: Path) -> None:
    """And the tiles of label maps have the names of those of the images."""
    (tmp_path / 'maps').mkdir()
    (tmp_path / 'images').mkdir()
    labels = Image.fromarray(RGB).quantize(9)
    labels.save(tmp_path / 'maps' / 'a.png')
    Image.fromarray(RGB).save(tmp_path / 'images' / 'a.jpg')
    for name in ('maps', 'images'):
        tile_images(tmp_path / name, tmp_path / 'out' / name, TILE)
    names = [
        sorted(path.name for path in (tmp_path / 'out' / name / 'a.tiles').iterdir()) for name in ('maps', 'images')
    ]
    assert names[0] == names[1]
    tile = Image.open(tmp_path / 'out' / 'maps' / 'a.tiles' / 'y000064_x000137.png')
    assert tile.mode == 'P' and np.array_equal(np.asarray(tile), np.asarray(labels)[64:128, 137:201])


def test_jpeg_is_a_choice(tmp_path: Path) -> None:
    """Of the format of grey and RGB tiles; an image that is turned by EXIF is turned."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'a.jpg').write_bytes(encode(Image.fromarray(RGB), orientation=6))
    tiff(GREY16)(tmp_path / 'data' / 'b.tif')
    for quality in (95, 20):
        tile_images(tmp_path / 'data', tmp_path / str(quality), 100, image_format='jpeg', quality=quality)
    fine, coarse = ([*(tmp_path / quality / 'a.tiles').iterdir()] for quality in ('95', '20'))
    assert {path.suffix for path in fine} == {'.jpg'} and len(fine) == 6
    assert sum(path.stat().st_size for path in coarse) < 0.6 * sum(path.stat().st_size for path in fine)
    tile = decode((tmp_path / '95' / 'a.tiles' / 'y000101_x000050.jpg').read_bytes())
    image = decode((tmp_path / 'data' / 'a.jpg').read_bytes())
    assert image.shape == (WIDTH, HEIGHT, 3) and np.abs(tile - image[101:, 50:].astype(int)).mean() < 4
    assert {path.suffix for path in (tmp_path / '20' / 'b.tiles').iterdir()} == {'.tif'}


def test_small_images_are_copied_and_narrow_ones_are_not_padded(tmp_path: Path) -> None:
    data, out = tmp_path / 'data', tmp_path / 'out'
    data.mkdir()
    (data / 'small.jpg').write_bytes(encode(Image.fromarray(RGB[:64, :64])))
    Image.fromarray(RGB[:9]).save(data / 'narrow.png')
    done = tile_images(data, out, TILE)
    assert (out / 'small.jpg').read_bytes() == (data / 'small.jpg').read_bytes()
    assert np.array_equal(put_together(out / 'narrow.tiles', raw_pixels), RGB[:9])
    assert (done.copied, done.tiled, done.tiles) == (1, 1, 4)


# Empty tiles


@pytest.mark.parametrize('value', [0, np.nan])
def test_empty_tiles_are_left_out_and_counted(value: float, tmp_path: Path) -> None:
    """Also of values that are no numbers; those with less of them stay."""
    pixels = RNG.normal(size=(128, 192, 2)).astype(np.float32)
    pixels[:64, :64], pixels[:32, 64:128], pixels[:60, 128:] = value, value, value
    (tmp_path / 'data').mkdir()
    tiff(pixels, planarconfig='contig')(tmp_path / 'data' / 'a.tif')
    for share, kept in ((None, 6), (1, 5), (0.9, 4), (0.51, 4)):
        done = tile_images(tmp_path / 'data', tmp_path / str(share), 64, empty=share)
        assert (done.tiles, done.empty) == (kept, 6 - kept)
        assert len([*(tmp_path / str(share) / 'a.tiles').iterdir()]) == kept
    assert '(2 empty ones left out)' in done.text()


# Interruption, repetition, damage


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / 'data'
    for index in range(4):
        (folder / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB).save(folder / str(index % 2) / f'{index}.png')
    return folder


def test_a_second_call_does_what_is_left(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption in the middle of an image, which leaves whole files alone."""
    out, count, write = tmp_path / 'out', [], tiling.write_part

    def interrupted(*args: Any) -> None:
        count.append(1)
        if len(count) == 17:
            raise KeyboardInterrupt
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tiling, 'write_part', interrupted)
        with pytest.raises(KeyboardInterrupt):
            tile_images(data, out, TILE)
    files = [path for path in out.rglob('*.*') if path.is_file()]
    assert len(files) == 17 and all(
        decode(path.read_bytes()).shape == (64, 64, 3) for path in files if path.suffix == '.png'
    )
    with (out / 'tiles.jsonl').open('a') as file:
        file.write('{"image": "0/')  # of a line
    done = tile_images(data, out, TILE)
    assert (done.before, done.tiled, done.tiles) == (1, 3, 36)
    assert len([*out.rglob('*.png')]) == 48
    lines = [json.loads(line) for line in (out / 'tiles.jsonl').read_text().splitlines()]
    assert lines[0] == dict(tile=64, overlap=0, image_format='png', quality=95, empty=None)
    assert sorted(line['image'] for line in lines[1:]) == ['0/0.png', '0/2.png', '1/1.png', '1/3.png']
    assert lines[1].items() >= dict(height=150, width=201, tiles=12, empty=0, copied=False).items()
    monkeypatch.setattr(tiling, '_tile_image', lambda *args, **kwargs: pytest.fail('it was done again'))
    assert tile_images(data, out, TILE).before == 4


def test_a_killed_writer_leaves_no_half_tile(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(image: Image.Image, path: Path, *args: Any, **kwargs: Any) -> None:
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', half)
    with pytest.raises(OSError, match='No space left'):
        tile_images(data, tmp_path / 'out', TILE)
    assert not [*(tmp_path / 'out').rglob('*.png*')]


def test_a_modified_image_is_done_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    tile_images(data, out, TILE)
    Image.fromarray(RGB[:70, :90]).save(data / '0' / '2.png')
    done = tile_images(data, out, TILE)
    assert (done.before, done.tiled) == (3, 1)
    assert np.array_equal(put_together(out / '0' / '2.tiles', raw_pixels), RGB[:70, :90])
    Image.fromarray(RGB[:60, :60]).save(data / '0' / '2.png')
    assert tile_images(data, out, TILE).copied == 1
    assert (out / '0' / '2.png').exists() and not (out / '0' / '2.tiles').exists()


def test_several_processes_do_the_same(data: Path, tmp_path: Path) -> None:
    one, two = (tile_images(data, tmp_path / str(workers), TILE, workers=workers) for workers in (1, 2))
    assert one == two
    first, second = (sorted(path for path in (tmp_path / each).rglob('*.png')) for each in '12')
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second] and len(first) == 48


def test_damaged_images_are_left_out(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Truncated where a decoder would fill it up, too."""
    content = (data / '0' / '0.png').read_bytes()
    (data / '0' / '0.png').write_bytes(content[: len(content) // 2])
    tiff(GREY16, rowsperstrip=8, compression='zlib')(data / 'b.tif')
    content = (data / 'b.tif').read_bytes()
    (data / 'b.tif').write_bytes(content[: len(content) // 2] + bytes(50) + content[len(content) // 2 + 50 :])
    tiff(GREY16)(data / 'c.tif')
    (data / 'c.tif').write_bytes((data / 'c.tif').read_bytes()[:-9])
    (data / 'd.jpg').write_bytes(encode(Image.fromarray(RGB))[:-200] + bytes(200))
    with caplog.at_level(logging.WARNING):
        done = tile_images(data, tmp_path / 'out', TILE)
    assert sorted(done.unreadable) == ['0/0.png', 'b.tif', 'c.tif', 'd.jpg'] and done.tiled == 3
    assert '4 left out, which cannot be read (0/0.png, ...)' in done.text()
    assert not [*(tmp_path / 'out').rglob('b.tiles')] and len([*(tmp_path / 'out').rglob('*.png')]) == 36
    for path in [*data.rglob('*.png')]:
        path.write_bytes(b'')
    with pytest.raises(ValueError, match=r'none of its 7 images can be read: 0/0.png cannot be read \('):
        tile_images(data, tmp_path / 'other', TILE)


# Sizes


def test_a_large_tiff_is_not_decoded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 x 10,000 px of one band in tiles: three rows of its tiles at a time at most, in seconds."""
    (tmp_path / 'data').mkdir()
    pixels = np.zeros((10_000, 10_000), np.uint8)
    pixels[::100], pixels[:, 4321] = 200, np.arange(10_000) % 251
    tifffile.imwrite(tmp_path / 'data' / 'a.tif', pixels, tile=(1024, 1024), compression='zlib')
    sizes, rows = [], scenes._Page.rows

    def counted(page: Any, top: int, bottom: int) -> np.ndarray:
        found = rows(page, top, bottom)
        sizes.append(sum(part.size for part in page.decoded.values()))
        return found

    monkeypatch.setattr(scenes._Page, 'rows', counted)
    started = time.monotonic()
    done = tile_images(tmp_path / 'data', tmp_path / 'out', 2000)
    assert done.tiles == 25 and max(sizes) <= 3 * 1024 * 10_240 and time.monotonic() - started < 20
    tile = raw_pixels((tmp_path / 'out' / 'a.tiles' / 'y004000_x004000.png').read_bytes())[..., 0]
    assert np.array_equal(tile, pixels[4000:6000, 4000:6000])


def test_pillow_has_no_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training says what to do with such an image."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
    (tmp_path / 'data').mkdir()
    Image.fromarray(RGB).save(tmp_path / 'data' / 'a.png')
    with pytest.raises(ValueError, match=r'is larger than Pillow decodes .*cut it into tiles by tools/tile_images.py'):
        decode((tmp_path / 'data' / 'a.png').read_bytes())
    assert tile_images(tmp_path / 'data', tmp_path / 'out', TILE).tiles == 12
    assert Image.MAX_IMAGE_PIXELS == 10_000


# Use


def test_tiles_are_trained_on(data: Path, tmp_path: Path, tool: Callable[[str], ModuleType]) -> None:
    """As the tool writes them."""
    words = f'--data {data} --out {tmp_path}/out --tile 64 --overlap 8 --format jpeg --quality 90 --empty 0.99'
    done = tool('tile_images').main(words.split())
    assert done.tiles == 48 and '4 images: 4 cut into 48 tiles' in done.text()
    crop = dict(type='mm_ummae.TorchRandomResizedCrop', scale=32, flip_prob=0.5)
    pipeline = [dict(type='mm_ummae.LoadCompleteImage'), crop, dict(type='PackInputs')]
    images = PretrainImages(data_root=str(tmp_path / 'out'), pipeline=pipeline)
    assert len(images) == 48
    assert default_collate([images[index] for index in range(48)])['inputs'].shape == (48, 3, 32, 32)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(tile=0), 'tile is 0, but it must be at least 1'),
        (dict(workers=0), 'workers is 0, but it must be at least 1'),
        (dict(overlap=64), r'overlap is 64, but it must be at least 0 and below tile \(64\)'),
        (dict(overlap=-1), 'overlap is -1, but'),
        (dict(image_format='gif'), "image_format is 'gif', but it must be png or jpeg"),
        (dict(quality=101), r'quality is 101, but it must be in 1\.\.100'),
        (dict(empty=0.5), 'empty is 0.5, but a share of pixels must be above 0.5, and at most 1'),
        (dict(data='nowhere'), r'data is .*nowhere, but there is no such folder'),
        (dict(out='data/tiles'), r'out is .*tiles, but it lies in data'),
        (dict(out='data'), r'out is .*data, but it lies in data'),
        (dict(data='none'), r'data is .*none, but it holds no image'),
        (dict(out='full'), r'out is .*full, but it holds something else than tiles: give a new or empty folder'),
        (dict(data='twins'), r'a\.bmp and a\.png would both become a\.tiles: rename one of them'),
        (dict(out='done'), r'out is .*done, but its tiles have tile 32, not 64: give another folder'),
    ],
)
def test_mistakes_are_refused_at_the_start(
    change: dict, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('none', 'full', 'twins'):
        (tmp_path / name).mkdir()
    (tmp_path / 'full' / 'thesis.tex').write_text('mine')
    for name in ('a.png', 'a.bmp'):
        Image.fromarray(RGB).save(tmp_path / 'twins' / name)
    tile_images(data, 'done', 32)
    arguments = dict(data=data, out=tmp_path / 'new', tile=64) | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tile_images(**arguments)
    assert not (tmp_path / 'new').exists() and not (data / 'tiles').exists()
