"""Write a sheet of what a training sees: images of its data set, each beside draws of the training pipeline.

Boxes and masks are drawn on the images; where a detector also learns from a map of classes, it has a row of its own,
with the map's numbers. A segmentor's map has its names. Configs of mmdet and mmseg, no checkpoint:

    python tools/visualize_data.py CONFIG --out samples.png --cfg-options train_dataloader.dataset.data_root=FOLDER/
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmcv
import numpy as np
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer, get_palette
from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from mm_ummae.visualization.sheets import LINE, check_sheet_path, image_sheet, save_sheet

CELL = 320  # pixels of an image's longer side on the sheet
ALPHA = 0.5  # of masks and maps
MAP_CLASSES = 256  # of a uint8 map


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a detector or segmentor')
    parser.add_argument('--out', default='samples.png', help='file to write (default: %(default)s)')
    parser.add_argument('--pictures', type=int, default=3, help='of the data set, picked at random (default: 3)')
    parser.add_argument('--samples', type=int, default=4, help='draws of the pipeline for each (default: 4)')
    parser.add_argument('--seed', type=int, default=0, help='of images and draws (default: 0)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values: key=value, or a.b.c=value',
    )
    args = parser.parse_args(arguments)
    for name in ('pictures', 'samples'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name} is {getattr(args, name)}, but it must be at least 1')
    return args


def build_dataset(cfg: Config) -> BaseDataset:
    """The training's data set.

    Raises:
        ValueError: If the config has no training data, or is neither of mmdet nor of mmseg.
    """
    if cfg.get('train_dataloader') is None:
        raise ValueError(f'{cfg.filename} has no train_dataloader, but its data set and pipeline are what is drawn')
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise ValueError(
            f"default_scope of {cfg.filename} is {cfg.get('default_scope')!r}, but it must be 'mmdet' or 'mmseg'"
        )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg.train_dataloader.dataset)


def build_visualizers(dataset: BaseDataset) -> dict[str, Visualizer]:
    """What draws boxes and masks, a detector's map and a segmentor's map."""
    visualizers = dict(
        instances=DetLocalVisualizer('instances', alpha=ALPHA, line_width=2),
        numbers=DetLocalVisualizer('numbers', alpha=ALPHA),
        names=SegLocalVisualizer('names', alpha=ALPHA),
    )
    for visualizer in visualizers.values():
        visualizer.dataset_meta = dataset.metainfo
    # A detection data set names and colours its things only
    numbers = [str(number) for number in range(MAP_CLASSES)]
    visualizers['numbers'].dataset_meta = dict(classes=numbers, palette=get_palette('random', MAP_CLASSES))
    return visualizers


def draw_samples(dataset: BaseDataset, index: int, count: int) -> list[dict]:
    """An image as the data set has it, and draws of the pipeline.

    Args:
        dataset (BaseDataset): With a pipeline that ends with packing.
        index (int): Of the image.
        count (int): Number of draws.
    Returns:
        list[dict]: ``1 + count`` with ``inputs`` and ``data_samples`` each, and ``moved``, a number of instances, where
        InstaBoost is in the pipeline.
    Raises:
        ValueError: If the pipeline refuses the image again and again.
    """
    transforms = dataset.pipeline.transforms
    plain = [transform for transform in transforms if type(transform).__name__.startswith(('Load', 'Pack'))]
    return [_run(dataset, index, steps) for steps in (plain, *[transforms] * count)]


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
    raise ValueError(f'the pipeline refused image {index} of the data set {dataset.max_refetch} times')


def draw_cells(visualizers: dict[str, Visualizer], sample: dict) -> list[np.ndarray]:
    """A sample's images: boxes and masks and, if it has one, the map.

    Args:
        visualizers (dict[str, Visualizer]): See :func:`build_visualizers`.
        sample (dict): See :func:`draw_samples`.
    Returns:
        list[np.ndarray]: One or two, (``CELL + LINE``, ``CELL``, 3) uint8 each, with a line of text below.
    """
    labels = sample['data_samples']
    image = np.ascontiguousarray(sample['inputs'].numpy()[::-1].transpose(1, 2, 0))  # (3, H, W) BGR -> (H, W, 3) RGB
    drawings = {}
    if isinstance(labels, SegDataSample):
        drawings['names'] = SegDataSample(gt_sem_seg=PixelData(data=_fit(labels.gt_sem_seg.data[0].numpy())[None]))
    else:
        drawings['instances'] = DetDataSample(gt_instances=_fit_instances(labels.gt_instances, image.shape))
        if 'gt_sem_seg' in labels:
            small = PixelData(sem_seg=_fit(labels.gt_sem_seg.sem_seg[0].numpy())[None])
            drawings['numbers'] = DetDataSample(gt_sem_seg=small)
    caption = f'{image.shape[1]} × {image.shape[0]} px'
    if 'moved' in sample:
        caption += f', {sample["moved"]} moved'
    cells = []
    for name, drawing in drawings.items():
        visualizers[name].add_datasample(name, mmcv.imrescale(image, (CELL, CELL)), drawing, draw_pred=False)
        cells.append(_add_caption(visualizers[name], caption))
    return cells


def _fit(labels: np.ndarray) -> np.ndarray:
    """A map, (H, W), in the size of its image on the sheet."""
    return mmcv.imrescale(labels.astype(np.uint8), (CELL, CELL), interpolation='nearest')


def _fit_instances(instances: InstanceData, shape: tuple[int, ...]) -> InstanceData:
    """Boxes and masks in the size of their image on the sheet."""
    height, width = shape[:2]
    new_width, new_height = mmcv.rescale_size((width, height), (CELL, CELL))
    boxes = get_box_tensor(instances.bboxes)
    scale = boxes.new_tensor([new_width / width, new_height / height] * 2)
    fitted = InstanceData(bboxes=boxes * scale, labels=instances.labels)
    if 'masks' in instances:
        fitted.masks = instances.masks.rescale((CELL, CELL))
    return fitted


def _add_caption(visualizer: Visualizer, caption: str) -> np.ndarray:
    """What the visualizer has drawn, on white of the common size."""
    picture = visualizer.get_image()
    height, width = picture.shape[:2]
    top, left = (CELL - height) // 2, (CELL - width) // 2
    cell = np.full((CELL + LINE, CELL, 3), 255, np.uint8)
    cell[top : top + height, left : left + width] = picture
    visualizer.set_image(cell)
    position = np.array([CELL / 2, top + height + 2])
    visualizer.draw_texts(caption, position, font_sizes=9, colors='k', horizontal_alignments='center')
    return visualizer.get_image()


def main(arguments: list[str] | None = None) -> Path:
    """Draw the samples and write the sheet."""
    args = parse_args(arguments)
    check_sheet_path(args.out)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    dataset = build_dataset(cfg)
    set_random_seed(args.seed)
    indices = sorted(np.random.choice(len(dataset), min(args.pictures, len(dataset)), replace=False).tolist())
    samples = [draw_samples(dataset, index, args.samples) for index in indices]
    visualizers = build_visualizers(dataset)
    rows = []
    for draws in samples:
        rows += zip(*(draw_cells(visualizers, sample) for sample in draws), strict=True)
    titles = ['data set', *(f'draw {number + 1}' for number in range(args.samples))]
    out = save_sheet(image_sheet(rows, titles, title=Path(args.config).stem), args.out)
    print(f'{args.samples} draws of each of {len(indices)} images in {out}')
    return out


if __name__ == '__main__':
    main()
