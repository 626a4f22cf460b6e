"""UM-MAE as an mmpretrain algorithm: draw a mask, encode, decode, predict pixels (arXiv 2205.10063)."""

from __future__ import annotations

from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.masking import UniformMask, check_mask, check_secondary_ratio, draw_uniform_mask
from mm_ummae.registry import MODELS


@MODELS.register_module()
class UMMAE(BaseSelfSupervisor):
    """Uniform Masking MAE for pyramid transformers.

    Args:
        backbone (dict): A backbone that takes ``(images, mask)``, such as :class:`UMSwin`.
        neck (dict): The decoder, :class:`UMMAEDecoder`.
        head (dict): The pixel head, :class:`UMMAEHead`.
        secondary_ratio (float): Share of the sampled units that Secondary Masking hides, in [0, 1). Default 0.25.
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of mmpretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If the ratio is illegal, or positive with a backbone that has no secondary token.
    """

    def __init__(self, backbone: dict, neck: dict, head: dict, secondary_ratio: float = 0.25, **kwargs) -> None:
        super().__init__(backbone=backbone, neck=neck, head=head, **kwargs)
        self.secondary_ratio = check_secondary_ratio(secondary_ratio)
        if secondary_ratio and getattr(self.backbone, 'secondary_token', None) is None:
            raise ValueError(
                f'secondary_ratio is {secondary_ratio}, but the backbone has no token to hide units with: '
                'set backbone.secondary_token=True, or secondary_ratio=0'
            )

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
        mask: UniformMask | None = None,
    ) -> tuple[Tensor, ...] | dict[str, Tensor] | list[DataSample]:
        """Entry point of MMEngine.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Not used for the loss; ``predict`` writes into copies.
            mode (str): ``tensor`` for features of the whole images, ``loss``, or ``predict`` for reconstructions.
            mask (UniformMask, optional): Use this mask instead of drawing one (``loss`` and ``predict``).
        """
        if mode == 'predict':
            return self.predict(inputs, data_samples, mask)
        if mode == 'loss':
            return self.loss(inputs, data_samples, mask)
        return super().forward(inputs, data_samples, mode)

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mask: UniformMask | None = None
    ) -> dict[str, Tensor]:
        """Reconstruction loss: (N, 3, H, W) -> ``dict(loss=scalar)``."""
        mask = self._mask(inputs, mask)
        return dict(loss=self.head.loss(self._decode(inputs, mask), inputs, mask))

    def predict(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mask: UniformMask | None = None,
    ) -> list[DataSample]:
        """Reconstruct images.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Copied, so that paths stay with the results.
            mask (UniformMask, optional): Use this mask instead of drawing one.
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
            unsampled=mask.unsampled().view(len(inputs), inputs.shape[2] // 16, -1),
            hidden=mask.hidden().view(len(inputs), inputs.shape[2] // 16, -1),
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

    def _mask(self, inputs: Tensor, mask: UniformMask | None) -> UniformMask:
        if mask is None:
            return draw_uniform_mask(len(inputs), inputs.shape[2:], self.secondary_ratio, inputs.device)
        check_mask(mask, len(inputs), inputs.shape[2:])
        return mask

    def _decode(self, inputs: Tensor, mask: UniformMask) -> Tensor:
        return self.neck(self.backbone(inputs, mask)[-1], mask)
