"""PVT with average-pooled keys, for masked pre-training and dense tasks.

Source: UM-MAE (arXiv 2205.10063), section 3 and its released models, after PVT (arXiv 2102.12122). It differs from the
stock PVT of mmdet in patch embedding and merging (plain convolutions) and in the reduction of keys (pooling), so stock
weights do not fit it.
"""

from __future__ import annotations

from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mm_ummae.masking import UNIT, UniformMask, compact_map, image_size_pair, sincos_position
from mm_ummae.models.layers import (
    PatchMerging,
    PVTBlock,
    check_with_cp,
    fit_positions,
    resize_positions,
    run_block,
)
from mm_ummae.registry import MODELS

from .pyramid import PyramidBackbone, arch_settings

STRIDE = 4  # pixels a token of stage 1
_TABLE = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
ARCHS = {
    'test': dict(embed_dims=(32, 64, 80, 128), depths=(1, 1, 2, 1), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)),
    'tiny': dict(**_TABLE, depths=(2, 2, 2, 2)),
    'small': dict(**_TABLE, depths=(3, 4, 6, 3)),
    'medium': dict(**_TABLE, depths=(3, 4, 18, 3)),
    'large': dict(**_TABLE, depths=(3, 8, 27, 3)),
}
SR_RATIOS = (8, 4, 2, 1)  # side of the pooling kernel of keys on a full image, in tokens, by stage


class PVTStage(BaseModule):
    """Optional merging, then blocks with pooled keys.

    Args:
        in_channels (int | None): Channels before merging; None for the first stage, which does not merge.
        embed_dims (int): Channels of the blocks.
        num_heads (int): Heads.
        mlp_ratio (float): Hidden width of a feed-forward network over ``embed_dims``.
        sr_ratio (int): Side of the pooling kernel of keys on a full image, in tokens.
        drop_paths (list[float]): Stochastic depth rate of each block.
        with_cp (bool | str): See :class:`UMPVT`. Default False.
    """

    def __init__(
        self,
        in_channels: int | None,
        embed_dims: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        drop_paths: list[float],
        with_cp: bool | str = False,
    ) -> None:
        super().__init__()
        self.sr_ratio, self.with_cp = sr_ratio, with_cp
        self.downsample = None if in_channels is None else PatchMerging(in_channels, embed_dims, with_norm=False)
        self.blocks = ModuleList(
            PVTBlock(embed_dims, num_heads, mlp_ratio, drop_path=rate, with_cp=with_cp) for rate in drop_paths
        )

    def forward(self, x: Tensor, mask: UniformMask | None = None) -> Tensor:
        """(N, h, w, C) -> (N, h', w', C'), tokens of the compact image if there is a mask."""
        if self.downsample is not None:
            x = self.downsample(x)
        # A compact image has half the side: half the pooling keeps as many keys.
        ratio = self.sr_ratio if mask is None else max(self.sr_ratio // 2, 1)
        for block in self.blocks:
            x = run_block(block, x, ratio, with_cp=self.with_cp)
        return x


@MODELS.register_module()
class UMPVT(PyramidBackbone):
    """PVT for Uniform Masking: one class, and one set of parameter names, before and after pre-training.

    Without a mask it is a pyramid backbone for images of any size. With a mask it embeds the *compact image* (the
    sampled units with the gaps closed, half the side), and each token gets the position of its place in the full image.

    Args:
        arch (str | dict): ``test``, ``tiny``, ``small``, ``medium``, ``large``, or a dict with ``embed_dims``,
            ``depths``, ``num_heads`` and ``mlp_ratios``, one value a stage. Default ``small``.
        img_size (int | tuple[int, int]): Nominal image size (height, width) in pixels: that of the position
            embedding, which is resized bicubically for other inputs. Default 256.
        learn_positions (bool): Train the position embedding, which starts from sine-cosine values. Pre-training keeps
            it fixed. Default True.
        with_cp (bool | str): Recompute activations in backward instead of keeping them: True those of every block,
            ``ffn`` only those of the feed-forward networks. Default False.
        kwargs: ``secondary_token``, ``mask_token``, ``out_indices``, ``final_norm``, ``drop_path_rate``,
            ``frozen_stages`` (0 also freezes the position embedding) and ``init_cfg`` (a position embedding of another
            size is resized) of :class:`PyramidBackbone`.

    Raises:
        ValueError: If an argument is illegal.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        img_size: int | tuple[int, int] = 256,
        learn_positions: bool = True,
        with_cp: bool | str = False,
        **kwargs,
    ) -> None:
        settings = arch_settings(arch, ARCHS)
        depths, dims = settings['depths'], list(settings['embed_dims'])
        if len(depths) != len(SR_RATIOS):
            raise ValueError(f'arch.depths is {depths}, but PVT has {len(SR_RATIOS)} stages')
        check_with_cp(with_cp)

        def make_stage(i: int, drop_paths: list[float]) -> PVTStage:
            heads, mlp_ratio = settings['num_heads'][i], settings['mlp_ratios'][i]
            return PVTStage(dims[i - 1] if i else None, dims[i], heads, mlp_ratio, SR_RATIOS[i], drop_paths, with_cp)

        super().__init__(dims, depths, make_stage, patch_norm=False, img_size=img_size, **kwargs)
        height, width = image_size_pair(img_size)
        self.grid = (-(-height // STRIDE), -(-width // STRIDE))
        positions = sincos_position(*self.grid, dims[0]).flatten(0, 1)[None]  # (1, tokens, C)
        self.pos_embed = nn.Parameter(positions, requires_grad=learn_positions and self.frozen_stages < 0)

    def _add_positions(self, x: Tensor, mask: UniformMask | None) -> Tensor:
        n, h, w, c = x.shape
        full = (h, w) if mask is None else (2 * h, 2 * w)
        positions = resize_positions(self.pos_embed, self.grid, full).view(1, *full, c)
        if mask is not None:
            # (1, 2h, 2w, C) -> (N, C, 2h, 2w) -> (N, C, h, w) -> (N, h, w, C): those of the sampled units
            positions = positions.permute(0, 3, 1, 2).expand(n, -1, -1, -1)
            positions = compact_map(positions, mask.offsets, UNIT // STRIDE).permute(0, 2, 3, 1)
        return x + positions

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit a checkpoint's first convolution to the channels, and its position embedding to this one's size."""
        return fit_positions(super().adapt_state(state), self.grid, extra_tokens=0)

    def init_weights(self) -> None:
        """Initialise as MAE does, with sine-cosine positions, or load ``init_cfg``'s checkpoint strictly."""
        self.pos_embed.data.copy_(sincos_position(*self.grid, self.num_features[0]).flatten(0, 1))
        super().init_weights()

    def _frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        parts = super()._frozen_parts()
        # Does not exist yet when the constructor of the parent freezes
        return [*parts, self.pos_embed] if parts and hasattr(self, 'pos_embed') else parts
