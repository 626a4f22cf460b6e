"""Decoder of LoMaR's asymmetric architecture, an arm of the paper's ablation (arXiv 2206.00790, section 4)."""

from __future__ import annotations

import torch
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor

from mm_ummae.masking import WindowMask
from mm_ummae.models.layers import PositionedBlock, TokenPositions, bucket_map
from mm_ummae.registry import MODELS

from .um_decoder import PixelDecoder


@MODELS.register_module()
class LoMaRDecoder(PixelDecoder):
    """Put mask tokens between the visible patches of each window and run a few narrow blocks.

    The paper does not state the decoder of its ablation. Its sizes here are MAE's.

    Args:
        in_channels (int): Channels of the encoder's tokens.
        positions (str): ``relative`` (a table in each block) or ``absolute`` (sine-cosine values of the position in
            the image). Default ``relative``.
        patch_size (int): Side of a patch in pixels. Default 16.
        depth (int): Transformer blocks. Default 8.
        img_size (int | tuple[int, int]): Nominal image size in pixels, see :class:`PixelDecoder`. Default 224.
        with_cp (bool | str): Recompute activations in backward, see :class:`PixelDecoder`. Default False.
        kwargs: ``embed_dims`` (512), ``num_heads`` (16), ``mlp_ratio`` (4) and ``init_cfg`` of :class:`PixelDecoder`.

    Raises:
        ValueError: If ``positions`` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        positions: str = 'relative',
        patch_size: int = 16,
        depth: int = 8,
        img_size: int | tuple[int, int] = 224,
        with_cp: bool | str = False,
        **kwargs,
    ) -> None:
        if positions not in ('relative', 'absolute'):
            raise ValueError(f"positions is {positions!r}, but LoMaRDecoder's must be relative or absolute")
        relative = positions == 'relative'

        def make_block(embed_dims: int, num_heads: int, hidden_dims: int) -> PositionedBlock:
            norm = dict(type='LN', eps=1e-6)
            layer = TransformerEncoderLayer(embed_dims, num_heads, hidden_dims, norm_cfg=norm)
            return PositionedBlock(layer, relative, with_cp)

        super().__init__(
            in_channels,
            depth=depth,
            img_size=img_size,
            patch_size=patch_size,
            with_cp=with_cp,
            make_block=make_block,
            **kwargs,
        )
        self.relative = relative

    def forward(self, latent: Tensor, mask: WindowMask) -> Tensor:
        """Decode.

        Args:
            latent (Tensor): (B, 1 + V, C): class token if there is one, then the visible patches of a window.
            mask (WindowMask): The mask the encoder saw.
        Returns:
            Tensor: (B, 1 + w * w, D), class token if there is one, then all patches of a window in raster order.
        """
        class_token, visible = self.expand(latent).tensor_split((latent.shape[1] - mask.visible.shape[1],), dim=1)
        # In the precision of the weights, as in LoMaRViT
        tokens = mask.complete(visible, self.mask_token)  # (B, w * w, D)
        if not self.relative:
            # The class token belongs to no patch: its position is zero
            tokens = tokens + self._positions(*mask.grid, latent.device).flatten(0, 1)[mask.patches()]
        tokens = torch.cat((class_token.to(tokens.dtype), tokens), dim=1)
        window = (mask.window_size, mask.window_size)
        buckets = bucket_map(window, class_token.shape[1] > 0, latent.device) if self.relative else None
        return self._transform(tokens, TokenPositions(buckets))
