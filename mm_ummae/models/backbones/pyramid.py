"""Base of the pyramid backbones: stages, masks, outputs, freezing, loading (UM-MAE, arXiv 2205.10063, section 3).

A pyramid has 4 stages with total strides 4, 8, 16, 32. The same class and parameter names serve three inputs:

* a whole image of any size (fine-tuning);
* ``mask``, a :class:`UniformMask`: only the compact image is embedded (UM-MAE);
* ``replaced``: the whole image with the tokens of some units replaced by a learned one (SimMIM).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mm_ummae.checkpoints.loading import start_from_checkpoint
from mm_ummae.masking import UNIT, UniformMask, compact, enlarge, grid_shape, image_size_pair
from mm_ummae.models.layers import PatchEmbed, fit_channels, init_linear_as_mae, keep_traced_size


class PyramidBackbone(BaseModule):
    """Base of :class:`UMSwin` and :class:`UMPVT`.

    Args:
        dims (list[int]): Channels of each stage.
        depths (tuple[int, ...]): Blocks of each stage.
        make_stage (Callable[[int, list[float]], nn.Module]): Builds stage ``i`` with these drop path rates; it is
            called as ``stage(x, mask)`` on (N, h, w, C), and its ``blocks`` are counted for layer decay.
        patch_norm (bool): LayerNorm after the patch embedding.
        img_size (int | tuple[int, int]): Nominal image size (height, width) in pixels. Inputs of any size are taken.
            Default 256.
        in_channels (int): Channels of the images. Weights for three are adapted to another number (see
            :func:`~mm_ummae.models.layers.fit_channels`). Default 3.
        secondary_token (bool): Create the token that replaces secondary-masked units. Only pre-training with UM-MAE
            needs it; without it ``mask.secondary`` has no effect. Default False.
        mask_token (bool): Create the token that replaces masked units in pre-training with SimMIM. Default False.
        out_indices (tuple[int, ...]): Stages whose maps are returned, 0..3. Default (3, ).
        final_norm (bool): LayerNorm on the last stage's map, if that is returned. Default True.
        drop_path_rate (float): Stochastic depth rate of the last block; earlier ones rise to it linearly. Default 0.
        frozen_stages (int): -1 freezes nothing, 0 the patch embedding, k also stages 1..k. Default -1.
        init_cfg (dict | list, optional): MMEngine's initialisation. With ``type='Pretrained'`` each parameter must
            find its value in the checkpoint, otherwise a ``ValueError`` names those that do not.

    Raises:
        ValueError: If an argument is illegal.
    """

    # A pre-training checkpoint may hold these though a fine-tuned backbone does not.
    PRETRAINING_ONLY = ('secondary_token', 'mask_token', 'norm.weight', 'norm.bias')
    # Kinds of sampling it can encode: a compact image needs one unit of each cell.
    SAMPLING = ('uniform',)

    def __init__(
        self,
        dims: list[int],
        depths: tuple[int, ...],
        make_stage: Callable[[int, list[float]], nn.Module],
        *,
        patch_norm: bool,
        img_size: int | tuple[int, int] = 256,
        in_channels: int = 3,
        secondary_token: bool = False,
        mask_token: bool = False,
        out_indices: tuple[int, ...] = (3,),
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        num_stages = len(depths)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate is {drop_path_rate}, but it must be in [0, 1)')
        if not out_indices or not set(out_indices) <= set(range(num_stages)):
            raise ValueError(f'out_indices is {out_indices}, but stages are numbered 0..{num_stages - 1}')
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages is {frozen_stages}, but it must be in -1..{num_stages}')

        self.img_size = image_size_pair(img_size)
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        self.num_features, self.depths = dims, tuple(depths)
        self.stride = 4 * 2 ** (num_stages - 1)  # of the last stage, in pixels
        self.in_channels = in_channels
        self.patch_embed = PatchEmbed(dims[0], in_channels=in_channels, with_norm=patch_norm)
        self.secondary_token = nn.Parameter(torch.zeros(1, 1, dims[0])) if secondary_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dims[0])) if mask_token else None
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * i / last for i in range(last + 1)])
        self.stages = ModuleList(make_stage(i, [next(rates) for _ in range(depth)]) for i, depth in enumerate(depths))
        has_norm = final_norm and num_stages - 1 in self.out_indices
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6) if has_norm else None
        self._freeze_stages()

    def forward(
        self, images: Tensor, mask: UniformMask | None = None, replaced: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the maps at ``out_indices``.

        Args:
            images (Tensor): (N, 3, H, W), normalised. With a mask the sides must be multiples of 32.
            mask (UniformMask, optional): Units to sample and to hide again. Default: the whole image.
            replaced (Tensor, optional): (N, H / 16, W / 16) bool, True = the unit's tokens are replaced by
                ``mask_token``.
        Returns:
            tuple[Tensor, ...]: Maps (N, C_i, ceil(H / s_i), ceil(W / s_i)) with strides s = 4, 8, 16, 32; with a
            mask those of the compact image, half as large.
        Raises:
            ValueError: If the mask is of another kind or for other images, or the image sides do not allow one.
        """
        self._check_inputs(images, mask, replaced)
        images = keep_traced_size(images)
        if mask is not None:
            images = compact(images, mask.offsets)
        x = self.patch_embed(images)
        if mask is not None and self.secondary_token is not None:
            x = _replace(x, mask.secondary, self._embedded_secondary_token())
        if replaced is not None:
            x = _replace(x, replaced, self.mask_token)
        x = self._add_positions(x, mask)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x, mask)
            if i in self.out_indices:
                out = self.norm(x) if self.norm is not None and i == len(self.stages) - 1 else x
                # (N, h, w, C) -> (N, C, h, w), contiguous: convolutions pass a channels-last layout on, and MMCV's
                # RoIAlign reads such memory as if it were contiguous, without an error.
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _check_inputs(self, images: Tensor, mask: UniformMask | None, replaced: Tensor | None) -> None:
        check_mask_inputs(self, images, mask, replaced)

    def _embedded_secondary_token(self) -> Tensor:
        """(1, 1, C), the token that replaces embedded patches."""
        return self.secondary_token

    def _add_positions(self, x: Tensor, mask: UniformMask | None) -> Tensor:
        """Absolute positions, (N, h, w, C) -> (N, h, w, C); none here."""
        return x

    def init_weights(self) -> None:
        """Initialise as MAE does, or load ``init_cfg``'s checkpoint strictly (see :func:`start_from_checkpoint`)."""
        if start_from_checkpoint(self):
            return
        init_linear_as_mae(self)
        for token in (self.secondary_token, self.mask_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        super().init_weights()

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit a checkpoint's first convolution to the channels of the images."""
        return fit_channels(state, 'patch_embed.projection.weight', self.in_channels)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for layer-wise learning-rate decay: each block is one (UM-MAE's fine-tuning recipe).

        Args:
            param_name (str): Name in the whole model.
            prefix (str): Prefix of the backbone's parameters in the model, such as ``backbone.``. Default ''.
        Returns:
            tuple[int, int]: Layer, and number of layers. Patch embedding, positions and tokens are layer 0, a merging
            belongs to the block that follows it, and the last norm and all parameters outside the backbone to the last.
        """
        num_layers = sum(self.depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        part, *rest = param_name.removeprefix(prefix).split('.')
        if part == 'norm':
            return num_layers - 1, num_layers
        if part != 'stages':
            return 0, num_layers
        stage = int(rest[0])
        block = int(rest[2]) if rest[1] == 'blocks' else 0
        return sum(self.depths[:stage]) + block + 1, num_layers

    def _frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        """Modules and parameters that ``frozen_stages`` freezes."""
        return [self.patch_embed, *self.stages[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def _freeze_stages(self) -> None:
        for part in self._frozen_parts():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def train(self, mode: bool = True) -> PyramidBackbone:
        """Set the mode; frozen stages stay in eval."""
        super().train(mode)
        self._freeze_stages()
        return self


def check_mask_inputs(backbone: nn.Module, images: Tensor, mask: UniformMask | None, replaced: Tensor | None) -> None:
    """Check the inputs of a backbone that takes ``mask`` or ``replaced``.

    Args:
        backbone (nn.Module): With ``mask_token``, which may be None.
        images (Tensor): (N, 3, H, W).
        mask (UniformMask, optional): Units to sample and to hide again.
        replaced (Tensor, optional): (N, H / 16, W / 16) bool, units to replace.
    Raises:
        ValueError: If the mask is of another kind or for other images, both are given, or the sides do not allow one.
    """
    if mask is not None and not isinstance(mask, UniformMask):
        raise ValueError(
            f'mask is a {type(mask).__name__}, but {type(backbone).__name__} closes the gaps between sampled units, '
            'which needs a UniformMask: one unit of each 2x2 cell'
        )
    if mask is not None:
        cells = (len(images), *grid_shape(tuple(images.shape[2:])))
        if tuple(mask.offsets.shape) != cells:
            raise ValueError(f'mask is for {tuple(mask.offsets.shape)} images and cells, but the images have {cells}')
    if mask is not None and replaced is not None:
        raise ValueError('mask and replaced are both given, but an image is either sampled or partly replaced')
    if replaced is None:
        return
    if backbone.mask_token is None:
        raise ValueError('replaced is given, but the backbone has no token to put there: set mask_token=True')
    units = (len(images), images.shape[2] // UNIT, images.shape[3] // UNIT)
    if images.shape[2] % UNIT or images.shape[3] % UNIT or tuple(replaced.shape) != units:
        raise ValueError(
            f'replaced has shape {tuple(replaced.shape)}, but it must have one value for each unit of {UNIT} px of '
            f'the images, whose sides must be multiples of that: they are {tuple(images.shape)}'
        )


def arch_settings(arch: str | dict, archs: dict[str, dict]) -> dict:
    """Sizes of an architecture.

    Args:
        arch (str | dict): A name, or a dict with exactly the keys of the named ones.
        archs (dict[str, dict]): The named ones.
    Raises:
        ValueError: If the name is unknown, a key is missing or unknown, or a value is of another kind or length.
    """
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(f'arch is {arch!r}, but it must be one of {", ".join(archs)}, or a dict')
        return archs[arch]
    keys = archs['tiny'].keys()
    if set(arch) != set(keys):
        raise ValueError(f'arch has the keys {sorted(arch)}, but it needs exactly {sorted(keys)}')
    for key, value in arch.items():
        by_stage = isinstance(archs['tiny'][key], tuple)
        if isinstance(value, (tuple, list)) != by_stage:
            raise ValueError(
                f'arch.{key} is {value}, but it must be {"one value a stage" if by_stage else "one number"}'
            )
    for key, value in arch.items():
        if isinstance(value, (tuple, list)) and len(value) != len(arch['depths']):
            raise ValueError(f'arch.depths {arch["depths"]} and arch.{key} {value} differ in length')
    return arch


def _replace(x: Tensor, units: Tensor, token: Tensor) -> Tensor:
    """Put a token over whole units: (N, h, w, C), (N, h / t, w / t) bool, (1, 1, C) -> (N, h, w, C)."""
    tokens = x.shape[1] // units.shape[1]  # along a unit's side
    return torch.where(enlarge(units, tokens)[..., None], token.to(x.dtype), x)
