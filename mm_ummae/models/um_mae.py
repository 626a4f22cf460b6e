"""UM-MAE and its SimMIM baseline as MMPretrain algorithms: draw a mask, encode, decode, predict (arXiv 2205.10063)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_ummae.masking import (
    UNIT,
    UniformMask,
    UnitMask,
    check_mask,
    check_secondary_ratio,
    draw_random_mask,
    draw_uniform_mask,
)
from mm_ummae.registry import MODELS

from .masked_pixel_model import MaskedPixelModel

SAMPLING = ('uniform', 'random')


class UnitMaskedModel(MaskedPixelModel):
    """What UM-MAE and SimMIM share: 75 % of an image's units are removed, uniformly or at random.

    Args:
        backbone (dict): The encoder.
        sampling (str): ``uniform`` keeps one unit of each 2x2 cell, ``random`` any quarter of the units.
        secondary_ratio (float): Share of the kept units whose content is hidden again, in [0, 1).
        kwargs: ``neck``, ``head``, ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If ``sampling`` is unknown or the ratio is illegal.
    """

    def __init__(self, backbone: dict, *, sampling: str, secondary_ratio: float, **kwargs) -> None:
        super().__init__(backbone=backbone, **kwargs)
        if sampling not in SAMPLING:
            raise ValueError(f'sampling is {sampling!r}, but it must be one of {", ".join(SAMPLING)}')
        self.sampling, self.secondary_ratio = sampling, check_secondary_ratio(secondary_ratio)

    def draw_mask(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> UniformMask | UnitMask:
        """Draw masks as training does, each image its own; see :meth:`MaskedPixelModel.draw_mask`."""
        draw = draw_uniform_mask if self.sampling == 'uniform' else draw_random_mask
        return draw(batch_size, image_size, secondary_ratio=self.secondary_ratio, device=device, generator=generator)

    def check_mask(self, mask: UniformMask | UnitMask, batch_size: int, image_size: tuple[int, int]) -> None:
        """Raise ValueError if a mask that a user passed in does not fit."""
        check_mask(mask, batch_size, image_size)

    def _results(self, tokens: Tensor, inputs: Tensor, mask: UniformMask | UnitMask) -> dict[str, Tensor]:
        units = (len(inputs), inputs.shape[2] // UNIT, inputs.shape[3] // UNIT)
        return dict(
            reconstruction=self.denormalize(self.head.predict(tokens, inputs)),
            unsampled=mask.unsampled().view(units),
            hidden=self._hidden(mask).view(units),
        )

    def _hidden(self, mask: UniformMask | UnitMask) -> Tensor:
        """(N, L) bool in raster order, True = no pixel of the unit reaches this model."""
        return mask.unsampled() if getattr(self.backbone, 'secondary_token', None) is None else mask.hidden()


@MODELS.register_module()
class UMMAE(UnitMaskedModel):
    """Uniform Masking MAE for pyramid transformers; with a ViT also plain MAE.

    Args:
        backbone (dict): A backbone that takes ``(images, mask)``: :class:`UMSwin`, :class:`UMPVT`, :class:`UMViT`.
        neck (dict): The decoder, :class:`UMMAEDecoder`, or :class:`UMViTDecoder` for ViT.
        head (dict): The pixel head, :class:`UMMAEHead`.
        sampling (str): ``uniform`` keeps one unit of each 2x2 cell; ``random`` any quarter of the units, for ViT
            only. Default ``uniform``.
        secondary_ratio (float): Share of the sampled units that Secondary Masking hides, in [0, 1). Default 0.25.
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If the ratio is illegal, or positive with a backbone that has no secondary token, or the backbone
            does not take masks of that sampling.
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

    def _decode(self, inputs: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        return self.neck(self.backbone(inputs, mask)[-1], mask)


@MODELS.register_module()
class UMSimMIM(UnitMaskedModel):
    """SimMIM (arXiv 2111.09886), the baseline of UM-MAE: all tokens go in, those of masked units replaced by one token.

    Args:
        backbone (dict): A pyramid with ``mask_token=True``: :class:`UMSwin` or :class:`UMPVT`.
        head (dict): :class:`UMSimMIMHead`.
        sampling (str): Which 75 % of the units are masked: any (``random``, default) or three of each 2x2 cell
            (``uniform``).
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If ``sampling`` is unknown, or the backbone has no mask token.
    """

    def __init__(self, backbone: dict, head: dict, sampling: str = 'random', **kwargs) -> None:
        super().__init__(backbone, head=head, sampling=sampling, secondary_ratio=0.0, **kwargs)
        if getattr(self.backbone, 'mask_token', None) is None:
            raise ValueError(
                f'the backbone is {type(self.backbone).__name__} without a token to replace masked units with: set '
                'backbone.mask_token=True, which mm_ummae.UMSwin and mm_ummae.UMPVT have'
            )

    def _decode(self, inputs: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        units = (len(inputs), inputs.shape[2] // UNIT, inputs.shape[3] // UNIT)
        return self.backbone(inputs, replaced=mask.unsampled().view(units))[-1]

    def _hidden(self, mask: UniformMask | UnitMask) -> Tensor:
        # Whatever else a mask hides, only unsampled units are replaced.
        return mask.unsampled()
