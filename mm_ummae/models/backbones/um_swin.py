"""Swin with log-spaced continuous position bias, for masked pre-training and for every dense task.

Source: UM-MAE (arXiv 2205.10063), section 3 and its released models. It differs from the stock Swin of
mmpretrain and mmdet in patch embedding, patch merging and position bias, so their weights do not fit it.
"""

from __future__ import annotations

import logging

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from mm_ummae.masking import UniformMask, image_size_pair
from mm_ummae.models.layers import (
    PatchMerging,
    SwinBlock,
    WholeImagePositions,
    WindowGrid,
    check_with_cp,
    compact_image_positions,
    run_block,
)
from mm_ummae.registry import MODELS

from .pyramid import PyramidBackbone, arch_settings

ARCHS = {
    'test': dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), position_dims=8),
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), position_dims=32),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), position_dims=32),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), position_dims=48),
    'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), position_dims=64),
}
# PyTorch 2.1 has it under a private name
is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, 'is_compiling') else torch._utils.is_compiling


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
        with_cp (bool | str): See :class:`UMSwin`. Default False.
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
        with_cp: bool | str = False,
    ) -> None:
        super().__init__()
        self.stride, self.img_side, self.window_size, self.with_cp = stride, img_side, window_size, with_cp
        self.downsample = None if in_channels is None else PatchMerging(in_channels, embed_dims)
        self.blocks = ModuleList(
            SwinBlock(embed_dims, num_heads, position_dims, drop_path=rate, with_cp=with_cp) for rate in drop_paths
        )
        window, shift = self.window_and_shift(masked=False)
        self.positions = WholeImagePositions(window, 0)
        self.shifted_positions = WholeImagePositions(window, shift) if shift and len(drop_paths) > 1 else None

    def window_and_shift(self, masked: bool, img_side: int | None = None) -> tuple[int, int]:
        """Window side and shift in tokens, at another nominal side if ``img_side`` is given.

        A compact image has half the side, so half the window spans the same pixels. Published rule: where the
        nominal resolution is not larger than the window, the window is that resolution and nothing shifts.
        """
        resolution = -(-(img_side or self.img_side) // self.stride)
        window = self.window_size
        if masked:
            resolution, window = -(-resolution // 2), window // 2
        return (resolution, 0) if resolution <= window else (window, window // 2)

    def forward(self, x: Tensor, mask: UniformMask | None = None) -> Tensor:
        """(N, h, w, C) -> (N, h', w', C'), tokens of the compact image if there is a mask."""
        if self.downsample is not None:
            x = self.downsample(x)
        plain, shifted = self._grids(x, mask)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, shifted if i % 2 else plain, with_cp=self.with_cp)
        return x

    def _grids(self, x: Tensor, mask: UniformMask | None) -> tuple[WindowGrid, WindowGrid]:
        """Plain and shifted windows of a map (N, h, w, C); the same ones twice if this stage shifts none."""
        height, width = map(int, x.shape[1:3])  # tensors under `torch.jit.trace`
        window, shift = self.window_and_shift(mask is not None)

        def grid(shift: int) -> WindowGrid:
            if mask is None:
                positions = (self.shifted_positions if shift else self.positions)()
            else:
                positions = compact_image_positions(height, width, window, shift, self.stride, mask)
            return WindowGrid(height, width, window, shift, positions)

        plain = grid(0)
        return plain, grid(shift) if shift and len(self.blocks) > 1 else plain


@MODELS.register_module()
class UMSwin(PyramidBackbone):
    """Swin for Uniform Masking: one class, and one set of parameter names, before and after pre-training.

    Without a mask it is a pyramid backbone for images of any size. With a mask it embeds the *compact image* (the
    sampled units with the gaps closed, half the side) and attends with each token's position in the full image.

    Args:
        arch (str | dict): ``test``, ``tiny``, ``small``, ``base``, ``large``, or a dict with ``embed_dims``,
            ``depths``, ``num_heads`` and ``position_dims``. Default ``tiny``.
        img_size (int | tuple[int, int]): Nominal image size (height, width) in pixels: that of the training crops.
            It only decides where windows stop growing and shifting; inputs of any size are taken, and weights fit
            whatever it is. Training images on which larger windows or a shift would be possible are reported in the
            log, unless the model is compiled. Default 256.
        window_size (int): Side of a window on a *full* image in tokens; on the compact image windows have half
            of it and span the same pixels. Default 16, that is 8 in pre-training.
        with_cp (bool | str): Recompute activations in backward instead of keeping them: True those of every block,
            ``ffn`` only those of the feed-forward networks. Default False.
        kwargs: ``secondary_token``, ``mask_token``, ``out_indices``, ``final_norm``, ``drop_path_rate``,
            ``frozen_stages`` and ``init_cfg`` of :class:`PyramidBackbone`.

    Raises:
        ValueError: If an argument is illegal.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        img_size: int | tuple[int, int] = 256,
        window_size: int = 16,
        with_cp: bool | str = False,
        **kwargs,
    ) -> None:
        settings = arch_settings(arch, ARCHS)
        depths, heads = settings['depths'], settings['num_heads']
        dims = [settings['embed_dims'] * 2**i for i in range(len(depths))]
        img_side = min(image_size_pair(img_size))
        if window_size < 1:
            raise ValueError(f'window_size is {window_size}, but a window needs at least one token')
        check_with_cp(with_cp)

        def make_stage(i: int, drop_paths: list[float]) -> SwinStage:
            return SwinStage(
                dims[i - 1] if i else None,
                dims[i],
                heads[i],
                settings['position_dims'],
                drop_paths,
                stride=4 * 2**i,
                img_side=img_side,
                window_size=window_size,
                with_cp=with_cp,
            )

        super().__init__(dims, depths, make_stage, patch_norm=True, img_size=img_size, **kwargs)
        self.window_size = window_size
        # Of the images of training so far, to compare each size once. Hosts pad images to multiples of 32 px.
        self._largest_side = -(-img_side // 32) * 32

    def _check_inputs(self, images: Tensor, mask: UniformMask | None, replaced: Tensor | None) -> None:
        super()._check_inputs(images, mask, replaced)
        if mask is not None and self.window_size % 2:
            raise ValueError(f'window_size is {self.window_size}, but masked images use half of it: it must be even')
        if self.training and not is_compiling():
            self._compare_windows(*map(int, images.shape[2:]), masked=mask is not None)

    def _compare_windows(self, height: int, width: int, masked: bool) -> None:
        """Report, once, training images that are larger than ``img_size`` if windows of their size would differ."""
        side = min(height, width)
        if side <= self._largest_side:
            return
        self._largest_side = side
        pairs = [(stage.window_and_shift(masked), stage.window_and_shift(masked, side)) for stage in self.stages]
        pairs = {i + 1: pair for i, pair in enumerate(pairs) if pair[0] != pair[1]}
        if not pairs:
            return
        self._largest_side = float('inf')
        stages = f'stage{"s" if len(pairs) > 1 else ""} {" and ".join(map(str, pairs))}'
        ours, theirs = (
            '; '.join(f'{window} tokens, {f"shift {shift}" if shift else "no shift"}' for window, shift in values)
            for values in zip(*pairs.values(), strict=True)
        )
        print_log(
            f'model.backbone.img_size is {self.img_size[0]}x{self.img_size[1]}, but there are training images of '
            f'{height}x{width} px: the windows of {stages} are those of the smaller size ({ours}) instead of those of '
            f'this one ({theirs}), so deep features see less of their surroundings. Set '
            f'model.backbone.img_size={side}, or the size of the training crops if that is larger',
            'current',
            logging.WARNING,
        )

    def _embedded_secondary_token(self) -> Tensor:
        # The token goes through the norm of the patch embedding before it replaces content, as published.
        return self.patch_embed.norm(self.secondary_token)
