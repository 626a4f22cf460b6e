"""Swin with log-spaced continuous position bias, for masked pre-training and for every dense task.

Source: UM-MAE (arXiv 2205.10063), section 3 and its released models. It differs from the stock Swin of
mmpretrain and mmdet in patch embedding, patch merging and position bias, so their weights do not fit it.
"""

from __future__ import annotations

from functools import partial

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mm_ummae.masking import UNIT, UniformMask, compact
from mm_ummae.registry import MODELS

from .layers import PatchEmbed, PatchMerging, SwinBlock, init_linear_as_mae
from .pretrained import load_pretrained, pretrained_cfg
from .window_grid import WindowGrid

ARCHS = {
    'test': dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), position_dims=8),
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), position_dims=32),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), position_dims=32),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), position_dims=48),
    'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), position_dims=64),
}


class SwinStage(BaseModule):
    """Optional merging, then blocks whose windows are shifted every second time.

    Args:
        in_channels (int | None): Channels before merging; None for the first stage, which does not merge.
        embed_dims (int): Channels of the blocks.
        num_heads (int): Heads.
        position_dims (int): Width of the position MLP.
        drop_paths (list[float]): Stochastic depth rate of each block.
        stride (int): Pixels per token in the full image.
        img_side (int): Smaller nominal image side in pixels.
        window_size (int): Largest side of a window in tokens of the full image.
        with_cp (bool): Recompute activations in backward instead of keeping them. Default False.
    """

    def __init__(
        self,
        in_channels: int | None,
        embed_dims: int,
        num_heads: int,
        position_dims: int,
        drop_paths: list[float],
        *,
        stride: int,
        img_side: int,
        window_size: int,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.img_side, self.window_size, self.with_cp = stride, img_side, window_size, with_cp
        self.downsample = None if in_channels is None else PatchMerging(in_channels, embed_dims)
        self.blocks = ModuleList(SwinBlock(embed_dims, num_heads, position_dims, drop_path=rate) for rate in drop_paths)

    def window_and_shift(self, masked: bool) -> tuple[int, int]:
        """Window side and shift in tokens.

        A compact image has half the side, so half the window spans the same pixels. Published rule: where the
        nominal resolution is not larger than the window, the window is that resolution and nothing shifts.
        """
        resolution = -(-self.img_side // self.stride)
        window = self.window_size
        if masked:
            resolution, window = -(-resolution // 2), window // 2
        return (resolution, 0) if resolution <= window else (window, window // 2)

    def forward(self, x: Tensor, mask: UniformMask | None = None) -> Tensor:
        """(N, h, w, C) -> (N, h', w', C'), tokens of the compact image if there is a mask."""
        if self.downsample is not None:
            x = self.downsample(x)
        window, shift = self.window_and_shift(mask is not None)
        grid = partial(WindowGrid, *x.shape[1:3], window=window, stride=self.stride, mask=mask, device=x.device)
        plain = grid(shift=0)
        shifted = grid(shift=shift) if shift and len(self.blocks) > 1 else plain
        for i, block in enumerate(self.blocks):
            windows = shifted if i % 2 else plain
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, windows, use_reentrant=False)
            else:
                x = block(x, windows)
        return x


@MODELS.register_module()
class UMSwin(BaseModule):
    """Swin for Uniform Masking: one class, and one set of parameter names, before and after pre-training.

    Without a mask it is a pyramid backbone for images of any size. With a mask it embeds the *compact image* (the
    sampled units with the gaps closed, half the side) and attends with each token's position in the full image.

    Args:
        arch (str | dict): ``test``, ``tiny``, ``small``, ``base``, ``large``, or a dict with ``embed_dims``,
            ``depths``, ``num_heads`` and ``position_dims``. Default ``tiny``.
        img_size (int | tuple[int, int]): Nominal image size (height, width) in pixels. It only decides where
            windows stop growing; inputs of any size are taken. Default 256.
        window_size (int): Side of a window on a *full* image in tokens; on the compact image windows have half
            of it and span the same pixels. Default 16, that is 8 in pre-training.
        secondary_token (bool): Have the token that replaces secondary-masked units. Only pre-training needs it;
            without it ``mask.secondary`` has no effect. Default False.
        out_indices (tuple[int, ...]): Stages whose maps are returned, 0..3. Default (3, ).
        final_norm (bool): LayerNorm on the last stage's map, if that is returned. Default True.
        drop_path_rate (float): Stochastic depth rate of the last block; earlier ones rise to it linearly. Default 0.
        frozen_stages (int): -1 freezes nothing, 0 the patch embedding, k also stages 1..k. Default -1.
        with_cp (bool): Activation checkpointing of every block. Default False.
        init_cfg (dict, optional): MMEngine's initialisation. With ``type='Pretrained'`` each parameter must find its
            value in the checkpoint, otherwise a ``ValueError`` names those that do not.

    Raises:
        ValueError: If an argument is illegal.
    """

    # A pre-training checkpoint may hold these though a fine-tuned backbone does not.
    PRETRAINING_ONLY = ('secondary_token', 'norm.weight', 'norm.bias')

    def __init__(
        self,
        arch: str | dict = 'tiny',
        img_size: int | tuple[int, int] = 256,
        window_size: int = 16,
        secondary_token: bool = False,
        out_indices: tuple[int, ...] = (3,),
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        settings = _settings(arch)
        depths, heads = settings['depths'], settings['num_heads']
        num_stages = len(depths)
        img_side = min(img_size) if isinstance(img_size, (tuple, list)) else img_size
        if img_side <= 0:
            raise ValueError(f'img_size is {img_size}, but sides must be positive')
        if window_size < 1:
            raise ValueError(f'window_size is {window_size}, but a window needs at least one token')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate is {drop_path_rate}, but it must be in [0, 1)')
        if not out_indices or not set(out_indices) <= set(range(num_stages)):
            raise ValueError(f'out_indices is {out_indices}, but stages are numbered 0..{num_stages - 1}')
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages is {frozen_stages}, but it must be in -1..{num_stages}')

        self.window_size, self.out_indices, self.frozen_stages = (
            window_size,
            tuple(out_indices),
            frozen_stages,
        )
        dims = [settings['embed_dims'] * 2**i for i in range(num_stages)]
        self.num_features = dims
        self.patch_embed = PatchEmbed(dims[0])
        self.secondary_token = nn.Parameter(torch.zeros(1, 1, dims[0])) if secondary_token else None
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * i / last for i in range(last + 1)])
        self.stages = ModuleList(
            SwinStage(
                dims[i - 1] if i else None,
                dims[i],
                heads[i],
                settings['position_dims'],
                [next(rates) for _ in range(depth)],
                stride=4 * 2**i,
                img_side=img_side,
                window_size=window_size,
                with_cp=with_cp,
            )
            for i, depth in enumerate(depths)
        )
        has_norm = final_norm and num_stages - 1 in self.out_indices
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6) if has_norm else None
        self._freeze_stages()

    def forward(self, images: Tensor, mask: UniformMask | None = None) -> tuple[Tensor, ...]:
        """Compute the maps at ``out_indices``.

        Args:
            images (Tensor): (N, 3, H, W), normalised. With a mask the sides must be multiples of 32.
            mask (UniformMask, optional): What is sampled and what is hidden again; None sees the whole image.
        Returns:
            tuple[Tensor, ...]: Maps (N, C_i, ceil(H / s_i), ceil(W / s_i)) with strides s = 4, 8, 16, 32; with a
            mask those of the compact image, half as large.
        Raises:
            ValueError: If there is a mask and the image sides or the window size do not allow one.
        """
        if mask is not None:
            if self.window_size % 2:
                raise ValueError(
                    f'window_size is {self.window_size}, but masked images use half of it: it must be even'
                )
            images = compact(images, mask.offsets)
        x = self.patch_embed(images)
        if mask is not None and self.secondary_token is not None:
            x = self._hide_secondary(x, mask.secondary)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x, mask)
            if i in self.out_indices:
                out = self.norm(x) if self.norm is not None and i == len(self.stages) - 1 else x
                # (N, h, w, C) -> (N, C, h, w), contiguous: convolutions pass a channels-last layout on, and MMCV's
                # RoIAlign reads such memory as if it were contiguous, without an error.
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _hide_secondary(self, x: Tensor, secondary: Tensor) -> Tensor:
        # The token goes through the norm of the patch embedding before it replaces content, as published.
        tokens = UNIT // self.patch_embed.patch_size
        hidden = secondary.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)  # (N, gh, gw) -> (N, h, w)
        token = self.patch_embed.norm(self.secondary_token).to(x.dtype)
        return torch.where(hidden[..., None], token, x)

    def init_weights(self) -> None:
        """Initialise, or load ``init_cfg``'s checkpoint strictly (see :func:`load_pretrained`)."""
        pretrained = pretrained_cfg(self.init_cfg)
        if pretrained is not None:
            load_pretrained(self, pretrained, self.PRETRAINING_ONLY)
            self._is_init = True
            return
        init_linear_as_mae(self)
        if self.secondary_token is not None:
            nn.init.trunc_normal_(self.secondary_token, std=0.02)
        super().init_weights()

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> UMSwin:
        """Set the mode; frozen stages stay in eval."""
        super().train(mode)
        self._freeze_stages()
        return self


def _settings(arch: str | dict) -> dict:
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch is {arch!r}, but it must be one of {", ".join(ARCHS)}, or a dict')
        return ARCHS[arch]
    keys = ARCHS['tiny'].keys()
    if set(arch) != set(keys):
        raise ValueError(f'arch has the keys {sorted(arch)}, but it needs exactly {sorted(keys)}')
    if len(arch['depths']) != len(arch['num_heads']):
        raise ValueError(f'arch.depths {arch["depths"]} and arch.num_heads {arch["num_heads"]} differ in length')
    return arch
