"""Decoder of UM-MAE (arXiv 2205.10063, section 3.3): from the compact map to a token per unit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, cells_to_raster
from mm_ummae.registry import MODELS

from .layers import init_linear_as_mae
from .position import sincos_position


@MODELS.register_module()
class UMMAEDecoder(BaseModule):
    """Expand the encoder's map to units, add mask tokens and positions, and run transformer blocks.

    Args:
        in_channels (int): Channels of the encoder's last map.
        embed_dims (int): Width D. Default 512.
        depth (int): Transformer blocks. Default 2.
        num_heads (int): Heads. Default 16.
        mlp_ratio (int): Hidden width of a feed-forward network over D. Default 4.
        img_size (int | tuple[int, int]): Nominal image size in pixels, for which positions are kept; other
            sizes work, with positions made anew each step. Default 256.
        published_positions (bool): The authors add the positions of the sampled units in raster order though the
            units are in cell order, so most get another unit's position. False (default) aligns them; True is
            for the decoders of released pre-training checkpoints.
        init_cfg (dict, optional): MMEngine's initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int = 512,
        depth: int = 2,
        num_heads: int = 16,
        mlp_ratio: int = 4,
        img_size: int | tuple[int, int] = 256,
        published_positions: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.embed_dims, self.published_positions = embed_dims, published_positions
        # The encoder's stride on the compact image is 32: one of its tokens speaks for 2x2 sampled units.
        self.expand = nn.Linear(in_channels, 4 * embed_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.register_buffer('positions', sincos_position(height // 16, width // 16, embed_dims), persistent=False)
        self.blocks = ModuleList(
            TransformerEncoderLayer(
                embed_dims,
                num_heads,
                mlp_ratio * embed_dims,
                qkv_bias=True,
                norm_cfg=dict(type='LN', eps=1e-6),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)

    def forward(self, latent: Tensor, mask: UniformMask) -> Tensor:
        """Decode.

        Args:
            latent (Tensor): (N, C, ceil(gh / 2), ceil(gw / 2)), the encoder's last map.
            mask (UniformMask): (N, gh, gw), the mask the encoder saw.
        Returns:
            Tensor: (N, 2 gh, 2 gw, D), a token for each unit in raster order.
        """
        n, gh, gw = mask.offsets.shape
        # (N, C, h, w) -> (N, 4D, h, w) -> (N, D, 2h, 2w), cropped where an odd number of cells was padded
        sampled = F.pixel_shuffle(self.expand(latent.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 2)
        sampled = sampled[:, :, :gh, :gw].permute(0, 2, 3, 1)  # (N, gh, gw, D)

        kept = (torch.arange(4, device=latent.device) == mask.offsets[..., None])[..., None]  # (N, gh, gw, 4, 1)
        positions = self._positions(2 * gh, 2 * gw, latent.device)
        tokens = torch.where(kept, sampled[:, :, :, None], self.mask_token.to(sampled.dtype))
        tokens = cells_to_raster(tokens) + self._ordered(positions, mask)  # (N, 2gh, 2gw, D)

        tokens = tokens.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).view(n, 2 * gh, 2 * gw, -1)

    def _positions(self, height: int, width: int, device: torch.device) -> Tensor:
        if self.positions.shape[:2] == (height, width):
            return self.positions
        return sincos_position(height, width, self.embed_dims, device)

    def _ordered(self, positions: Tensor, mask: UniformMask) -> Tensor:
        """Positions by unit: (h, w, D), or (N, h, w, D) in the published order."""
        if not self.published_positions:
            return positions
        # The k-th sampled unit in cell order gets the position of the k-th sampled unit in raster order.
        n, gh, gw = mask.offsets.shape
        units = torch.arange(4 * gh * gw, device=mask.offsets.device).view(2 * gh, 2 * gw)
        raster = mask.unsampled().byte().argsort(dim=1, stable=True)[:, : gh * gw]  # sampled units, raster order
        kept = torch.arange(4, device=units.device) == mask.offsets[..., None]  # (N, gh, gw, 4)
        source = cells_to_raster(torch.where(kept, raster.view(n, gh, gw, 1), 0))  # (N, 2gh, 2gw)
        source = torch.where(cells_to_raster(kept), source, units)
        return positions.flatten(0, 1)[source]

    def init_weights(self) -> None:
        """Initialise as MAE does: Xavier for linear layers, 0.02 for the token."""
        init_linear_as_mae(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        super().init_weights()
