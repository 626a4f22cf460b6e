"""Masked pixel prediction as MMPretrain algorithms: draw a mask, encode, decode, predict (arXiv 2205.10063)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
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

SAMPLING = ('uniform', 'random')


class MaskedPixelModel(BaseSelfSupervisor):
    """What UM-MAE and SimMIM share: masks drawn on the device, loss and reconstructions.

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
        """Draw masks as training does: 75 % of the units are removed.

        Args:
            batch_size (int): Number of images, each masked independently.
            image_size (tuple[int, int]): Height and width in pixels.
            device (torch.device | str, optional): Where the mask is drawn and lives.
            generator (torch.Generator, optional): Random stream of that device. Default: the global one.
        """
        draw = draw_uniform_mask if self.sampling == 'uniform' else draw_random_mask
        return draw(batch_size, image_size, secondary_ratio=self.secondary_ratio, device=device, generator=generator)

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
        mask: UniformMask | UnitMask | None = None,
    ) -> tuple[Tensor, ...] | dict[str, Tensor] | list[DataSample]:
        """Entry point of MMEngine.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Not used for the loss; ``predict`` writes into copies.
            mode (str): ``tensor`` for features of the whole images, ``loss``, or ``predict`` for reconstructions.
            mask (UniformMask | UnitMask, optional): Use this mask instead of drawing one (``loss`` and ``predict``).
        """
        if mode == 'predict':
            return self.predict(inputs, data_samples, mask)
        if mode == 'loss':
            return self.loss(inputs, data_samples, mask)
        return super().forward(inputs, data_samples, mode)

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mask: UniformMask | UnitMask | None = None
    ) -> dict[str, Tensor]:
        """Reconstruction loss: (N, 3, H, W) -> ``dict(loss=scalar)``."""
        mask = self._mask(inputs, mask)
        return dict(loss=self.head.loss(self._decode(inputs, mask), inputs, mask))

    def predict(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mask: UniformMask | UnitMask | None = None,
    ) -> list[DataSample]:
        """Reconstruct images.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Copied, so that paths stay with the results.
            mask (UniformMask | UnitMask, optional): Use this mask instead of drawing one.
        Returns:
            list[DataSample]: One for each image, with ``image`` and ``reconstruction``, (3, H, W) float32 in
            pixel values 0..255 in the channel order of the inputs; ``unsampled`` and ``hidden``, (H / 16, W / 16)
            bool, True = not sampled, and True = no pixel seen by the encoder (also secondary-masked units).
        """
        mask = self._mask(inputs, mask)
        reconstruction = self.head.predict(self._decode(inputs, mask), inputs)
        fields = dict(
            image=self.denormalize(inputs),
            reconstruction=self.denormalize(reconstruction),
            unsampled=mask.unsampled().view(len(inputs), inputs.shape[2] // UNIT, -1),
            hidden=self._hidden(mask).view(len(inputs), inputs.shape[2] // UNIT, -1),
        )
        samples = [sample.clone() for sample in data_samples] if data_samples else [DataSample() for _ in inputs]
        for i, sample in enumerate(samples):
            for name, values in fields.items():
                sample.set_field(values[i], name)
        return samples

    def denormalize(self, images: Tensor) -> Tensor:
        """Undo the data preprocessor's normalisation: (N, 3, H, W) -> pixel values 0..255, clipped, float32."""
        images = images.float()
        if getattr(self.data_preprocessor, '_enable_normalize', False):
            images = images * self.data_preprocessor.std + self.data_preprocessor.mean
        return images.clamp(0, 255)

    def _mask(self, inputs: Tensor, mask: UniformMask | UnitMask | None) -> UniformMask | UnitMask:
        if mask is None:
            return self.draw_mask(len(inputs), tuple(inputs.shape[2:]), inputs.device)
        check_mask(mask, len(inputs), tuple(inputs.shape[2:]))
        return mask

    def _hidden(self, mask: UniformMask | UnitMask) -> Tensor:
        """(N, L) bool in raster order, True = no pixel of the unit reaches this model."""
        return mask.unsampled() if getattr(self.backbone, 'secondary_token', None) is None else mask.hidden()

    @abstractmethod
    def _decode(self, inputs: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        """What the head takes: (N, 3, H, W) -> tokens of all units."""


@MODELS.register_module()
class UMMAE(MaskedPixelModel):
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
class UMSimMIM(MaskedPixelModel):
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
