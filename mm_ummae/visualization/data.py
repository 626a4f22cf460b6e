"""Sheets of training samples: images of a data set, each beside outputs of the training pipeline.

Needs MMDetection for configs of detectors and MMSegmentation for those of segmentors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import set_random_seed
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer

from .sheets import LINE, image_sheet

SIDE = 320  # of a panel in pixels: the longer side of its image
ALPHA = 0.5  # opacity of masks and maps
MAP_CLASSES = 256  # of a uint8 map

# From the ground truth of a sample and the shape of its image to the layers to draw, one per panel
Layers = list[tuple[Visualizer, BaseDataElement]]
LayersOf = Callable[[BaseDataElement, tuple[int, ...]], Layers]


def data_sheet(cfg: Config, images: int = 3, samples: int = 4, seed: int = 0, title: str = '') -> np.ndarray:
    """Draw images of the training set as stored, each beside outputs of the training pipeline.

    Boxes and masks are drawn on the images. Where a detector also learns from a semantic map, the map has a row of its
    own, with its numbers; a segmentor's map has the names of the classes.

    Args:
        cfg (Config): Config of a detector or segmentor.
        images (int): Number of images, picked at random. Default 3.
        samples (int): Number of outputs of the pipeline per image. Default 4.
        seed (int): Random seed of images and outputs. Default 0.
        title (str): Title above the sheet. Default ''.
    Returns:
        np.ndarray: (height, width, 3) uint8.
    Raises:
        ValueError: If a number is not positive, the config has no training data or is that of another host, or the
            pipeline rejects an image again and again.
    """
    for name, value in dict(images=images, samples=samples).items():
        if value < 1:
            raise ValueError(f'{name} is {value}, but it must be at least 1')
    dataset = build_training_set(cfg)
    layers_of = build_layers(cfg, dataset)
    set_random_seed(seed)
    indices = sorted(np.random.choice(len(dataset), min(images, len(dataset)), replace=False).tolist())
    rows = []
    for index in indices:
        panels = [draw_panels(layers_of, sample) for sample in draw_samples(dataset, index, samples)]
        rows += zip(*panels, strict=True)
    return image_sheet(rows, ['data set', *(f'sample {i + 1}' for i in range(samples))], title=title)


def build_training_set(cfg: Config) -> BaseDataset:
    """Build the data set of ``train_dataloader`` without wrappers such as ``RepeatDataset``.

    Raises:
        ValueError: If the config has no training data, or its host is neither MMDetection nor MMSegmentation.
    """
    if cfg.get('train_dataloader') is None:
        raise ValueError(f'{cfg.filename} has no train_dataloader, but its data set and pipeline are drawn')
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise ValueError(f"default_scope of {cfg.filename} is {scope!r}, but it must be 'mmdet' or 'mmseg'")
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def build_layers(cfg: Config, dataset: BaseDataset) -> LayersOf:
    """Build the visualizers of the config's host, in a function from the ground truth to the layers to draw."""
    build = dict(mmdet=_detection_layers, mmseg=_segmentation_layers)[cfg.default_scope]
    return build(dataset.metainfo)


def draw_samples(dataset: BaseDataset, index: int, count: int) -> list[dict]:
    """Load an image as stored, and run the training pipeline on it.

    Args:
        dataset (BaseDataset): Its pipeline ends with packing.
        index (int): Of the image.
        count (int): Number of runs.
    Returns:
        list[dict]: ``1 + count`` samples with ``inputs`` and ``data_samples``, and with ``moved``, the number of moved
        instances, if the pipeline has InstaBoost.
    Raises:
        ValueError: If the pipeline rejects the image ``dataset.max_refetch`` times.
    """
    transforms = dataset.pipeline.transforms
    plain = [transform for transform in transforms if type(transform).__name__.startswith(('Load', 'Pack'))]
    return [_run(dataset, index, steps) for steps in (plain, *[transforms] * count)]


