"""InstaBoost that a long training survives, and semantic maps that follow what it moves.

InstaBoost (Fang et al., arXiv 1908.07801) cuts an image's instances out, fills the holes from their surroundings and
pastes the instances back a little moved, turned and scaled.
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
    """MMDetection's InstaBoost for any COCO annotation; belongs before ``LoadAnnotations``.

    Crowds stay where they are, and so does what has no mask of at least 2x2 pixels: empty and degenerate polygons,
    boxes that round to nothing. Other instances keep their place in the list and their other keys; their masks come
    back as run-lengths, pixel by pixel what was pasted, and their boxes tight around them. ``LoadAnnotations`` must
    keep ``poly2mask=True``, because without it run-lengths are ignored.

    ``results['moved']`` tells :class:`MoveStuff` what was pasted, in that order: (segmentation before, segmentation
    after or None if it left the image) each, none where InstaBoost did not fire.

    Args:
        args: Those of mmdet's ``InstaBoost``, with its defaults.
        kwargs: Those of mmdet's ``InstaBoost``. ``action_prob`` of 'horizontal' and 'vertical' must be 0, as it is by
            default: instaboostfast flips the image of an instance and not its run-lengths.

    Raises:
        ImportError: If the package instaboostfast is missing.
        ValueError: If ``aug_ratio`` is no probability or an instance could be flipped.
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
        """Paste the instances anew, with probability ``aug_ratio``."""
        # Imported above it would set matplotlib's backend for good; the base class's __init__ puts it back
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
        """What can be pasted, in instaboostfast's form; ``index`` is the place among the instances."""
        anns = []
        for index, instance in enumerate(instances):
            code = _encode(instance.get('mask', []), shape)
            box = mask_tools.toBbox(code).tolist()
            if not instance['ignore_flag'] and min(box[2:]) >= MIN_SIDE:
                # The annotation's own box may cut the mask by a pixel, or reach out of the image, which fails
                anns.append(dict(category_id=instance['bbox_label'], segmentation=_runs(code), bbox=box, index=index))
        return anns


@TRANSFORMS.register_module()
class MoveStuff(BaseTransform):
    """Move instances in the semantic map as :class:`InstaBoost` moved them in the image.

    An instance's value is the most frequent one under its old mask, ignored pixels not counted; its new mask is filled
    with it, unless all are ignored. What old masks covered and no new one does is ignored from then on: the colours
    there are made up. Groups of touching instances are painted in the order they were pasted. Within a group, which is
    cut out as one piece, the instance of which the old map shows the smallest share comes first: it was below the
    others.

    Belongs right after ``LoadAnnotations(with_seg=True)``.

    Required Keys:

    - img
    - gt_seg_map
    - moved

    Modified Keys:

    - gt_seg_map
    """

    def transform(self, results: dict) -> dict:
        """Paint the map.

        Args:
            results (dict): Has ``img`` (H, W, 3), ``gt_seg_map`` (H, W) and ``moved``.
        Returns:
            dict: The same; ``gt_seg_map`` is a new array if anything moved.
        Raises:
            ValueError: If a transform that must come before is missing, or the map has another size than the image.
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
        new_map, coats = old_map.copy(), []
        for group, code, (_, after) in zip(groups, codes, results['moved'], strict=True):
            mask = mask_tools.decode(code).astype(bool)
            counts = np.bincount(old_map[mask], minlength=ignored + 1)
            counts[ignored] = 0
            value = counts.argmax()
            new_map[mask] = ignored
            if counts[value] and after is not None:
                coats.append((group, counts[value] / mask.sum(), value, after))
        for _, _, value, after in sorted(coats, key=lambda coat: coat[:2]):
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
    """Compressed run-lengths -> COCO's lists of counts, the only run-lengths that instaboostfast takes."""
    flat = mask_tools.decode(code).ravel(order='F')
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0)))
    return dict(size=list(code['size']), counts=np.diff(changes, prepend=0, append=flat.size).tolist())


def _groups(boxes: list[np.ndarray]) -> list[int]:
    """Numbers of the groups of instances with touching boxes that instaboostfast pasted one after the other."""
    touch = mask_tools.iou(np.stack(boxes), np.stack(boxes), [0] * len(boxes)) > 0
    groups = [0]
    for i in range(1, len(boxes)):
        mates = [j for j in range(i) if groups[j] == groups[-1]]
        groups.append(groups[-1] + (not touch[i, mates].any()))
    return groups
