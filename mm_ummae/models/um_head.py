"""Pixel prediction and masked loss of UM-MAE (arXiv 2205.10063, section 3.3)."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mm_ummae.masking import (
    UNIT,
    UniformMask,
    images_to_units,
    raster_to_cells,
    take_unsampled,
    units_to_images,
)
from mm_ummae.registry import MODELS

from .layers import init_linear_as_mae


@MODELS.register_module()
class UMMAEHead(BaseModule):
    """Predict the pixels of each unit; the loss is over the 75 % that Uniform Sampling did not keep.

    Args:
        in_channels (int): Width of the decoder's tokens. Default 512.
        norm_pix (bool): Standardise each target unit by its own mean and unbiased variance. Default True.
        init_cfg (dict, optional): MMEngine's initialisation.
    """

    EPS = 1e-6  # under the root of a unit's variance

    def __init__(self, in_channels: int = 512, norm_pix: bool = True, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.norm_pix = norm_pix
        self.pred = nn.Linear(in_channels, UNIT * UNIT * 3)

    def loss(self, tokens: Tensor, images: Tensor, mask: UniformMask) -> Tensor:
        """Mean squared error over the units that were not sampled.

        Args:
            tokens (Tensor): (N, 2 gh, 2 gw, D) from the decoder, raster order.
            images (Tensor): (N, 3, H, W), normalised.
            mask (UniformMask): The mask the encoder saw.
        Returns:
            Tensor: Scalar.
        """
        # Sampled units do not count, so they are dropped before the widest linear layer of the decoder.
        tokens = take_unsampled(raster_to_cells(tokens), mask.offsets)  # (N, gh, gw, 3, D)
        target = take_unsampled(raster_to_cells(images_to_units(images)), mask.offsets)  # (N, gh, gw, 3, 768)
        if self.norm_pix:
            mean, std = self._statistics(target)
            target = (target - mean) / std
        # In float32 also under autocast: a mean over millions of squares
        return (self.pred(tokens).float() - target.float()).square().mean()

    def predict(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Predict all units, in the scale of the normalised image also with ``norm_pix``.

        With ``norm_pix`` the network predicts standardised units, so each is given the mean and standard deviation
        of the true unit, as is usual for showing reconstructions.

        Args:
            tokens (Tensor): (N, 2 gh, 2 gw, D) from the decoder, raster order.
            images (Tensor): (N, 3, H, W), normalised.
        Returns:
            Tensor: (N, 3, H, W) float32.
        """
        pixels = self.pred(tokens).float()
        if self.norm_pix:
            mean, std = self._statistics(images_to_units(images.float()))
            pixels = pixels * std + mean
        return units_to_images(pixels)

    def _statistics(self, units: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(units.float(), dim=-1, keepdim=True)
        return mean, (var + self.EPS).sqrt()

    def init_weights(self) -> None:
        """Xavier, as in MAE."""
        init_linear_as_mae(self)
        super().init_weights()
