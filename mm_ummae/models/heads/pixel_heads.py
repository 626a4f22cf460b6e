"""Heads that predict pixels, with the masked losses of UM-MAE, SimMIM and LoMaR (arXiv 2205.10063, 2206.00790)."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mm_ummae.masking import UNIT, UniformMask, UnitMask, WindowMask, images_to_units, units_to_images
from mm_ummae.models.layers import TokensToUnits, init_linear_as_mae
from mm_ummae.registry import MODELS


@MODELS.register_module()
class UMMAEHead(BaseModule):
    """Predict the pixels of each unit; mean squared error over the units that were not sampled.

    Args:
        in_channels (int): Width of the decoder's tokens. Default 512.
        norm_pix (bool): Standardise each target unit by its own mean and unbiased variance. Default True.
        image_channels (int): Channels of the images. Default 3.
        init_cfg (dict, optional): MMEngine's initialisation.
    """

    EPS = 1e-6  # under the root of a unit's variance

    def __init__(
        self,
        in_channels: int = 512,
        norm_pix: bool = True,
        image_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.norm_pix, self.patch_size, self.image_channels = norm_pix, UNIT, image_channels
        self.pred = nn.Linear(in_channels, UNIT * UNIT * image_channels)

    def loss(self, tokens: Tensor, images: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        """Mean squared error over the units that were not sampled.

        Args:
            tokens (Tensor): (N, h, w, D) from the decoder, raster order.
            images (Tensor): (N, 3, H, W), normalised.
            mask (UniformMask | UnitMask): The mask the encoder saw.
        Returns:
            Tensor: Scalar.
        """
        # In float32 also under autocast: a mean over millions of squares
        return (self._target_pixels(tokens, mask).float() - self.target(images, mask)).square().mean()

    def _target_pixels(self, tokens: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        """Predictions for the units in the loss; the others are dropped before this widest linear layer."""
        return self.pred(mask.select_targets(tokens))

    def target(self, images: Tensor, mask: UniformMask | UnitMask | WindowMask) -> Tensor:
        """Pixels of the units that were not sampled: (N, 3, H, W) -> (N, ..., 768) float32."""
        units = mask.select_targets(images_to_units(images, self.patch_size)).float()
        if self.norm_pix:
            mean, std = self._statistics(units)
            units = (units - mean) / std
        return units

    def predict(self, tokens: Tensor, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predict all units, in the scale of the normalised image also with ``norm_pix``.

        With ``norm_pix`` the network predicts standardised units, so each is given the mean and standard deviation
        of the true unit, as is usual for showing reconstructions, although the network knows neither. With ``visible``
        all get the average of the visible units.

        Args:
            tokens (Tensor): Tokens, as in :meth:`loss`.
            images (Tensor): (N, 3, H, W), normalised.
            visible (Tensor, optional): (N, h, w) bool, units that the encoder saw.
        Returns:
            Tensor: (N, 3, H, W) float32.
        """
        pixels = self._pixels(tokens, (images.shape[2] // UNIT, images.shape[3] // UNIT))
        units = images_to_units(images)
        if visible is None:
            return units_to_images(self._rescale(pixels, units))
        pixels = self._rescale(pixels.flatten(1, 2), units.flatten(1, 2), visible.flatten(1))
        return units_to_images(pixels.view_as(units))

    def _rescale(self, pixels: Tensor, units: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predicted units in the scale of the true ones, or in the average one of the visible ones.

        (N, ..., 768) each -> (N, ..., 768) float32; with (N, L) bool for the second, ``units`` are (N, L, 768).
        """
        if not self.norm_pix:
            return pixels.float()
        mean, std = self._statistics(units)
        if visible is not None:
            weights = (visible / visible.sum(1, keepdim=True).clamp(min=1))[..., None]  # (N, L, 1)
            mean, std = ((each * weights).sum(1, keepdim=True) for each in (mean, std))
        return pixels.float() * std + mean

    def _pixels(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """All units, (N, h, w, D) -> (N, h, w, 768)."""
        return self.pred(tokens)

    def _statistics(self, units: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(units.float(), dim=-1, keepdim=True)
        return mean, (var + self.EPS).sqrt()

    def init_weights(self) -> None:
        """Xavier, as in MAE."""
        init_linear_as_mae(self)
        super().init_weights()


@MODELS.register_module()
class UMSimMIMHead(UMMAEHead):
    """SimMIM's head: a linear layer on the encoder's last map, pixel shuffle to units, L1 over masked ones.

    Args:
        in_channels (int): Channels of the encoder's last map.
        norm_pix (bool): Standardise each target unit; the published baselines do not. Default False.
        stride (int): Pixels per token of that map: 32 (default), 16 or 8.
        image_channels (int): Channels of the images. Default 3.
        init_cfg (dict, optional): MMEngine's initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        norm_pix: bool = False,
        stride: int = 32,
        image_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_pix, image_channels, init_cfg)
        self.pred = TokensToUnits(in_channels, UNIT * UNIT * image_channels, stride)

    def loss(self, tokens: Tensor, images: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        """Mean absolute error over the masked units.

        Args:
            tokens (Tensor): (N, C, ceil(H / stride), ceil(W / stride)), the encoder's last map.
            images (Tensor): (N, 3, H, W), normalised.
            mask (UniformMask | UnitMask): Its unsampled units were masked.
        Returns:
            Tensor: Scalar.
        """
        pixels = self._pixels(tokens, (images.shape[2] // UNIT, images.shape[3] // UNIT))
        return (mask.select_targets(pixels).float() - self.target(images, mask)).abs().mean()

    def _pixels(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """All units, (N, C, h', w') -> (N, h, w, 768), cropped where an odd number of units was padded."""
        return self.pred(tokens)[:, : grid[0], : grid[1]]


@MODELS.register_module()
class LoMaRHead(UMMAEHead):
    """LoMaR's head: a linear layer on the tokens of masked patches; mean squared error over them.

    Args:
        in_channels (int): Width of the encoder's tokens, or of the decoder's if there is one. Default 768.
        norm_pix (bool): Standardise each target patch by its own mean and unbiased variance. Default True.
        patch_size (int): Side of a patch in pixels. Default 16.
        image_channels (int): Channels of the images. Default 3.
        init_cfg (dict, optional): MMEngine's initialisation.
    """

    def __init__(
        self,
        in_channels: int = 768,
        norm_pix: bool = True,
        patch_size: int = UNIT,
        image_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_pix, image_channels, init_cfg)
        self.patch_size = patch_size
        self.pred = nn.Linear(in_channels, patch_size * patch_size * image_channels)

    def predict(
        self, tokens: Tensor, images: Tensor, mask: WindowMask, from_visible: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predict the masked patches of each window.

        Args:
            tokens (Tensor): Tokens, as in :meth:`loss`.
            images (Tensor): (N, 3, H, W), normalised.
            mask (WindowMask): The mask the encoder saw.
            from_visible (bool): With ``norm_pix``, give the predictions the average mean and standard deviation of the
                window's visible patches instead of those of the true patches. Default False.
        Returns:
            tuple[Tensor, Tensor]: Whole images, (N, 3, H, W) float32, with the mean of the predictions where windows
            overlap; a patch that is never masked is copied from the image, and a patch outside all windows is 0, the
            mean colour. And single windows, (B, 3, w * patch_size, w * patch_size) float32: predictions among the
            visible patches.
        """
        units = images_to_units(images.float(), self.patch_size)  # (N, h, w, patch_size ** 2 * 3)
        # (B, M, patch_size ** 2 * 3)
        if from_visible:
            pixels = self._rescale(self.pred(tokens), mask.select(units), ~mask.is_masked())
        else:
            pixels = self._rescale(self.pred(tokens), mask.select_targets(units))
        predicted, outside = (which.view(*units.shape[:3], 1) for which in (mask.predicted(), mask.unsampled()))
        whole = torch.where(predicted, mask.merge(pixels), units.masked_fill(outside, 0))
        windows = mask.select(units).scatter(1, mask.masked[..., None].expand_as(pixels), pixels)
        windows = windows.unflatten(1, (mask.window_size, mask.window_size))
        return units_to_images(whole, self.patch_size), units_to_images(windows, self.patch_size)

    def _target_pixels(self, tokens: Tensor, mask: WindowMask) -> Tensor:
        """All tokens: the decoder returns those of masked patches only."""
        return self.pred(tokens)