def draw_panels(layers_of: LayersOf, sample: dict) -> list[np.ndarray]:
    """Draw a sample: boxes and masks and, if it has one, the semantic map.

    Args:
        layers_of (LayersOf): See :func:`build_layers`.
        sample (dict): See :func:`draw_samples`.
    Returns:
        list[np.ndarray]: One or two panels, (``SIDE + LINE``, ``SIDE``, 3) uint8 each, with a caption at the bottom.
    """
    image = np.ascontiguousarray(sample['inputs'].numpy()[::-1].transpose(1, 2, 0))  # (3, H, W) BGR -> (H, W, 3) RGB
    caption = f'{image.shape[1]} × {image.shape[0]} px'
    if 'moved' in sample:
        caption += f', {sample["moved"]} moved'
    panels = []
    for visualizer, layer in layers_of(sample['data_samples'], image.shape):
        visualizer.add_datasample('sample', mmcv.imrescale(image, (SIDE, SIDE)), layer, draw_pred=False)
        panels.append(_add_caption(visualizer, caption))
    return panels


def _detection_layers(metainfo: dict[str, Any]) -> LayersOf:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import get_box_tensor
    from mmdet.visualization import DetLocalVisualizer, get_palette

    instances = DetLocalVisualizer('instances', alpha=ALPHA, line_width=2)
    instances.dataset_meta = metainfo
    numbers = DetLocalVisualizer('numbers', alpha=ALPHA)  # a detection data set names its things only
    numbers.dataset_meta = dict(
        classes=[str(number) for number in range(MAP_CLASSES)], palette=get_palette('random', MAP_CLASSES)
    )

    def layers(ground_truth: DetDataSample, shape: tuple[int, ...]) -> Layers:
        boxes = get_box_tensor(ground_truth.gt_instances.bboxes)
        width, height = mmcv.rescale_size(shape[1::-1], (SIDE, SIDE))
        scale = boxes.new_tensor([width / shape[1], height / shape[0]] * 2)
        fitted = InstanceData(bboxes=boxes * scale, labels=ground_truth.gt_instances.labels)
        if 'masks' in ground_truth.gt_instances:
            fitted.masks = ground_truth.gt_instances.masks.rescale((SIDE, SIDE))
        found = [(instances, DetDataSample(gt_instances=fitted))]
        if 'gt_sem_seg' in ground_truth:
            fitted = PixelData(sem_seg=_fit(ground_truth.gt_sem_seg.sem_seg[0].numpy()))
            found.append((numbers, DetDataSample(gt_sem_seg=fitted)))
        return found

    return layers


def _segmentation_layers(metainfo: dict[str, Any]) -> LayersOf:
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    names = SegLocalVisualizer('names', alpha=ALPHA)
    names.dataset_meta = metainfo

    def layers(ground_truth: SegDataSample, shape: tuple[int, ...]) -> Layers:
        return [(names, SegDataSample(gt_sem_seg=PixelData(data=_fit(ground_truth.gt_sem_seg.data[0].numpy()))))]

    return layers


def _run(dataset: BaseDataset, index: int, transforms: list) -> dict:
    for _ in range(dataset.max_refetch):
        results, moved = dataset.get_data_info(index), {}
        for transform in transforms:
            if 'moved' in results:  # packing drops it
                moved = dict(moved=len(results['moved']))
            results = transform(results)
            if results is None:  # a crop without any object, for example
                break
        else:
            return {**results, **moved}
    raise ValueError(f'the pipeline rejected image {index} of the data set {dataset.max_refetch} times')


def _fit(labels: np.ndarray) -> np.ndarray:
    """A map at the size of its image in the panel: (H, W) -> (1, h, w)."""
    return mmcv.imrescale(labels.astype(np.uint8), (SIDE, SIDE), interpolation='nearest')[None]


def _add_caption(visualizer: Visualizer, caption: str) -> np.ndarray:
    """Centre the drawn image on a white panel with a caption below it."""
    image = visualizer.get_image()
    height, width = image.shape[:2]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    panel = np.full((SIDE + LINE, SIDE, 3), 255, np.uint8)
    panel[top : top + height, left : left + width] = image
    visualizer.set_image(panel)
    position = np.array([SIDE / 2, top + height + 2])
    visualizer.draw_texts(caption, position, font_sizes=9, colors='k', horizontal_alignments='center')
    return visualizer.get_image()
