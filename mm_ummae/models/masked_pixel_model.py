"""What masked pixel prediction has in common: a mask drawn on the device, loss, and reconstructions."""

from __future__ import annotations

from abc import abstractmethod

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.masking import UniformMask, UnitMask
from mm_ummae.windows import WindowMask

Mask = UniformMask | UnitMask | WindowMask


class MaskedPixelModel(BaseSelfSupervisor):
    """An algorithm that hides a part of an image and predicts its pixels.

    A subclass tells which masks it takes and what it makes of them, the rest is here.
    """

    @abstractmethod
    def draw_mask(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Mask:
        """Draw masks as training does.

        Args:
            batch_size (int): Number of images.
            image_size (tuple[int, int]): Height and width in pixels.
            device (torch.device | str, optional): Where the mask is drawn and lives.
            generator (torch.Generator, optional): Random stream of that device. Default: the global one.
        """

    @abstractmethod
    def check_mask(self, mask: Mask, batch_size: int, image_size: tuple[int, int]) -> None:
        """Raise ValueError if a mask that a user passed in does not fit; reads values, and so waits for the device."""

    @abstractmethod
    def _decode(self, inputs: Tensor, mask: Mask) -> Tensor:
        """What the head takes: (N, 3, H, W) -> tokens."""

    @abstractmethod
    def _results(self, tokens: Tensor, inputs: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Fields of the samples of :meth:`predict` but ``image``, one row an image."""

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
        mask: Mask | None = None,
    ) -> tuple[Tensor, ...] | dict[str, Tensor] | list[DataSample]:
        """Entry point of MMEngine.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Not used for the loss; ``predict`` writes into copies.
            mode (str): ``tensor`` for features of the whole images, ``loss``, or ``predict`` for reconstructions.
            mask (Mask, optional): Use this mask instead of drawing one (``loss`` and ``predict``).
        """
        if mode == 'predict':
            return self.predict(inputs, data_samples, mask)
        if mode == 'loss':
            return self.loss(inputs, data_samples, mask)
        return super().forward(inputs, data_samples, mode)

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mask: Mask | None = None
    ) -> dict[str, Tensor]:
        """Reconstruction loss: (N, 3, H, W) -> ``dict(loss=scalar)``."""
        mask = self._mask(inputs, mask)
        return dict(loss=self.head.loss(self._decode(inputs, mask), inputs, mask))

    def predict(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mask: Mask | None = None
    ) -> list[DataSample]:
        """Reconstruct images.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Copied, so that paths stay with the results.
            mask (Mask, optional): Use this mask instead of drawing one.
        Returns:
            list[DataSample]: One for each image, with ``image`` and ``reconstruction``, (3, H, W) float32 in
            pixel values 0..255 in the channel order of the inputs; ``unsampled`` and ``hidden``, (h, w) bool on the
            grid of units or patches, True = not sampled, and True = no pixel seen by the encoder (also
            secondary-masked units). LoMaR adds what each window shows, see :class:`LoMaR`.
        """
        mask = self._mask(inputs, mask)
        fields = dict(image=self.denormalize(inputs), **self._results(self._decode(inputs, mask), inputs, mask))
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

    def _mask(self, inputs: Tensor, mask: Mask | None) -> Mask:
        if mask is None:
            return self.draw_mask(len(inputs), tuple(inputs.shape[2:]), inputs.device)
        self.check_mask(mask, len(inputs), tuple(inputs.shape[2:]))
        return mask
