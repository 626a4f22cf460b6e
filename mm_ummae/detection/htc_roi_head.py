"""RoI head of Hybrid Task Cascade that averages the masks of all stages at test time."""

from __future__ import annotations

from mmdet.models.roi_heads import HybridTaskCascadeRoIHead
from torch import Tensor
from torch.nn import functional as F

from mm_ummae.registry import MODELS


@MODELS.register_module()
class HTCRoIHead(HybridTaskCascadeRoIHead):
    """MMDetection's HTC head, with the masks of all stages averaged at test time, as in Cascade Mask R-CNN.

    HTC was published with MMDetection 2, whose head averages them too. The head of MMDetection 3 collects the masks
    after its loop over the stages instead of inside it, so that only the last stage predicts, and without
    ``mask_info_flow`` it fails. Training, parameters and their names are those of the parent: configs and checkpoints
    of either class work with the other.

    Hybrid Task Cascade for Instance Segmentation, arXiv 1901.07518.
    """

    def _mask_forward(
        self,
        stage: int,
        x: tuple[Tensor, ...],
        rois: Tensor,
        semantic_feat: Tensor | None = None,
        training: bool = True,
    ) -> dict[str, Tensor | list[Tensor]]:
        """Mask logits: of one stage in training, of all stages at test time.

        Args:
            stage (int): Stage to train; not used at test time.
            x (tuple[Tensor, ...]): Feature maps.
            rois (Tensor): (n, 5): index of the image in the batch, then x1, y1, x2, y2 in pixels of the input.
            semantic_feat (Tensor, optional): Feature map of the semantic head.
            training (bool): True in training, False at test time.
        Returns:
            dict: ``mask_preds``, in training (n, classes, h, w), at test time a list of one such tensor per stage.
        """
        if training:
            return super()._mask_forward(stage, x, rois, semantic_feat, training=True)
        extractor = self.mask_roi_extractor[-1]
        features = extractor(x[: extractor.num_inputs], rois)  # (n, C, h, w)
        if self.with_semantic and 'mask' in self.semantic_fusion:
            semantic = self.semantic_roi_extractor([semantic_feat], rois)
            features = features + F.adaptive_avg_pool2d(semantic, features.shape[-2:])
        masks, previous = [], None
        for head in self.mask_head:
            logits, own = head(features, previous)
            masks.append(logits)
            if self.mask_info_flow:  # each stage receives the mask features of the one before
                previous = own
        return dict(mask_preds=masks)
