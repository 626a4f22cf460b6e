"""Base of the algorithms that mask images and predict pixels: masks, loss, reconstructions."""

from __future__ import annotations

from abc import abstractmethod

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.masking import (
    UNIT,
    Mask,
    UniformMask,
    UnitMask,
    check_mask,
    check_secondary_ratio,
    draw_random_mask,
    draw_uniform_mask,
)
from mm_ummae.models.layers import TokensToUnits

SAMPLING = ('uniform', 'random')
# Where reconstructions with `norm_pix` have the mean and standard deviation of a unit from
STATISTICS = ('original', 'visible')


class MaskedPixelModel(BaseSelfSupervisor):
    """Hides a part of an image and predicts its pixels.

    A subclass draws and checks its kind of masks, and encodes and decodes; loss and reconstruction are here.
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
            generator (torch.Generator, optional): Random generator of that device. Default: the global one.
        """

    @abstractmethod
    def check_mask(self, mask: Mask, batch_size: int, image_size: tuple[int, int]) -> None:
        """Raise ValueError if a mask that a user passed in does not fit; reads values, and so waits for the device."""

    @abstractmethod
    def _decode(self, inputs: Tensor, mask: Mask) -> Tensor:
        """The input of the head: (N, 3, H, W) -> tokens."""

    @abstractmethod
    def _results(self, tokens: Tensor, inputs: Tensor, mask: Mask, from_visible: bool) -> dict[str, Tensor]:
        """Fields of the samples of :meth:`predict` except ``image``, one row per image."""

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
        mask: Mask | None = None,
        statistics: str = 'original',
    ) -> tuple[Tensor, ...] | dict[str, Tensor] | list[DataSample]:
        """Entry point of MMEngine.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Not used for the loss; ``predict`` writes into copies.
            mode (str): ``tensor`` for features of the whole images, ``loss``, or ``predict`` for reconstructions.
            mask (Mask, optional): Use this mask instead of drawing one (``loss`` and ``predict``).
            statistics (str): See :meth:`predict`.
        """
        if mode == 'predict':
            return self.predict(inputs, data_samples, mask, statistics)
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
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mask: Mask | None = None,
        statistics: str = 'original',
    ) -> list[DataSample]:
        """Reconstruct images.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised by the data preprocessor.
            data_samples (list[DataSample], optional): Copied, so that paths stay with the results.
            mask (Mask, optional): Use this mask instead of drawing one.
            statistics (str): A network with ``norm_pix`` predicts units without their mean (brightness) and standard
                deviation (contrast). ``original`` takes those of each hidden unit from the image, as is usual, although
                the network knows neither; ``visible`` gives all units the average of those that the encoder saw.
                Default ``original``.
        Returns:
            list[DataSample]: One for each image, with ``image`` and ``reconstruction``, (3, H, W) float32 in
            pixel values 0..255 in the channel order of the inputs; ``unsampled`` and ``hidden``, (h, w) bool on the
            grid of units or patches, True = not sampled, and True = no pixel seen by the encoder (also
            secondary-masked units). LoMaR adds what each window shows, see :class:`LoMaR`. The metainfo
            ``statistics`` is that of above, None without ``norm_pix``.
        Raises:
            ValueError: If ``statistics`` is unknown.
        """
        if statistics not in STATISTICS:
            raise ValueError(f'statistics is {statistics!r}, but it must be one of {", ".join(STATISTICS)}')
        mask = self._mask(inputs, mask)
        results = self._results(self._decode(inputs, mask), inputs, mask, statistics == 'visible')
        fields = dict(image=self.denormalize(inputs), **results)
        samples = [sample.clone() for sample in data_samples] if data_samples else [DataSample() for _ in inputs]
        for i, sample in enumerate(samples):
            for name, values in fields.items():
                sample.set_field(values[i], name)
            sample.set_metainfo(dict(statistics=statistics if self.head.norm_pix else None))
        return samples

    def reconstruct(
        self, data: dict, seed: int = 0, mask: Mask | None = None, statistics: str = 'original'
    ) -> list[DataSample]:
        """Mask and reconstruct images as a data loader gives them.

        Neither gradients nor the global random streams are touched; the caller sets eval mode.

        Args:
            data (dict): ``inputs`` and ``data_samples``, for the data preprocessor.
            seed (int): Seed of the masks; the same seed gives the same masks on every device. Default 0.
            mask (Mask, optional): Use this mask instead of drawing one.
            statistics (str): See :meth:`predict`.
        Returns:
            list[DataSample]: See :meth:`predict`.
        """
        with torch.no_grad():
            data = self.data_preprocessor(dict(data), training=False)
            inputs = data['inputs']
            if mask is None:
                # Drawn on the CPU, so that a seed gives the same masks on every device
                generator = torch.Generator().manual_seed(seed)
                mask = self.draw_mask(len(inputs), tuple(inputs.shape[2:]), generator=generator)
            mask = mask.to(inputs.device)
            return self(inputs, data['data_samples'], mode='predict', mask=mask, statistics=statistics)

    def check_widths(self) -> None:
        """Check that each part takes as many channels, and the stride, that the one before it has.

        The head also predicts as many channels as the backbone takes, and the data preprocessor normalises them.

        Raises:
            ValueError: If one does not; it is named.
        """
        backbone = self.backbone
        # Channels of the last map of a pyramid, or of the tokens of a ViT
        width = backbone.num_features[-1] if hasattr(backbone, 'num_features') else backbone.embed_dims
        for name, layer in (('neck', 'expand'), ('head', 'pred')):
            part = getattr(self, name, None)
            if not hasattr(part, layer):
                continue
            first = getattr(part, layer)
            taken, stride = getattr(first, 'in_channels', first.in_features), getattr(backbone, 'stride', None)
            if isinstance(first, TokensToUnits) and stride not in (first.stride, None):
                raise ValueError(
                    f'{name}.stride is {first.stride}, but the last map of the backbone has stride {stride}: set '
                    f'model.{name}.stride={stride}'
                )
            if width is not None and taken != width:
                raise ValueError(
                    f'{name}.in_channels is {taken}, but the tokens it gets have {width} channels: set model.{name}.'
                    f'in_channels={width}'
                )
            width = getattr(part, 'embed_dims', None)
        channels = getattr(backbone, 'in_channels', 3)
        predicted = getattr(getattr(self, 'head', None), 'image_channels', channels)
        if predicted != channels:
            raise ValueError(
                f'head.image_channels is {predicted}, but the backbone takes images of {channels} channels: set '
                f'model.head.image_channels={channels}'
            )
        mean = getattr(self.data_preprocessor, 'mean', None)
        if mean is not None and len(mean) not in (1, channels):
            raise ValueError(
                f'data_preprocessor.mean has {len(mean)} values, but the backbone takes images of {channels} channels: '
                f'give {channels}, and as many of std, with type mm_ummae.AnyChannelsPreprocessor'
            )

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


class UnitMaskedModel(MaskedPixelModel):
    """Base of UM-MAE and SimMIM: 75 % of the units of an image are removed, uniformly or at random.

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

    def _results(
        self, tokens: Tensor, inputs: Tensor, mask: UniformMask | UnitMask, from_visible: bool
    ) -> dict[str, Tensor]:
        units = (len(inputs), inputs.shape[2] // UNIT, inputs.shape[3] // UNIT)
        hidden = self._hidden(mask).view(units)
        prediction = self.head.predict(tokens, inputs, ~hidden if from_visible else None)
        return dict(reconstruction=self.denormalize(prediction), unsampled=mask.unsampled().view(units), hidden=hidden)

    def _hidden(self, mask: UniformMask | UnitMask) -> Tensor:
        """(N, L) bool in raster order, True = no pixel of the unit reaches this model."""
        return mask.unsampled() if getattr(self.backbone, 'secondary_token', None) is None else mask.hidden()
