"""DICOM files become the values that they stand for; what is missing is said."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from mm_ummae.__main__ import main
from mm_ummae.commands import pretrain
from mm_ummae.datasets import PretrainImages, image_kinds
from mm_ummae.datasets.damaged import DataError, describe_failure
from mm_ummae.datasets.decoding import decode, raw_pixels
from mm_ummae.datasets.image_files import load_batch
from mm_ummae.datasets.image_kinds import ImageKindError
from mm_ummae.datasets.survey import look_at_images, pixel_statistics
from mm_ummae.datasets.tiling import tile_images
from tests.datasets.dicoms import dicom
from tests.datasets.photographs import encode, photograph

COLOUR = photograph(50, 40)
GREY = COLOUR[..., 0]
STORED = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)  # of 12 bits
TABLE = [5, 100, 700, 3000]
CT = dict(RescaleSlope='2', RescaleIntercept='-1024')
LOAD = dict(type='mm_ummae.LoadCompleteImage')


def table(first: int, values: list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [len(values), first, 16], 'US', values
    item['LUTDescriptor'].VR = item['LUTData'].VR = 'US'
    return item


# Values


@pytest.mark.parametrize(
    ('pixels', 'elements', 'expected'),
    [
        (STORED, dict(BitsStored=12, HighBit=11), STORED),
        (STORED, CT, STORED * 2.0 - 1024),
        (STORED.astype(np.int16) - 900, dict(RescaleSlope='1', RescaleIntercept='0'), STORED.astype(np.int16) - 900),
        (STORED, dict(PhotometricInterpretation='MONOCHROME1', BitsStored=12, HighBit=11), 4095 - STORED),
        (STORED, dict(PhotometricInterpretation='MONOCHROME1', BitsStored=12, **CT), 2 * (4095.0 - STORED) - 1024),
        (STORED.astype(np.int16), dict(PhotometricInterpretation='MONOCHROME1'), -1 - STORED.astype(np.int16)),
        (GREY, {}, GREY),
        (GREY, dict(PhotometricInterpretation='MONOCHROME1'), 255 - GREY),
        (
            GREY // 64,
            dict(ModalityLUTSequence=[table(0, [5, 100, 700, 3000])]),
            np.array([5, 100, 700, 3000])[GREY // 64],
        ),
        (COLOUR, {}, COLOUR),
    ],
)
def test_values(pixels: np.ndarray, elements: dict, expected: np.ndarray) -> None:
    """Rescaled, inverted where the lowest is white, and of the stored type where nothing is rescaled."""
    found = raw_pixels(dicom(pixels, **elements))
    rescaled = 'ModalityLUTSequence' in elements or elements.get('RescaleSlope') == '2'
    assert found.dtype == (np.float32 if rescaled else pixels.dtype)
    assert np.array_equal(found, expected if expected.ndim == 3 else expected[..., None])


def test_images_of_one_range_and_of_8_bits() -> None:
    """The rules of depth and channels are those of all files."""
    with pytest.raises(ImageKindError, match=r'more than 8 bits per channel \(values -1024 to 2974\)'):
        decode(dicom(STORED, **CT))
    pixels = decode(dicom(STORED, **CT), value_range=(-1024, 976))
    assert pixels.shape == (40, 50, 3) and pixels[0, 0, 0] == 0 and pixels[10, 0, 0] == round(1000 / 2000 * 255)
    assert np.array_equal(decode(dicom(COLOUR)), COLOUR[..., ::-1])
    assert np.array_equal(decode(dicom(GREY), channels=1), GREY[..., None])
    with pytest.raises(ImageKindError, match='has 1 channels, but channels is 4'):
        decode(dicom(GREY), channels=4)


def test_a_segmentation_of_one_bit() -> None:
    bits = np.packbits(GREY > 100, bitorder='little')
    content = dicom(bits[None], BitsAllocated=1, BitsStored=1, HighBit=0, Rows=40, Columns=50)
    assert np.array_equal(decode(content, channels=1)[..., 0], (GREY > 100) * np.uint8(255))


@pytest.mark.parametrize('bits', [8, 16])
def test_a_palette_becomes_colours(bits: int) -> None:
    ramp = np.arange(256, dtype=f'uint{bits}') << (bits - 8)
    colours = dict(Red=ramp, Green=ramp[::-1], Blue=ramp // 2)
    elements: dict[str, Any] = dict(PhotometricInterpretation='PALETTE COLOR')
    for name, values in colours.items():
        elements[f'{name}PaletteColorLookupTableDescriptor'] = [256, 0, bits]
        elements[f'{name}PaletteColorLookupTableData'] = values.tobytes()
    blue = GREY // 2
    assert np.array_equal(raw_pixels(dicom(GREY, **elements)), np.dstack((GREY, 255 - GREY, blue)))


def test_of_several_frames_the_first_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    image_kinds.note.cache_clear()
    monkeypatch.setattr(image_kinds, 'print_log', lambda text, **kwargs: log.append(text))
    frames = np.stack((STORED, STORED + 1, STORED + 2))
    for _ in range(2):
        assert np.array_equal(raw_pixels(dicom(frames))[..., 0], STORED)
    assert log == ['a DICOM file has 3 frames, of which the first is read (logged once)']


# Compression and damage


def test_compressed_files() -> None:
    """As far as Pillow decodes them; of others the message names the transfer syntax and the package."""
    jpeg = encapsulate([encode(Image.fromarray(GREY), quality=98)])
    pixels = raw_pixels(dicom(GREY, JPEGBaseline8Bit, PixelData=jpeg))
    assert pixels.shape == (40, 50, 1) and np.abs(pixels[..., 0].astype(int) - GREY).mean() < 3
    wavelets = encapsulate([encode(Image.fromarray(STORED), 'JPEG2000')])
    assert np.array_equal(raw_pixels(dicom(STORED, JPEG2000Lossless, PixelData=wavelets))[..., 0], STORED)
    for syntax, name in ((JPEGLSLossless, 'JPEG-LS Lossless'), (UID('1.2.840.10008.1.2.4.100'), 'MPEG2 Main')):
        content = dicom(GREY, syntax, PixelData=encapsulate([b'\0\0']))
        with pytest.raises(ImageKindError, match=rf'transfer syntax {name}.*{syntax}.*pip install .pylibjpeg\[all\]'):
            decode(content)


@pytest.mark.parametrize('left', [200, 0.5, 0.99])
def test_a_truncated_file_is_rejected(left: float) -> None:
    content = dicom(STORED)
    with pytest.raises(Exception, match=r'(?i)expected|less|pixel|end'):
        decode(content[: int(left if left > 1 else left * len(content))], value_range='percentile')


def test_a_file_without_pixels_is_named() -> None:
    file = dicom(GREY, Modality='SR')
    start = file.index(b'\xe0\x7f\x10\x00')  # of PixelData
    with pytest.raises(ImageKindError, match=r'is a DICOM file without pixels \(modality SR\): remove it'):
        decode(file[:start])


# Use


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """18 slices of 12 bits in nested folders."""
    rng = np.random.default_rng(0)
    for index in range(18):
        path = tmp_path / 'scans' / f'patient {index % 3}' / f'{index}.{("dcm", "DCM", "dicom")[index % 3]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom((rng.normal(size=(80, 80)) * 200 + 1024).clip(0, 4095).astype(np.uint16), **CT))
    return tmp_path / 'scans'


@pytest.mark.integration
def test_a_folder_of_dicom_files_is_trained_on(scans: Path, tmp_path: Path) -> None:
    result = pretrain(scans, tmp_path / 'run', model='um-swin-test', image_size=64, epochs=1, workers=0)
    low, high = Config.fromfile(result.config).train_dataloader.dataset.pipeline[0].value_range
    assert -200 < low < 100 and 1900 < high < 2200, '1024 +- 400 and three deviations, in rescaled values'
    assert result.backbone.exists()
    out = tmp_path / 'features.npz'
    words = ['embed', '--data', str(scans), '--checkpoint', str(result.checkpoint), '--out', str(out)]
    main([*words, '--device', 'cpu'])
    assert np.load(out)['features'].shape == (18, 256)
    assert tile_images(scans, tmp_path / 'tiles', 50).tiles == 72
    tile = raw_pixels((tmp_path / 'tiles' / 'patient 0' / '0.tiles' / 'y000000_x000030.tif').read_bytes())
    assert np.array_equal(tile, raw_pixels((scans / 'patient 0' / '0.dcm').read_bytes())[:50, 30:])


@pytest.fixture
def without_pydicom(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    yield


@pytest.mark.usefixtures('without_pydicom')
def test_the_missing_package_is_named_at_once_wherever_images_are_read(scans: Path, tmp_path: Path) -> None:
    """Not as damage of each file."""
    path = scans / 'patient 0' / '0.dcm'
    dataset = PretrainImages(data_root=str(scans), pipeline=[LOAD], max_bad_share=0.9)
    calls = (
        lambda: decode(path.read_bytes()),
        lambda: look_at_images([path]),
        lambda: pixel_statistics([path], 3, None),
        lambda: dataset[0],
        lambda: load_batch([path], 32),
        lambda: tile_images(scans, tmp_path / 'tiles'),
        lambda: pretrain(scans, tmp_path / 'run', model='um-swin-test'),
    )
    for call in calls:
        with pytest.raises(ImportError, match=r"a DICOM file needs the package pydicom: pip install 'ummae\[dicom\]'"):
            call()
    assert not dataset.flags.count(1) and not (tmp_path / 'run').exists()
    try:
        dataset[0]
    except ImportError as error:
        text = str(describe_failure(dataset, 0, error))
    assert text.startswith('sample 0 of PretrainImages cannot be loaded: a DICOM file needs') and 'damage' not in text
    with pytest.raises(SystemExit, match=r'^error: a DICOM file needs the package pydicom'):
        main(['pretrain', '--data', str(scans), '--out', str(tmp_path / 'run')])


def test_a_missing_codec_reaches_the_user(tmp_path: Path) -> None:
    """By the error that stops the run, and by that of the look at the data."""
    for index in range(3):
        (tmp_path / f'{index}.dcm').write_bytes(dicom(GREY, JPEGLSLossless, PixelData=encapsulate([b'\0\0'])))
    dataset = PretrainImages(data_root=str(tmp_path), pipeline=[LOAD])
    with pytest.raises(DataError, match=r'The last one: .*JPEG-LS.*pip install .pylibjpeg'):
        dataset[0]
    with pytest.raises(ValueError, match=r'none of 3 images .*JPEG-LS.*pip install .pylibjpeg'):
        look_at_images(sorted(tmp_path.iterdir()))
