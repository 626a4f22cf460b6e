"""SimMIM (arXiv 2111.09886) with the backbones of UM-MAE, its baseline (arXiv 2205.10063)."""

from __future__ import annotations

from torch import Tensor

from mm_ummae.masking import UNIT, UniformMask, UnitMask
from mm_ummae.registry import MODELS

from .masked_pixel_model import UnitMaskedModel


@MODELS.register_module()
class UMSimMIM(UnitMaskedModel):
    """SimMIM, the baseline of UM-MAE: the encoder sees all tokens, those of masked units replaced by a learned one.

    Args:
        backbone (dict): A pyramid with ``mask_token=True``: :class:`UMSwin`, :class:`UMPVT` or :class:`UMBackbone`.
        head (dict): :class:`UMSimMIMHead`.
        sampling (str): Which 75 % of the units are masked: any (``random``, default) or three of each 2x2 cell
            (``uniform``).
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If ``sampling`` is unknown, the backbone has no mask token, or the widths of backbone and head
            differ.
    """

    def __init__(self, backbone: dict, head: dict, sampling: str = 'random', **kwargs) -> None:
        super().__init__(backbone, head=head, sampling=sampling, secondary_ratio=0.0, **kwargs)
        if getattr(self.backbone, 'mask_token', None) is None:
            raise ValueError(
                f'the backbone is {type(self.backbone).__name__} without a token to replace masked units with: set '
                'backbone.mask_token=True, which mm_ummae.UMSwin, UMPVT and UMBackbone have'
            )
        self.check_widths()

    def _decode(self, inputs: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        units = (len(inputs), inputs.shape[2] // UNIT, inputs.shape[3] // UNIT)
        return self.backbone(inputs, replaced=mask.unsampled().view(units))[-1]

    def _hidden(self, mask: UniformMask | UnitMask) -> Tensor:
        # Whatever else a mask hides, only unsampled units are replaced.
        return mask.unsampled()
