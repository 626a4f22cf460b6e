"""Test-time augmentation of two-stage detectors that merges boxes and masks over several views of an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.models import (
    CascadeRoIHead,
    DetTTAModel,
    HybridTaskCascadeRoIHead,
    StandardRoIHead,
    TwoStageDetector,
)
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mm_ummae.registry import MODELS

# Dimensions of (n, classes, h, w) that are reversed in a flipped view
FLIPPED_DIMS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}
# Heads whose masks are sigmoids of their logits, averaged over the stages; other heads process them further
MASK_PREDICTIONS = (
    StandardRoIHead.predict_mask,
    CascadeRoIHead.predict_mask,
    HybridTaskCascadeRoIHead.predict_mask,
)


class View(NamedTuple):
    """Predictions and features of one view, kept until the boxes of all views are merged.

    Attributes:
        sample (DetDataSample): Its ``pred_instances`` hold boxes in pixels of the original image, still flipped if the
            view is.
        features (tuple[Tensor, ...]): (1, channels, h, w) of each level.
        semantic (dict[str, Tensor]): ``semantic_feat`` (1, channels, h, w) if the head has a semantic branch.
    """

    sample: DetDataSample
    features: tuple[Tensor, ...]
    semantic: dict[str, Tensor]


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """Mask R-CNN, Cascade (Mask) R-CNN or HTC, tested on several scales and flips of each image.

    MMDetection's ``DetTTAModel`` refuses masks. This class merges the boxes of all views as it does, by a second
    non-maximum suppression. Every view then predicts a soft mask for every merged box, and the final mask is where the
    mean over the views reaches the detector's ``mask_thr_binary``. The mean is taken before the masks are pasted into
    the image: pasting is linear, so the result is the same, and no full-size mask is stored except the final ones.
    MMDetection 2 merged masks in the same way (``aug_test``), which MMDetection 3 dropped.

    Images of a batch are processed one by one, so that padding has no influence.

    Args:
        module (dict | nn.Module): A two-stage detector of MMDetection, with or without masks.
        tta_cfg (dict): ``nms``, MMCV's configuration of the second suppression (also ``type='soft_nms'``), and
            ``max_per_img``, the number of boxes to keep.
        **kwargs: As in MMEngine's ``BaseTTAModel``.
    Raises:
        TypeError: If the detector does not have two stages, or predicts masks in another way.
        ValueError: If a value is missing in ``tta_cfg``.
    """

    def __init__(self, module: dict | nn.Module, tta_cfg: dict, **kwargs) -> None:
        missing = sorted({'nms', 'max_per_img'} - set(tta_cfg or ()))
        if missing:
            raise ValueError(f'tta_cfg is {tta_cfg}, but it must have {" and ".join(missing)}')
        super().__init__(tta_cfg=ConfigDict(tta_cfg), module=module, **kwargs)
        name = type(self.module).__name__
        if not (isinstance(self.module, TwoStageDetector) and self.module.with_rpn and self.module.with_roi_head):
            raise TypeError(
                f'module is {name}, but it must be a detector with an RPN and a RoI head; '
                'mmdet.DetTTAModel merges the boxes of other detectors'
            )
        head = type(self.module.roi_head)
        if self.module.with_mask and head.predict_mask not in MASK_PREDICTIONS:
            raise TypeError(
                f'the roi_head of module is {head.__name__}, but its masks must be predicted as '
                'StandardRoIHead, CascadeRoIHead or HybridTaskCascadeRoIHead do'
            )

    def test_step(self, data: dict[str, list]) -> list[DetDataSample]:
        """Predict the instances of each image from its views.

        Args:
            data (dict[str, list]): A batch of a pipeline that ends with ``TestTimeAug``: ``inputs``, uint8 images
                (3, h, w), and ``data_samples``, both as lists over the views of lists over the images. The metainfo of
                each view has ``ori_shape``, ``scale_factor``, ``flip`` and ``flip_direction``.
        Returns:
            list[DetDataSample]: The samples of the first view. ``pred_instances`` has bboxes (n, 4) in pixels of the
            original image, scores (n,), labels (n,) and, if the detector has masks, boolean masks (n, height, width).
        Raises:
            ValueError: If the metainfo of a view does not say whether it is flipped.
        """
        views_by_image = zip(zip(*data['inputs'], strict=True), zip(*data['data_samples'], strict=True), strict=True)
        return [self._predict(inputs, samples) for inputs, samples in views_by_image]

    def _predict(self, inputs: tuple[Tensor, ...], samples: tuple[DetDataSample, ...]) -> DetDataSample:
        """Merge the views of one image."""
        views = [self._detect(image, sample) for image, sample in zip(inputs, samples, strict=True)]
        (result,) = self.merge_preds([[view.sample for view in views]])
        if self.module.with_mask:
            result.pred_instances = self._add_masks(result.pred_instances, result.ori_shape, views)
        return result

    def _detect(self, image: Tensor, sample: DetDataSample) -> View:
        """Boxes and features of one view."""
        if not {'flip', 'flip_direction'} <= sample.metainfo.keys():
            raise ValueError(
                f'the metainfo of a view has {", ".join(sorted(sample.metainfo))}, but it must have flip and '
                'flip_direction: add RandomFlip to the pipeline (prob=0 for an unflipped view) and both keys to the '
                'meta_keys of PackDetInputs'
            )
        module, head = self.module, self.module.roi_head
        data = module.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
        features, samples = module.extract_feat(data['inputs']), data['data_samples']
        proposals = module.rpn_head.predict(features, samples, rescale=False)
        semantic = {}
        if getattr(head, 'with_semantic', False):
            semantic['semantic_feat'] = head.semantic_head(features)[1]
        (samples[0].pred_instances,) = head.predict_bbox(
            features, [samples[0].metainfo], proposals, head.test_cfg, rescale=True, **semantic
        )
        return View(samples[0], features, semantic)

    def _add_masks(self, found: InstanceData, shape: tuple[int, int], views: list[View]) -> InstanceData:
        """The merged boxes with their masks in an image of ``shape`` (height, width)."""
        head = self.module.roi_head
        masks = found.bboxes.new_zeros(0)
        if len(found):
            masks = sum(self._soft_masks(view, found.bboxes) for view in views) / len(views)
        last = head.mask_head[-1] if isinstance(head.mask_head, nn.ModuleList) else head.mask_head
        # The boxes are already in pixels of the original image, into which the masks are pasted
        meta = dict(ori_shape=shape, scale_factor=(1.0, 1.0))
        (found,) = last.predict_by_feat([masks], [found], [meta], head.test_cfg, rescale=True, activate_map=True)
        return found

    def _soft_masks(self, view: View, boxes: Tensor) -> Tensor:
        """Probabilities (n, classes, h, w) inside boxes (n, 4) of the original image, with the flip undone."""
        head, meta = self.module.roi_head, view.sample.metainfo
        if meta['flip']:
            boxes = bbox_flip(boxes, meta['ori_shape'], meta['flip_direction'])
        rois = bbox2roi([boxes * boxes.new_tensor(meta['scale_factor']).repeat(2)])  # in pixels of the view
        if isinstance(head, HybridTaskCascadeRoIHead):
            stages = head._mask_forward(-1, view.features, rois, training=False, **view.semantic)['mask_preds']
        elif isinstance(head, CascadeRoIHead):
            stages = [head._mask_forward(i, view.features, rois)['mask_preds'] for i in range(head.num_stages)]
        else:
            stages = [head._mask_forward(view.features, rois)['mask_preds']]
        masks = torch.stack([logits.sigmoid() for logits in stages]).mean(0)
        return masks.flip(FLIPPED_DIMS[meta['flip_direction']]) if meta['flip'] else masks
