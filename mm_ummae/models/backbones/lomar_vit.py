"""LoMaR's ViT: sequences of local windows in pre-training, whole images afterwards (arXiv 2206.00790)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from mmengine.model import ModuleList
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from mm_ummae.masking import WindowMask, images_to_units, unit_shape
from mm_ummae.models.layers import (
    PositionedBlock,
    TokenPositions,
    bucket_map,
    check_with_cp,
    encode_none,
    keep_traced_size,
    run_block,
)
from mm_ummae.registry import MODELS

from .plain_vit import PlainViT

POSITIONS = ('relative', 'absolute', 'both')


@MODELS.register_module()
class LoMaRViT(PlainViT):
    """MMPretrain's ViT with contextual relative positions in attention, for grids of any size.

    With a :class:`WindowMask` it encodes windows, and embeds only their visible patches. Without one it encodes whole
    images; with ``window_size`` most layers then attend inside windows, as ViTDet does (arXiv 2203.16527).

    Args:
        arch (str | dict): ``test``, ``small`` (the usual ViT-S: 384 channels, 12 layers), or what MMPretrain's
            ``VisionTransformer`` takes, such as ``base`` and ``large``. Default ``base``.
        img_size (int | tuple[int, int]): Nominal image size in pixels. Default 224.
        patch_size (int): Side of a patch in pixels. Default 16.
        positions (str): ``relative`` (a table in each layer, which needs no resizing), ``absolute`` (sine-cosine values
            of the position in the image, added once) or ``both``, where tables that a checkpoint lacks start from
            zero, which changes nothing. Default ``relative``.
        learn_positions (bool): Train absolute positions; relative ones are always trained. MAE's pre-training, and so
            that of LoMaR's ablation, has False. Default True.
        mask_token (bool): Create the token that replaces masked patches, for pre-training without a decoder: the
            encoder then sees all patches of a local window, otherwise only the visible ones. Default False.
        window_size (int): Side of the attention windows in whole images, in tokens; unrelated to the local windows of a
            mask. Default 0: attend to all tokens.
        global_layers (Sequence[int]): Layers that attend to the whole image nevertheless, counted from 0. Default none.
        with_cp (bool | str): Recompute activations in backward instead of keeping them: True those of every layer,
            ``ffn`` only those of the feed-forward networks. Default False.
        out_type (str): Kind of output for whole images. Default ``featmap``: (N, C, h, w).
        kwargs: Others of MMPretrain's ``VisionTransformer``.

    Raises:
        ValueError: If ``positions`` is unknown, ``window_size`` or ``global_layers`` is illegal, there are windows and
            a class token, which belongs to none of them, or ``patch_cfg`` makes patches overlap or normalises them.
    """

    arch_zoo: ClassVar[dict[str, dict[str, int]]] = VisionTransformer.arch_zoo | {
        'test': dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
        **{
            name: dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536) for name in ('s', 'small')
        },
    }
    PRETRAINING_ONLY = ('mask_token', *PlainViT.PRETRAINING_ONLY)

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        positions: str = 'relative',
        learn_positions: bool = True,
        mask_token: bool = False,
        window_size: int = 0,
        global_layers: Sequence[int] = (),
        with_cp: bool | str = False,
        out_type: str = 'featmap',
        **kwargs,
    ) -> None:
        if positions not in POSITIONS:
            raise ValueError(f'positions is {positions!r}, but it must be one of {", ".join(POSITIONS)}')
        check_with_cp(with_cp)
        super().__init__(arch, img_size, learn_positions, out_type, patch_size=patch_size, **kwargs)
        embed = self.patch_embed
        if not embed.projection.kernel_size == embed.projection.stride == (patch_size, patch_size) or embed.norm:
            raise ValueError(
                f'patch_size is {patch_size} and patch_cfg {kwargs.get("patch_cfg")}, but patches must be squares side '
                'by side, projected and nothing else: they are also embedded one by one'
            )
        if positions == 'relative':
            self.pos_embed = None
        self.patch_size, self.positions = patch_size, positions
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims)) if mask_token else None
        self.layers = ModuleList(PositionedBlock(layer, positions != 'absolute', with_cp) for layer in self.layers)
        if self.frozen_stages > 0:  # the tables too, which are new
            self._freeze_stages()
        self.window_size, self.global_layers, self.with_cp = window_size, frozenset(global_layers), with_cp
        if window_size < 0 or (window_size and self.with_cls_token):
            raise ValueError(
                f'window_size is {window_size} and with_cls_token {self.with_cls_token}, but it must be positive, or 0 '
                'for none, and a class token belongs to no window'
            )
        if not self.global_layers <= set(range(self.num_layers if window_size else 0)):
            raise ValueError(
                f'global_layers is {global_layers}, but layers are counted 0..{self.num_layers - 1}, and without '
                'window_size all of them are global'
            )

    def forward(self, images: Tensor, mask: WindowMask | None = None) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            images (Tensor): (N, 3, H, W), normalised. With a mask the sides must be multiples of the patch; without
                one MMPretrain's patch embedding pads what is missing.
            mask (WindowMask, optional): Windows to encode and what is masked in them; None sees the whole image.
        Returns:
            tuple[Tensor, ...]: Without a mask what ``out_type`` says of each of ``out_indices``. With one a single
            (B, T, C): the class token if there is one, then all patches of a window in raster order, or only the
            visible ones if there is no mask token.
        Raises:
            ValueError: If the mask is for other images, or a side is no multiple of the patch.
        """
        if mask is not None:
            return (self._encode_windows(images, mask),)
        if not images.shape[0]:
            return encode_none(self, images)
        x, grid = self.patch_embed(keep_traced_size(images))
        positions = None if self.pos_embed is None else self._resized_positions(grid)
        x = self._prepend_class_token(x, positions)
        inside = self._token_positions(grid, self.window_size)
        # The buckets of a large map are large: only where they are needed
        everywhere = self._token_positions(grid) if self.window_size and self.global_layers else inside
        outs = []
        for i, layer in enumerate(self.layers):
            x = run_block(layer, x, everywhere if i in self.global_layers else inside, with_cp=self.with_cp)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._format_output(x, grid))
        return tuple(outs)

    def _encode_windows(self, images: Tensor, mask: WindowMask) -> Tensor:
        if not isinstance(mask, WindowMask):
            raise ValueError(f'mask is a {type(mask).__name__}, but LoMaRViT takes a WindowMask')
        grid = unit_shape(tuple(images.shape[2:]), self.patch_size)
        if (mask.batch_size, tuple(mask.grid)) != (len(images), grid):
            raise ValueError(
                f'mask is for {mask.batch_size} images of {tuple(mask.grid)} patches, '
                f'but {len(images)} images of {grid} came'
            )
        # Patch embedding sees a patch at a time, so masked ones and those outside the windows need none
        x = self._embed_patches(mask.select_visible(images_to_units(images, self.patch_size)))  # (B, V, C)
        inside: Tensor | None = mask.visible  # which patches of a window the layers get
        if self.mask_token is not None:
            x, inside = mask.complete(x, self.mask_token), None  # (B, w * w, C), all of them
        positions = None
        if self.pos_embed is not None:
            class_position, table = self._resized_positions(grid).tensor_split((self.num_extra_tokens,), dim=1)
            positions = torch.cat((class_position.expand(len(x), -1, -1), table[0, mask.patches(inside)]), dim=1)
        x = self._prepend_class_token(x, positions)
        token_positions = self._token_positions((mask.window_size, mask.window_size), tokens=inside)
        for layer in self.layers:
            x = run_block(layer, x, token_positions, with_cp=self.with_cp)
        return self.ln1(x) if self.final_norm else x

    def _prepend_class_token(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """The first layer's input: (B, L, C) -> (B, T, C)."""
        # Sums of all layers in the precision of the weights, under autocast too, as with the usual float32 positions
        x = x.to(self.patch_embed.projection.weight.dtype)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if positions is not None:
            x = x + positions
        return self.pre_norm(self.drop_after_pos(x))

    def _token_positions(
        self, grid: tuple[int, int], window_size: int = 0, tokens: Tensor | None = None
    ) -> TokenPositions:
        """Position information for the layers.

        Args:
            grid (tuple[int, int]): Rows and columns of patches.
            window_size (int): Side of the attention windows in tokens, 0 for attention to all. Default 0.
            tokens (Tensor, optional): (B, V) int64, raster indices of the patches in each sequence. Default: all.
        """
        if self.positions == 'absolute':
            return TokenPositions(None, grid, window_size)
        class_token = self.cls_token is not None
        device = self.layers[0].attn.position_table.device
        buckets = bucket_map((window_size, window_size) if window_size else grid, class_token, device)
        if tokens is not None:
            if class_token:
                tokens = torch.cat((torch.zeros_like(tokens[:, :1]), tokens + 1), dim=1)
            buckets = buckets[tokens[:, :, None], tokens[:, None]]  # (T, T) -> (B, 1 + V, 1 + V)
        return TokenPositions(buckets, grid, window_size)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize a checkpoint's absolute positions; with both kinds, start relative ones that it lacks from zero.

        A class token that this one does not have is left out.
        """
        state = super().adapt_state(state)
        if self.cls_token is None:
            state = {name: value for name, value in state.items() if name != 'cls_token'}
        if self.positions != 'both':
            return state
        own = self.state_dict()
        tables = {name: torch.zeros_like(own[name]) for name in own if name.endswith('.position_table')}
        return state if tables.keys() & state.keys() else tables | state

    def _prepare_pos_embed(self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs) -> None:
        if self.pos_embed is not None:
            super()._prepare_pos_embed(state_dict, prefix, *args, **kwargs)
