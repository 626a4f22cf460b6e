"""Writes the demo data in the layouts of ImageNet, COCO and ADE20K.

Every image is drawn from a random stream of its own, named by seed, stream and position. So the same seed
gives the same bytes, and asking for more images leaves the earlier ones as they are.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_tools

from demo.images import DIGIT_CLASSES, PHOTOGRAPH_CLASSES, SPLITS
from demo.scenes import Scene, SceneObject, crop_photograph, draw_scene, grey_crop, label_map

# Raise it whenever the same parameters would give other files.
FORMAT_VERSION = 3
RECORD_NAME = 'demo_data.json'

JPEG_QUALITY = 92
PRETRAIN_SCALE = (0.5, 1.6)  # plain pre-training crops vary more in scale than the labelled ones
CROWD_STRIDE = 20  # every n-th COCO image has a crowd
MIN_POLYGON_IOU = 0.95
MAX_COUNT = 1_000_000

# COCO image ids are unique over both splits, and do not move when a split grows.
FIRST_IMAGE_ID = {'train': 1, 'val': 1 + MAX_COUNT}
MAX_ANNOTATIONS_PER_IMAGE = 10


class Stream(IntEnum):
    """Names of the random streams; the numbers decide what the files contain, so they never change."""

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
    num_coco_val: int = 100,
    num_ade_train: int = 400,
    num_ade_val: int = 100,
    overwrite: bool = False,
) -> Path:
    """Makes the three demo data sets, ``imagenet``, ``coco`` and ``ade``, under one folder.

    The folder appears when everything is written, so an interrupted run leaves nothing half-written. A folder
    that already holds the set with the same parameters is left as it is.

    Args:
        root: Folder to make.
        seed: Names the random streams, 0 or above; the same seed gives the same bytes.
        image_size: Side of all images in pixels, a multiple of 32 from 64 on.
        num_pretrain: Number of unlabelled images for pre-training.
        num_labelled_train: Number of labelled training images, a multiple of the ten classes.
        num_labelled_val: Number of labelled validation images, a multiple of the ten classes.
        num_coco_train: Number of COCO training images.
        num_coco_val: Number of COCO validation images.
        num_ade_train: Number of ADE20K training images.
        num_ade_val: Number of ADE20K validation images.
        overwrite: Whether to replace an earlier demo data set in ``root``. Other folders are never replaced.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: If a number is not a legal one.
        FileExistsError: If ``root`` holds anything else and may not be replaced.
    """
    imagenet = {
        'num_pretrain': num_pretrain,
        'num_labelled_train': num_labelled_train,
        'num_labelled_val': num_labelled_val,
    }
    coco = {'num_coco_train': num_coco_train, 'num_coco_val': num_coco_val}
    ade = {'num_ade_train': num_ade_train, 'num_ade_val': num_ade_val}
    common = {'seed': seed, 'image_size': image_size}
    _check_parameters(seed, image_size, imagenet | coco | ade)

    root = Path(root).resolve()
    record = {'format_version': FORMAT_VERSION, 'parameters': common | imagenet | coco | ade}
    if _is_made(root, record, overwrite):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    # A sibling lies on the same file system, where renaming is atomic.
    staging = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        new = staging / 'new'
        write_imagenet(new / 'imagenet', **common, **imagenet)
        write_coco(new / 'coco', **common, **coco)
        write_ade(new / 'ade', **common, **ade)
        _write_json(new / RECORD_NAME, record)
        # Another process may have made the folder meanwhile.
        if _is_made(root, record, overwrite):
            return root
        if root.exists():
            root.rename(staging / 'old')
        new.rename(root)
    finally:
        shutil.rmtree(staging)
    return root


def write_imagenet(
    root: Path,
    *,
    seed: int,
    image_size: int,
    num_pretrain: int,
    num_labelled_train: int,
    num_labelled_val: int,
) -> None:
    """Writes ``unlabelled/*.jpg`` and, with a folder per class, ``train`` and ``val``.

    Every other unlabelled image is a plain crop of a train region, the others are train scenes. The
    labelled ones are grey crops, whose class is the photograph they come from.

    Args:
        root: Folder to write to; made if need be.
        seed: Names the random streams.
        image_size: Side of the images in pixels.
        num_pretrain: Number of unlabelled images.
        num_labelled_train: Number of labelled training images.
        num_labelled_val: Number of labelled validation images.
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
    streams = (Stream.LABELLED_TRAIN, Stream.LABELLED_VAL)
    for split, count, stream in zip(SPLITS, counts, streams, strict=True):
        folders = [_make_folder(root / split / name) for name in PHOTOGRAPH_CLASSES]
        for index in range(count):
            number, photograph = divmod(index, len(folders))
            image, _ = grey_crop(_stream(seed, stream, index), photograph, split, image_size)
            _write_jpeg(folders[photograph] / f'{folders[photograph].name}_{number:06d}.jpg', image)


def write_coco(root: Path, *, seed: int, image_size: int, num_coco_train: int, num_coco_val: int) -> None:
    """Writes images, instance annotations and stuff-thing maps like those of COCO 2017.

    The categories are the ten digits, with the ids 1..10. The stuff-thing maps are 0..9 on digits, 10..19 on
    photographs, and are 255 on outlines and crowds.

    Args:
        root: Folder to write to; made if need be.
        seed: Names the random streams.
        image_size: Side of the images in pixels.
        num_coco_train: Number of training images.
        num_coco_val: Number of validation images.
    """
    counts = (num_coco_train, num_coco_val)
    streams = (Stream.COCO_TRAIN, Stream.COCO_VAL)
    annotation_folder = _make_folder(root / 'annotations')
    for split, count, stream in zip(SPLITS, counts, streams, strict=True):
        image_folder = _make_folder(root / f'{split}2017')
        map_folder = _make_folder(root / 'stuffthingmaps' / f'{split}2017')
        images, annotations = [], []
        for index in range(count):
            scene = coco_scene(_stream(seed, stream, index), split, index, image_size)
            image_id = FIRST_IMAGE_ID[split] + index
            name = f'{image_id:012d}'
            _write_jpeg(image_folder / f'{name}.jpg', scene.image)
            # Zero, the ignored label, wraps to 255.
            _write_png(map_folder / f'{name}.png', label_map(scene) - np.uint8(1))
            images.append(
                {
                    'id': image_id,
                    'file_name': f'{name}.jpg',
                    'height': image_size,
                    'width': image_size,
                    'license': 1,
                }
            )
            annotations += _coco_annotations(scene, image_id)
        content = {
            'info': {
                'description': f'mm_ummae demo data, {split}',
                'version': str(FORMAT_VERSION),
                'year': 2017,
            },
            'licenses': [{'id': 1, 'name': 'see scikit-image and scikit-learn', 'url': ''}],
            'images': images,
            'annotations': annotations,
            'categories': [
                {'id': 1 + label, 'name': name, 'supercategory': 'digit'} for label, name in enumerate(DIGIT_CLASSES)
            ],
        }
        _write_json(annotation_folder / f'instances_{split}2017.json', content)


def coco_scene(rng: np.random.Generator, split: str, index: int, image_size: int) -> Scene:
    """Draws the scene of one COCO image; every twentieth has a crowd.

    Args:
        rng: Source of randomness.
        split: 'train' or 'val'.
        index: Position of the image in its split.
        image_size: Side of the scene in pixels.

    Returns:
        The scene, image_size pixels high and wide.
    """
    return draw_scene(rng, split, image_size, with_crowd=index % CROWD_STRIDE == CROWD_STRIDE // 2)


def write_ade(root: Path, *, seed: int, image_size: int, num_ade_train: int, num_ade_val: int) -> None:
    """Writes images and label maps like those of ADE20K.

    The label maps are 0 (to be ignored) on outlines, 1..10 on digits and 11..20 on photographs: one more than
    the position in :data:`~demo.images.SEGMENTATION_CLASSES`.

    Args:
        root: Folder to write to; made if need be.
        seed: Names the random streams.
        image_size: Side of the images in pixels.
        num_ade_train: Number of training images.
        num_ade_val: Number of validation images.
    """
    counts = (num_ade_train, num_ade_val)
    streams = (Stream.ADE_TRAIN, Stream.ADE_VAL)
    folder_names = ('training', 'validation')
    for split, folder_name, count, stream in zip(SPLITS, folder_names, counts, streams, strict=True):
        image_folder = _make_folder(root / 'images' / folder_name)
        map_folder = _make_folder(root / 'annotations' / folder_name)
        for index in range(count):
            scene = draw_scene(_stream(seed, stream, index), split, image_size)
            name = f'ADE_{split}_{1 + index:08d}'
            _write_jpeg(image_folder / f'{name}.jpg', scene.image)
            _write_png(map_folder / f'{name}.png', label_map(scene))


def _check_parameters(seed: int, image_size: int, counts: dict[str, int]) -> None:
    for name, value in {'seed': seed, 'image_size': image_size, **counts}.items():
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


def _read_record(root: Path) -> dict | None:
    """What :func:`make_demo_data` noted about the set in a folder; None where it finished none."""
    try:
        return json.loads((root / RECORD_NAME).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def _is_made(root: Path, record: dict, overwrite: bool) -> bool:
    """Whether a folder needs no making; raises FileExistsError if it needs to but must be left alone."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = _read_record(root)
    if found == record:
        return not overwrite
    if found is None:
        raise FileExistsError(f'root must be a new or empty folder or a demo data set, but {root} is neither')
    if not overwrite:
        raise FileExistsError(
            f'root {root} holds a demo data set with other parameters; overwrite must be set to replace it'
        )
    return False


def _stream(seed: int, stream: Stream, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, int(stream), index])


def _coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    things = [*scene.objects, scene.crowd] if scene.crowd else list(scene.objects)
    first_id = image_id * MAX_ANNOTATIONS_PER_IMAGE
    return [
        _coco_annotation(thing, image_id, first_id + position, is_crowd=thing is scene.crowd)
        for position, thing in enumerate(things)
    ]


def _coco_annotation(thing: SceneObject, image_id: int, annotation_id: int, is_crowd: bool) -> dict:
    x, y, width, height = cv2.boundingRect(thing.mask.astype(np.uint8))
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': 1 + thing.label,
        'bbox': [x, y, width, height],
        'area': int(thing.mask.sum()),
        'iscrowd': int(is_crowd),
        'segmentation': _run_lengths(thing.mask) if is_crowd else _segmentation(thing.mask),
    }


def _segmentation(mask: np.ndarray) -> list[list[float]] | dict:
    """Polygons where they give the mask back well, else (it has a hole, say) a compressed run-length code."""
    polygons = _polygons(mask)
    if polygons:
        drawn = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects(polygons, *mask.shape))).astype(bool)
        if (drawn & mask).sum() >= MIN_POLYGON_IOU * (drawn | mask).sum():
            return polygons
    code = mask_tools.encode(np.asfortranarray(mask, np.uint8))
    return {'size': list(mask.shape), 'counts': code['counts'].decode('ascii')}


def _polygons(mask: np.ndarray, zoom: int = 4) -> list[list[float]]:
    """Outer outlines of a mask as flat lists x, y, x, y, ... in pixels, slightly smoothed."""
    # OpenCV's contours pass through pixel centres, COCO's along pixel edges; enlarging makes that negligible.
    enlarged = np.kron(mask, np.ones((zoom, zoom))).astype(np.uint8)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = (cv2.approxPolyDP(contour, 0.5 * zoom, True) for contour in contours)
    # A polygon takes three corners; pycocotools would read two, four numbers, as a box.
    return [((outline.ravel() + 0.5) / zoom).tolist() for outline in outlines if len(outline) >= 3]


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length code: down the columns, lengths of alternating runs from zeros on."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs: Sequence[int] = np.diff([0, *changes, mask.size]).tolist()
    return {'size': list(mask.shape), 'counts': runs}


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
