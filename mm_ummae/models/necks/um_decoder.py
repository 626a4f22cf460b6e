"""Decoders of UM-MAE: from the encoded units to one token per unit (arXiv 2205.10063, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mm_ummae.masking import UNIT, UniformMask, UnitMask, cells_to_raster, image_size_pair, put_units, sincos_position
from mm_ummae.models.layers import DecoderBlock, TokensToUnits, check_with_cp, init_linear_as_mae, run_block
from mm_ummae.registry import MODELS


class PixelDecoder(BaseModule):
    """Base of the decoders: mask token, positions and transformer blocks.

    Args:
        in_channels (int): Channels of the encoder's output.
        embed_dims (int): Width D.
        depth (int): Transformer blocks.
        num_heads (int): Heads.
        mlp_ratio (int): Hidden width of a feed-forward network over D.
        img_size (int | tuple[int, int]): Nominal image size in pixels, for which positions are kept; other
            sizes work, with positions computed in each step.
        patch_size (int): Side of a unit in pixels.
        with_cp (bool | str): Recompute activations in backward instead of keeping them: True those of every block,
            ``ffn`` only those of the feed-forward networks. Default False.
        make_block (Callable[[int, int, int], nn.Module]): Builds a block from width, heads and hidden width. Default
            :class:`DecoderBlock`.
        make_expand (Callable[[int, int], nn.Module]): Builds the first layer from ``in_channels`` and D. Default a
            linear layer.
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
        patch_size: int = UNIT,
        with_cp: bool | str = False,
        make_block: Callable[[int, int, int], nn.Module] | None = None,
        make_expand: Callable[[int, int], nn.Module] = nn.Linear,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.with_cp = check_with_cp(with_cp)
        make_block = make_block or partial(DecoderBlock, with_cp=with_cp)
        height, width = image_size_pair(img_size)
        self.embed_dims = embed_dims
        self.expand = make_expand(in_channels, embed_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        positions = sincos_position(height // patch_size, width // patch_size, embed_dims)
        self.register_buffer('positions', positions, persistent=False)
        self.blocks = ModuleList(make_block(embed_dims, num_heads, mlp_ratio * embed_dims) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)

    def _positions(self, height: int, width: int, device: torch.device) -> Tensor:
        """Sine-cosine positions of all units, (height, width, D)."""
        if self.positions.shape[:2] == (height, width):
            return self.positions
        return sincos_position(height, width, self.embed_dims, device)

    def _transform(self, tokens: Tensor, *context: Any) -> Tensor:
        """Blocks and last norm, (N, L, D) -> (N, L, D); each block is called as ``block(tokens, *context)``."""
        for block in self.blocks:
            tokens = run_block(block, tokens, *context, with_cp=self.with_cp)
        return self.norm(tokens)

    def init_weights(self) -> None:
        """Initialise as MAE does: Xavier for linear layers, 0.02 for the token."""
        init_linear_as_mae(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        super().init_weights()


@MODELS.register_module()
class UMMAEDecoder(PixelDecoder):
    """Decoder for pyramids: expand the encoder's map to units, add mask tokens and positions, run blocks.

    Args:
        in_channels (int): Channels of the encoder's last map.
        stride (int): Pixels per token of that map for whole images: 32 (default), 16 or 8.
        published_positions (bool): The authors add the positions of the sampled units in raster order though the
            units are in cell order, so most get another unit's position. False (default) aligns them; True is
            for the decoders of released pre-training checkpoints.
        kwargs: ``embed_dims`` (D, 512), ``depth`` (2), ``num_heads`` (16), ``mlp_ratio`` (4), ``img_size`` (256),
            ``with_cp`` and ``init_cfg`` of :class:`PixelDecoder`.
    """

    def __init__(self, in_channels: int, *args, stride: int = 32, published_positions: bool = False, **kwargs) -> None:
        super().__init__(in_channels, *args, make_expand=partial(TokensToUnits, stride=stride), **kwargs)
        self.published_positions = published_positions

    def forward(self, latent: Tensor, mask: UniformMask) -> Tensor:
        """Decode.

        Args:
            latent (Tensor): (N, C, ceil(16 gh / stride), ceil(16 gw / stride)), the encoder's last map.
            mask (UniformMask): (N, gh, gw), the mask the encoder saw.
        Returns:
            Tensor: (N, 2 gh, 2 gw, D), a token for each unit in raster order.
        Raises:
            ValueError: If the encoder is no pyramid.
        """
        if latent.dim() != 4:
            raise ValueError(
                f'latent has shape {tuple(latent.shape)}, but UMMAEDecoder takes a map: UMViT needs UMViTDecoder'
            )
        n, gh, gw = mask.offsets.shape
        sampled = self.expand(latent)[:, :gh, :gw]  # (N, gh, gw, D), cropped where an odd number of cells was padded

        # Mask tokens everywhere, then each sampled unit in its place: (N, L, D)
        tokens = self.mask_token.to(sampled.dtype).expand(n, 4 * gh * gw, -1)
        tokens = put_units(tokens, mask.kept(), sampled.flatten(1, 2))
        tokens = tokens + self._ordered(self._positions(2 * gh, 2 * gw, latent.device), mask).flatten(-3, -2)
        return self._transform(tokens).view(n, 2 * gh, 2 * gw, -1)

    def _ordered(self, positions: Tensor, mask: UniformMask) -> Tensor:
        """Positions by unit: (h, w, D), or (N, h, w, D) in the published order."""
        if not self.published_positions:
            return positions
        # The k-th sampled unit in cell order gets the position of the k-th sampled unit in raster order.
        n, gh, gw = mask.offsets.shape
        units = torch.arange(4 * gh * gw, device=mask.offsets.device).view(2 * gh, 2 * gw)
        raster = mask.by_index().kept.view(n, gh, gw, 1)
        kept = torch.arange(4, device=units.device) == mask.offsets[..., None]  # (N, gh, gw, 4)
        source = cells_to_raster(torch.where(kept, raster, 0))  # (N, 2gh, 2gw)
        source = torch.where(cells_to_raster(kept), source, units)
        return positions.flatten(0, 1)[source]


@MODELS.register_module()
class UMViTDecoder(PixelDecoder):
    """Decoder for ViT, that of MAE: an encoder token is a unit, and the class token goes through the blocks too.

    Args:
        in_channels (int): Channels of the encoder's tokens.
        kwargs: ``embed_dims`` (D, 512), ``depth`` (2), ``num_heads`` (16), ``mlp_ratio`` (4), ``img_size`` (224),
            ``with_cp`` and ``init_cfg`` of :class:`PixelDecoder`.
    """

    def __init__(self, in_channels: int, *args, img_size: int | tuple[int, int] = 224, **kwargs) -> None:
        super().__init__(in_channels, *args, img_size=img_size, **kwargs)

    def forward(self, latent: Tensor, mask: UniformMask | UnitMask) -> Tensor:
        """Decode.

        Args:
            latent (Tensor): (N, 1 + V, C): class token, then the kept units in raster order.
            mask (UniformMask | UnitMask): The mask the encoder saw.
        Returns:
            Tensor: (N, h, w, D), a token for each unit in raster order.
        Raises:
            ValueError: If the encoder is no ViT.
        """
        if latent.dim() != 3:
            raise ValueError(
                f'latent has shape {tuple(latent.shape)}, but UMViTDecoder takes tokens: a pyramid needs UMMAEDecoder'
            )
        mask = mask.by_index()
        (n, kept), (h, w) = mask.kept.shape, mask.grid
        class_token, sampled = self.expand(latent).split((1, kept), dim=1)
        tokens = self.mask_token.to(sampled.dtype).expand(n, h * w, -1)
        tokens = put_units(tokens, mask.kept, sampled)  # (N, L, D)
        tokens = tokens + self._positions(h, w, latent.device).flatten(0, 1)
        # The class token belongs to no unit: its position is zero.
        tokens = self._transform(torch.cat((class_token.to(tokens.dtype), tokens), dim=1))
        return tokens[:, 1:].reshape(n, h, w, -1)
