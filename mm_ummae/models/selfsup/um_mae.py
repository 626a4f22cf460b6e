"""UM-MAE: draw a mask, encode the sampled units, decode, predict the others (arXiv 2205.10063)."""

from __future__ import annotations

from torch import Tensor

from mm_ummae.masking import UniformMask, UnitMask
from mm_ummae.registry import MODELS

from .masked_pixel_model import UnitMaskedModel


@MODELS.register_module()
class UMMAE(UnitMaskedModel):
    """Uniform Masking MAE for pyramid transformers; with a ViT also plain MAE.

    Args:
        backbone (dict): A backbone that takes ``(images, mask)``: :class:`UMSwin`, :class:`UMPVT`, :class:`UMViT`, or
            :class:`UMBackbone` with a network of a host.
        neck (dict): The decoder, :class:`UMMAEDecoder`, or :class:`UMViTDecoder` for ViT.
        head (dict): The pixel head, :class:`UMMAEHead`.
        sampling (str): ``uniform`` keeps one unit of each 2x2 cell; ``random`` any quarter of the units, for ViT
            only. Default ``uniform``.
        secondary_ratio (float): Share of the sampled units that Secondary Masking hides, in [0, 1). Default 0.25.
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If the ratio is illegal, or positive with a backbone that has no secondary token, the backbone
            does not take masks of that sampling, or the widths of the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        sampling: str = 'uniform',
        secondary_ratio: float = 0.25,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck=neck, head=head, sampling=sampling, secondary_ratio=secondary_ratio, **kwargs)
        legal = getattr(self.backbone, 'SAMPLING', ())
        if sampling not in legal:
            raise ValueError(
                f'sampling is {sampling!r}, but {type(self.backbone).__name__} takes {", ".join(legal) or "none"}: '
                'a pyramid closes the gaps between sampled units, which needs one unit of each 2x2 cell '
                '(random masks on a pyramid: mm_ummae.UMSimMIM; random sampling: mm_ummae.UMViT)'
            )
        if secondary_ratio and self.backbone.secondary_token is None:
            raise ValueError(
                f'secondary_ratio is {secondary_ratio}, but the backbone has no token to hide units with: '
                'set backbone.secondary_token=True, or secondary_ratio=0'
            )
        self.check_widths()

    def _decode(self, inputs: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        return self.neck(self.backbone(inputs, mask)[-1], mask)
