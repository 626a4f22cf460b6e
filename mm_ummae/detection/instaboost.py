"""InstaBoost for every kind of COCO annotation, and semantic maps that follow the instances it moves.

InstaBoost (Fang et al., arXiv 1908.07801) cuts the instances out of an image, fills the holes from their surroundings
and pastes the instances back slightly shifted, rotated and scaled.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import InstaBoost as _InstaBoost
from pycocotools import mask as mask_tools

from mm_ummae.registry import TRANSFORMS

MIN_SIDE = 2  # pixels of an instance's tight box; a single row or column may vanish when it is scaled


@TRANSFORMS.register_module()
class InstaBoost(_InstaBoost):
    """MMDetection's InstaBoost, made to work with every COCO annotation; belongs before ``LoadAnnotations``.

    Crowds are not moved, nor are instances without a mask of at least 2x2 pixels: empty and degenerate polygons, boxes
    that round to nothing. The other instances keep their place in the list and their other keys. Their new masks are
    run-lengths that equal the pasted pixels, with tight boxes around them. ``LoadAnnotations`` must keep
    ``poly2mask=True``, because it ignores run-lengths otherwise.

    ``results['moved']`` lists the pasted instances for :class:`MoveStuff`, in the order of pasting, as pairs
    (segmentation before, segmentation after or None if the instance left the image). It is empty where InstaBoost was
    not applied.

    Args:
        args: As in MMDetection's ``InstaBoost``, with its defaults.
        kwargs: As in MMDetection's ``InstaBoost``. ``action_prob`` of 'horizontal' and 'vertical' must be 0, the
            default: instaboostfast flips the pixels of an instance but not its run-lengths.

    Raises:
        ImportError: If the package instaboostfast is missing.
        ValueError: If ``aug_ratio`` is not a probability, or instances could be flipped.
    """

    def __init__(self, *args, **kwargs) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ImportError as error:
            raise ImportError(
                f'InstaBoost needs the package instaboostfast ({error.__context__}); install it with\n'
                'pip install --no-build-isolation instaboostfast==0.1.2'
            ) from error
        if not 0 <= self.aug_ratio <= 1:
            raise ValueError(f'aug_ratio is {self.aug_ratio}, but it must be in [0, 1]')
        chances = dict(zip(self.cfg.action_candidate.tolist(), self.cfg.action_prob.tolist(), strict=True))
        if any(chances.get(action) for action in ('horizontal', 'vertical')):
            raise ValueError(
                f"action_prob is {chances}, but it must be 0 for 'horizontal' and 'vertical': instaboostfast does not "
                'flip run-length masks (RandomFlip flips whole images)'
            )

    def transform(self, results: dict) -> dict:
        """Move the instances, with probability ``aug_ratio``.

        Args:
            results (dict): Has ``img`` (H, W, 3) and, unless the image has no annotations, ``instances``.
        Returns:
            dict: The same, with ``moved`` and, where InstaBoost was applied, new ``img`` and ``instances``.
        """
        # The package sets matplotlib's backend when it is first imported; the parent's __init__ restores it
        from instaboostfast import get_new_data

        results['moved'] = []
        instances, image = results.get('instances'), results['img']
        if not instances or np.random.random() >= self.aug_ratio:
            return results
        anns = self._load_anns(instances, image.shape[:2])
        pasted, new_image = get_new_data(anns, image.astype(np.uint8), self.cfg)
        results['img'] = new_image.astype(image.dtype)
        instances = list(instances)
        for ann in pasted:
            instance = instances[ann['index']]
            x, y, width, height = ann['bbox']
            inside = width > 0 and height > 0
            results['moved'].append((instance['mask'], ann['segmentation'] if inside else None))
            moved = {**instance, 'bbox': [x, y, x + width, y + height], 'mask': ann['segmentation']}
            instances[ann['index']] = moved if inside else None
        results['instances'] = [instance for instance in instances if instance is not None]
        return results

    def _load_anns(self, instances: list[dict], shape: tuple[int, int]) -> list[dict]:
        """The instances that can be pasted, in instaboostfast's form; ``index`` is the place in ``instances``."""
        anns = []
        for index, instance in enumerate(instances):
            code = _encode(instance.get('mask', []), shape)
            box = mask_tools.toBbox(code).tolist()  # x, y, width, height
            if not instance['ignore_flag'] and min(box[2:]) >= MIN_SIDE:
                # The annotated box may cut the mask by a pixel, or reach out of the image, where instaboostfast fails
                anns.append(dict(category_id=instance['bbox_label'], segmentation=_runs(code), bbox=box, index=index))
        return anns


