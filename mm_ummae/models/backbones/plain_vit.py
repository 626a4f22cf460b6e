"""Base of the plain ViTs: sine-cosine positions, MAE's initialisation, loading, layer decay (arXiv 2111.06377)."""

from __future__ import annotations

import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from mm_ummae.checkpoints.loading import start_from_checkpoint
from mm_ummae.masking import sincos_position
from mm_ummae.models.layers import fit_channels, fit_positions, init_linear_as_mae, resize_positions


class PlainViT(VisionTransformer):
    """MMPretrain's ViT, with the same parameter names, that can encode a subset of the patches.

    Args:
        arch (str | dict): Architecture, as in MMPretrain's ``VisionTransformer``.
        img_size (int | tuple[int, int]): Nominal image size in pixels, that of the position embedding, which is resized
            bicubically for other inputs.
        learn_positions (bool): Train the position embedding, which starts from sine-cosine values.
        out_type (str): Kind of output for whole images, as in MMPretrain's class.
        kwargs: Others of MMPretrain's ``VisionTransformer``.
    """

    # A pre-training checkpoint may hold these though a fine-tuned backbone does not.
    PRETRAINING_ONLY: tuple[str, ...] = ('ln1.weight', 'ln1.bias')

    def __init__(
        self, arch: str | dict, img_size: int | tuple[int, int], learn_positions: bool, out_type: str, **kwargs
    ) -> None:
        super().__init__(arch, img_size, out_type=out_type, **kwargs)
        self.learn_positions = learn_positions
        self.pos_embed.requires_grad_(learn_positions and self.pos_embed.requires_grad)
        self._fill_positions()

    def _fill_positions(self) -> None:
        """Sine-cosine values, and zeros for the class token."""
        if self.pos_embed is None:
            return
        positions = sincos_position(*self.patch_resolution, self.embed_dims).flatten(0, 1)
        self.pos_embed.data[:, : self.num_extra_tokens] = 0
        self.pos_embed.data[:, self.num_extra_tokens :] = positions

    def _resized_positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding for a grid of patches, (1, T, C), class token first."""
        return resize_positions(self.pos_embed, self.patch_resolution, grid, self.num_extra_tokens)

    def _embed_patches(self, patches: Tensor) -> Tensor:
        """The patch convolution on single patches: (B, V, p * p * 3), pixels (row, column, channel) -> (B, V, C)."""
        projection = self.patch_embed.projection
        weight = projection.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 3, p, p) -> (C, p * p * 3)
        return F.linear(patches, weight, projection.bias)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit a checkpoint's first convolution to the channels, and its position embedding to this one's size."""
        state = fit_channels(state, 'patch_embed.projection.weight', self.in_channels)
        return fit_positions(state, self.patch_resolution, self.num_extra_tokens)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.patch_embed.projection.in_channels

    def train(self, mode: bool = True) -> PlainViT:
        """Set the mode and return the module, as PyTorch's modules do; MMPretrain's backbones return None."""
        super().train(mode)
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for layer-wise learning-rate decay; tokens belong to layer 0."""
        name = param_name.removeprefix(prefix)
        if name.endswith('_token') and '.' not in name:
            param_name = f'{prefix}cls_token'
        return super().get_layer_depth(param_name, prefix)

    def init_weights(self) -> None:
        """Initialise as MAE does, or load ``init_cfg``'s checkpoint strictly (see :func:`start_from_checkpoint`)."""
        if start_from_checkpoint(self):
            return
        # Past MMPretrain's, which would draw positions at random
        super(VisionTransformer, self).init_weights()
        init_linear_as_mae(self)
        self._fill_positions()
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith('_token'):
                nn.init.trunc_normal_(parameter, std=0.02)
