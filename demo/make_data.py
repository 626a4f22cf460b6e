"""Demo data in the layouts of ImageNet, COCO and ADE20K: ``python -m demo.make_data``.

Each image has a random stream of its own, named by seed, stream and index. The same seed therefore gives the same
bytes, and larger counts leave the first images unchanged.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import tempfile
import time
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_tools

from .images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SPLITS
from .scenes import Scene, SceneObject, crop_photograph, draw_mosaic, draw_scene, grey_crop, label_map

FORMAT_VERSION = 4  # to be raised whenever the same parameters give other files
RECORD_NAME = 'demo_data.json'

JPEG_QUALITY = 92
PRETRAIN_SCALE = (0.5, 1.6)  # plain pre-training crops vary more in scale than the labelled ones
CROWD_STRIDE = 20  # every n-th COCO image has a crowd
MIN_POLYGON_IOU = 0.95
MAX_COUNT = 1_000_000

# COCO image ids are unique over both splits and stay the same when a split grows
FIRST_IMAGE_ID = {'train': 1, 'val': 1 + MAX_COUNT}
MAX_ANNOTATIONS_PER_IMAGE = 10


class Stream(IntEnum):
    """Random streams. The numbers determine the content of the files: they never change."""

    PRETRAIN = 0
    LABELLED_TRAIN = 1
    LABELLED_VAL = 2
    COCO_TRAIN = 3
    COCO_VAL = 4
    ADE_TRAIN = 5
    ADE_VAL = 6


def make_demo_data(
    root: str | Path,
    *,
    seed: int = 0,
    image_size: int = 128,
    num_pretrain: int = 2000,
    num_labelled_train: int = 500,
    num_labelled_val: int = 500,
    num_coco_train: int = 400,
    num_coco_val: int = 200,
    num_ade_train: int = 400,
    num_ade_val: int = 200,
    overwrite: bool = False,
) -> Path:
    """Make the data sets ``imagenet``, ``coco`` and ``ade`` in one folder.

    The folder appears when everything is written: an interrupted run leaves nothing incomplete. A folder that holds
    the data set with the same parameters is left as it is.

    Args:
        root (str | Path): Folder to make.
        seed (int): Of the random streams, 0 or above. Default 0.
        image_size (int): Side of all images in pixels, a multiple of 32 from 64 on. Default 128.
        num_pretrain (int): Unlabelled images for pre-training. Default 2000.
        num_labelled_train (int): Labelled training images, a multiple of the ten classes. Default 500.
        num_labelled_val (int): Labelled validation images, a multiple of the ten classes. Default 500.
        num_coco_train (int): COCO training images. Default 400.
        num_coco_val (int): COCO validation images. Default 200.
        num_ade_train (int): ADE20K training images. Default 400.
        num_ade_val (int): ADE20K validation images. Default 200.
        overwrite (bool): Replace a demo data set with other parameters; other folders are never replaced.
    Returns:
        Path: The folder, absolute.
    Raises:
        ValueError: If a number is invalid.
        FileExistsError: If ``root`` holds anything else and must not be replaced.
    """
    imagenet = dict(num_pretrain=num_pretrain, num_labelled_train=num_labelled_train, num_labelled_val=num_labelled_val)
    coco = dict(num_coco_train=num_coco_train, num_coco_val=num_coco_val)
    ade = dict(num_ade_train=num_ade_train, num_ade_val=num_ade_val)
    common = dict(seed=seed, image_size=image_size)
    _check_parameters(seed, image_size, imagenet | coco | ade)

    root = Path(root).resolve()
    record = dict(format_version=FORMAT_VERSION, parameters=common | imagenet | coco | ade)
    if _is_complete(root, record, overwrite):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    # A sibling is on the same file system, where renaming is atomic
    staging = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        new = staging / 'new'
        write_imagenet(new / 'imagenet', **common, **imagenet)
        write_coco(new / 'coco', **common, **coco)
        write_ade(new / 'ade', **common, **ade)
        _write_json(new / RECORD_NAME, record)
        # Another process may have made the folder in the meantime
        if _is_complete(root, record, overwrite):
            return root
        if root.exists():
            root.rename(staging / 'old')
        new.rename(root)
    finally:
        shutil.rmtree(staging)
    return root


def write_imagenet(
    root: Path, *, seed: int, image_size: int, num_pretrain: int, num_labelled_train: int, num_labelled_val: int
) -> None:
    """Write ``unlabelled/*.jpg``, and ``train`` and ``val`` with a folder for each class.

    Unlabelled images are plain crops and scenes in turn, all of the train split. Labelled images are grey crops, and
    their class is the photograph.
    """
    folder = _make_folder(root / 'unlabelled')
    for index in range(num_pretrain):
        rng = _stream(seed, Stream.PRETRAIN, index)
        if index % 2:
            image = draw_scene(rng, 'train', image_size).image
        else:
            photograph = int(rng.integers(len(PHOTOGRAPH_CLASSES)))
            image, _ = crop_photograph(rng, photograph, 'train', image_size, PRETRAIN_SCALE)
        _write_jpeg(folder / f'{index:08d}.jpg', image)

    counts = (num_labelled_train, num_labelled_val)
    for split, count, stream in zip(SPLITS, counts, (Stream.LABELLED_TRAIN, Stream.LABELLED_VAL), strict=True):
        folders = [_make_folder(root / split / name) for name in PHOTOGRAPH_CLASSES]
        for index in range(count):
            number, photograph = divmod(index, len(folders))
            image, _ = grey_crop(_stream(seed, stream, index), photograph, split, image_size)
            _write_jpeg(folders[photograph] / f'{folders[photograph].name}_{number:06d}.jpg', image)


def write_coco(root: Path, *, seed: int, image_size: int, num_coco_train: int, num_coco_val: int) -> None:
    """Write images, instance annotations and stuff-thing maps in the layout of COCO 2017.

    The categories are the ten digits, with the ids 1..10. Stuff-thing maps have 0..9 on digits, 10..19 on photographs,
    and 255 on outlines and crowds.
    """
    counts = (num_coco_train, num_coco_val)
    annotation_folder = _make_folder(root / 'annotations')
    for split, count, stream in zip(SPLITS, counts, (Stream.COCO_TRAIN, Stream.COCO_VAL), strict=True):
        image_folder = _make_folder(root / f'{split}2017')
        map_folder = _make_folder(root / 'stuffthingmaps' / f'{split}2017')
        images, annotations = [], []
        for index in range(count):
            scene = coco_scene(_stream(seed, stream, index), split, index, image_size)
            image_id = FIRST_IMAGE_ID[split] + index
            name = f'{image_id:012d}'
            _write_jpeg(image_folder / f'{name}.jpg', scene.image)
            _write_png(map_folder / f'{name}.png', label_map(scene))
            images.append(dict(id=image_id, file_name=f'{name}.jpg', height=image_size, width=image_size, license=1))
            annotations += _coco_annotations(scene, image_id)
        content = dict(
            info=dict(description=f'mm_ummae demo data, {split}', version=str(FORMAT_VERSION), year=2017),
            licenses=[dict(id=1, name='see scikit-image and scikit-learn', url='')],
            images=images,
            annotations=annotations,
            categories=[dict(id=1 + i, name=name, supercategory='digit') for i, name in enumerate(DIGIT_CLASSES)],
        )
        _write_json(annotation_folder / f'instances_{split}2017.json', content)


def coco_scene(rng: np.random.Generator, split: str, index: int, image_size: int) -> Scene:
    """Scene of the COCO image at an index of its split; every twentieth has a crowd."""
    return draw_scene(rng, split, image_size, with_crowd=index % CROWD_STRIDE == CROWD_STRIDE // 2)


def write_ade(root: Path, *, seed: int, image_size: int, num_ade_train: int, num_ade_val: int) -> None:
    """Write mosaics and label maps in the layout of ADE20K.

    Label maps have 1..10: 1 + the index in :data:`~demo.images.PHOTOGRAPH_CLASSES`.
    """
    counts, folders = (num_ade_train, num_ade_val), ('training', 'validation')
    for split, folder, count, stream in zip(SPLITS, folders, counts, (Stream.ADE_TRAIN, Stream.ADE_VAL), strict=True):
        image_folder = _make_folder(root / 'images' / folder)
        map_folder = _make_folder(root / 'annotations' / folder)
        for index in range(count):
            image, photographs = draw_mosaic(_stream(seed, stream, index), split, image_size)
            name = f'ADE_{split}_{1 + index:08d}'
            _write_jpeg(image_folder / f'{name}.jpg', image)
            _write_png(map_folder / f'{name}.png', photographs + np.uint8(1))


def _check_parameters(seed: int, image_size: int, counts: dict[str, int]) -> None:
    for name, value in dict(seed=seed, image_size=image_size, **counts).items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f'{name} must be an integer, but is {value!r}')
    if seed < 0:
        raise ValueError(f'seed must be 0 or above, but is {seed}')
    if image_size < 64 or image_size % 32:
        raise ValueError(f'image_size must be a multiple of 32 from 64 on, but is {image_size}')
    for name, count in counts.items():
        if not 1 <= count <= MAX_COUNT:
            raise ValueError(f'{name} must lie between 1 and {MAX_COUNT}, but is {count}')
        if name.startswith('num_labelled') and count % len(PHOTOGRAPH_CLASSES):
            raise ValueError(f'{name} must be a multiple of the {len(PHOTOGRAPH_CLASSES)} classes, but is {count}')


def _is_complete(root: Path, record: dict, overwrite: bool) -> bool:
    """Whether the folder already holds what is wanted; FileExistsError if it holds something to be left alone."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / RECORD_NAME).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        raise FileExistsError(f'root must be a new or empty folder or a demo data set, but {root} is neither') from None
    if found != record and not overwrite:
        raise FileExistsError(
            f'root {root} holds a demo data set with other parameters; overwrite must be set to replace it'
        )
    return not overwrite


def _stream(seed: int, stream: Stream, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, int(stream), index])


def _coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    first_id = image_id * MAX_ANNOTATIONS_PER_IMAGE
    things = [*scene.objects, scene.crowd] if scene.crowd else scene.objects
    return [_coco_annotation(thing, image_id, first_id + i, thing is scene.crowd) for i, thing in enumerate(things)]


def _coco_annotation(thing: SceneObject, image_id: int, annotation_id: int, is_crowd: bool) -> dict:
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=1 + thing.label,
        bbox=list(cv2.boundingRect(thing.mask.astype(np.uint8))),
        area=int(thing.mask.sum()),
        iscrowd=int(is_crowd),
        segmentation=_run_lengths(thing.mask) if is_crowd else _segmentation(thing.mask),
    )


def _segmentation(mask: np.ndarray) -> list[list[float]] | dict:
    """Polygons where they reproduce the mask well, else (with a hole, for instance) compressed run lengths."""
    polygons = _polygons(mask)
    if polygons:
        drawn = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects(polygons, *mask.shape))).astype(bool)
        if (drawn & mask).sum() >= MIN_POLYGON_IOU * (drawn | mask).sum():
            return polygons
    code = mask_tools.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=list(mask.shape), counts=code['counts'].decode('ascii'))


def _polygons(mask: np.ndarray, zoom: int = 4) -> list[list[float]]:
    """Outer outlines of a mask as flat lists x, y, x, y, ... in pixels, slightly smoothed."""
    # OpenCV's contours pass through pixel centres, COCO's along pixel edges; enlarging makes that negligible
    enlarged = np.kron(mask, np.ones((zoom, zoom))).astype(np.uint8)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = (cv2.approxPolyDP(contour, 0.5 * zoom, True) for contour in contours)
    # A polygon has three corners; pycocotools would read two, four numbers, as a box
    return [((outline.ravel() + 0.5) / zoom).tolist() for outline in outlines if len(outline) >= 3]


def _run_lengths(mask: np.ndarray) -> dict:
    """Uncompressed run lengths, as COCO has them for crowds; pycocotools writes compressed ones only."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat, prepend=False))  # the first run is one of zeros, possibly empty
    return dict(size=list(mask.shape), counts=np.diff(changes, prepend=0, append=flat.size).tolist())


def _make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    path.write_bytes(cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes())


def _write_png(path: Path, labels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode('.png', labels)[1].tobytes())


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding='utf-8')


def main(arguments: list[str] | None = None) -> None:
    """Make the data and print the folders; every number that :func:`make_demo_data` takes is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(':')[0])
    parser.add_argument('--out', type=Path, default=Path('data/demo'), help='folder to make (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace a demo data set with other parameters')
    for name, parameter in inspect.signature(make_demo_data).parameters.items():
        if name not in ('root', 'overwrite'):
            option = f'--{name.replace("_", "-")}'
            parser.add_argument(option, type=int, default=parameter.default, help='default: %(default)s')
    options = vars(parser.parse_args(arguments))
    start = time.perf_counter()
    root = make_demo_data(options.pop('out'), **options)
    print(f'demo data in {root} ({time.perf_counter() - start:.1f} s)')
    for folder in sorted(path for path in root.rglob('*') if path.is_dir()):
        files = sum(path.is_file() for path in folder.iterdir())
        if files:
            print(f'  {folder.relative_to(root)}: {files} files')


if __name__ == '__main__':
    main()