@TRANSFORMS.register_module()
class MoveStuff(BaseTransform):
    """Move instances in the semantic map as :class:`InstaBoost` moved them in the image.

    The class of an instance is the most frequent value under its old mask, ignored pixels not counted; its new mask is
    filled with that value, unless all pixels are ignored. Pixels that an old mask covers and no new one does become
    ignored: their colours are inpainted. Groups of touching instances are painted in the order of pasting. A group is
    cut out as one piece, so inside it the instance with the smallest visible share in the old map is painted first: it
    lay below the others.

    Belongs right after ``LoadAnnotations(with_seg=True)``.

    Required Keys:

    - img
    - gt_seg_map
    - moved

    Modified Keys:

    - gt_seg_map
    """

    def transform(self, results: dict) -> dict:
        """Repaint the semantic map.

        Args:
            results (dict): Has ``img`` (H, W, 3), ``gt_seg_map`` (H, W) and ``moved``.
        Returns:
            dict: The same; ``gt_seg_map`` is a new array if anything moved.
        Raises:
            ValueError: If a transform that must come before is missing, or map and image differ in size.
        """
        for key, source in (('moved', 'mm_ummae.InstaBoost'), ('gt_seg_map', 'LoadAnnotations(with_seg=True)')):
            if key not in results:
                raise ValueError(
                    f'there is no {key}, but mm_ummae.MoveStuff must come right after LoadAnnotations(with_seg=True), '
                    f'with mm_ummae.InstaBoost before that: {source} is missing or comes later'
                )
        old_map, shape = results['gt_seg_map'], results['img'].shape[:2]
        if old_map.shape != shape:
            raise ValueError(
                f'the map {results["seg_map_path"]} has the shape {old_map.shape}, but it must be {shape} as that of '
                f'its image {results["img_path"]}'
            )
        if not results['moved']:
            return results
        ignored = results['ignore_index']
        codes = [_encode(before, shape) for before, _ in results['moved']]
        groups = _groups([mask_tools.toBbox(code) for code in codes])
        new_map, layers = old_map.copy(), []
        for group, code, (_, after) in zip(groups, codes, results['moved'], strict=True):
            mask = mask_tools.decode(code).astype(bool)
            counts = np.bincount(old_map[mask], minlength=ignored + 1)
            counts[ignored] = 0
            value = counts.argmax()
            new_map[mask] = ignored
            if counts[value] and after is not None:
                visible_share = counts[value] / mask.sum()
                layers.append((group, visible_share, value, after))
        for _, _, value, after in sorted(layers, key=lambda layer: layer[:2]):
            new_map[mask_tools.decode(_encode(after, shape)).astype(bool)] = value
        results['gt_seg_map'] = new_map
        return results


def _encode(segmentation: list | dict, shape: tuple[int, int]) -> dict:
    """Polygons or run-lengths -> compressed run-lengths; polygons that ``LoadAnnotations`` rejects count as empty."""
    if isinstance(segmentation, dict):
        compressed = not isinstance(segmentation['counts'], list)
        return segmentation if compressed else mask_tools.frPyObjects(segmentation, *shape)
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not polygons:
        return mask_tools.encode(np.zeros(shape, np.uint8, order='F'))
    return mask_tools.merge(mask_tools.frPyObjects(polygons, *shape))


def _runs(code: dict) -> dict:
    """Compressed run-lengths -> lists of counts, which instaboostfast needs and pycocotools cannot write."""
    flat = mask_tools.decode(code).ravel(order='F')
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0)))
    return dict(size=list(code['size']), counts=np.diff(changes, prepend=0, append=flat.size).tolist())


def _groups(boxes: list[np.ndarray]) -> list[int]:
    """Group number of each instance: instaboostfast pastes touching instances as one group, one after the other."""
    touch = mask_tools.iou(np.stack(boxes), np.stack(boxes), [0] * len(boxes)) > 0
    groups = [0]
    for i in range(1, len(boxes)):
        mates = [j for j in range(i) if groups[j] == groups[-1]]
        groups.append(groups[-1] + (not touch[i, mates].any()))
    return groups
