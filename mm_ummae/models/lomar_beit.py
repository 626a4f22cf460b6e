"""BEiT's pre-training on LoMaR's windows (arXiv 2206.00790), with MMPretrain's parts, and its ViT for fine-tuning."""

from __future__ import annotations

import torch
from mmpretrain.models.backbones import BEiTViT
from mmpretrain.models.selfsup import BEiT
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.masking import images_to_units, take_units, unit_shape, units_to_images
from mm_ummae.registry import MODELS
from mm_ummae.windows import WindowMask, check_pairing, check_windows, draw_window_mask

from .pretrained import load_pretrained, pretrained_cfg, start_from_checkpoint

TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'
SHARED = f'rel_pos_bias.{TABLE}'
CLASS_BUCKETS = 3  # last rows of a table: class token to patch, patch to class token, class token to itself


@MODELS.register_module()
class LoMaRBEiT(BEiT):
    """BEiT that sees each image through a few windows and predicts the tokens of their masked patches.

    A window is an image of its own to the network: MMPretrain's ``BEiTPretrainViT`` with ``img_size`` of a window,
    so that its relative positions are those within one. The tokenizer sees the second image once and as a whole.

    The paper tells the result of LoMaR in BEiT, but neither its share of masked patches nor its positions: the ratio
    here is LoMaR's, the positions, like all else, are BEiT's.

    Args:
        backbone (dict): MMPretrain's ``BEiTPretrainViT`` with ``img_size`` = ``window_size`` patches.
        head (dict): MMPretrain's ``BEiTV1Head``.
        target_generator (dict): The tokenizer, MMPretrain's ``DALL-E``, with
            ``init_cfg=dict(type='Pretrained', checkpoint=PATH)``. It is never trained.
        window_size (int): Side of a window in patches. Default 7.
        num_windows (int): Windows of a step, the same for all images. Default 4.
        mask_ratio (float): Share of a window's patches that is masked. Default 0.8.
        pairing (str): Which image is seen through which window, see :class:`LoMaR`. Default ``all``.
        neck (dict, optional): Must be None: BEiT v2 is not supported.
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If there is a neck, the backbone's images are not windows, nothing or everything would be masked,
            or the pairing is unknown.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        target_generator: dict,
        window_size: int = 7,
        num_windows: int = 4,
        mask_ratio: float = 0.8,
        pairing: str = 'all',
        neck: dict | None = None,
        **kwargs,
    ) -> None:
        if neck is not None:
            raise ValueError(f'neck is {neck}, but it must be None: the windows are for BEiT v1, which has none')
        super().__init__(backbone=backbone, head=head, target_generator=target_generator, **kwargs)
        self.patch_size = self.backbone.patch_embed.projection.kernel_size[0]
        side, grid = window_size * self.patch_size, tuple(self.backbone.patch_resolution)
        if self.backbone.img_size != (side, side) or grid != (window_size, window_size):
            raise ValueError(
                f'backbone.img_size is {self.backbone.img_size}, a grid of {grid} patches, but it must be '
                f'({side}, {side}) with square patches side by side: the backbone sees windows of window_size '
                f'{window_size} x patch_size {self.patch_size} px'
            )
        check_windows(grid, window_size, 1, mask_ratio)  # num_windows depends on the images
        self.window_size, self.num_windows = window_size, num_windows
        self.mask_ratio, self.pairing = mask_ratio, check_pairing(pairing)
        # MMPretrain's trains in name; distributed training would wait for its gradients
        self.target_generator.requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise as MMPretrain does, but for the tokenizer, which is loaded strictly (:func:`load_pretrained`).

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If no file is named, it cannot be read, or names or shapes do not fit.
        """
        init_cfg = pretrained_cfg(self.target_generator.init_cfg)
        if init_cfg is None or not init_cfg.get('checkpoint'):
            raise ValueError(
                f'target_generator.init_cfg is {self.target_generator.init_cfg}, but it must be of type Pretrained and '
                'name a file, since the targets are tokens of a trained tokenizer: give it with --cfg-options '
                'model.target_generator.init_cfg.checkpoint=PATH'
            )
        load_pretrained(self.target_generator, init_cfg)
        self.target_generator.is_init = True  # not loaded again, by names that fit
        super().init_weights()

    def draw_mask(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> WindowMask:
        """Draw windows and masks as training does; see :meth:`MaskedPixelModel.draw_mask`.

        Raises:
            ValueError: If a side is not a multiple of the patch, or the windows do not fit the image.
        """
        grid = unit_shape(image_size, self.patch_size)
        windows = (self.window_size, self.num_windows, self.mask_ratio, self.pairing)
        return draw_window_mask(batch_size, grid, *windows, device=device, generator=generator)

    def loss(self, inputs: list[Tensor], data_samples: list[DataSample] | None = None) -> dict[str, Tensor]:
        """Cross entropy of the masked patches' tokens, the mean over all windows.

        Args:
            inputs (list[Tensor]): (N, 3, H, W) for the network and (N, 3, H', W') for the tokenizer, which makes one
                token of it for each patch.
            data_samples (list[DataSample], optional): Not used.
        Returns:
            dict[str, Tensor]: ``loss``.
        Raises:
            ValueError: If there are not two pictures, or patches, tokens, windows and head do not fit each other.
        """
        if isinstance(inputs, Tensor) or [image.ndim for image in inputs] != [4, 4]:
            raise ValueError(
                'inputs must be two batches of images, one for the network and one for the tokenizer: use '
                'RandomResizedCropAndInterpolationWithTwoPic with second_size, and TwoNormDataPreprocessor'
            )
        images, second = inputs
        mask = self.draw_mask(len(images), tuple(images.shape[2:]), images.device)
        features = self._encode(images, mask)
        # Gathered and not through head.loss, which would take (B, vocabulary, w, w) logits of the tokenizer and wait
        # for the device to count the masked patches
        logits = self.head.cls_head(take_units(features, mask.masked))  # (B, w * w, C) -> (B, M, vocabulary)
        tokens = mask.select_unsampled(self._tokenize(second, mask.grid))  # (N, h, w) -> (B, M)
        return dict(loss=self.head.loss_module(logits.flatten(0, 1), tokens.flatten()))

    def _encode(self, images: Tensor, mask: WindowMask) -> Tensor:
        """What the network makes of the windows' patches: (N, 3, H, W) -> (B, w * w, C)."""
        patches = mask.select(images_to_units(images, self.patch_size))  # (B, w * w, p * p * 3)
        side = (self.window_size, self.window_size)
        windows = units_to_images(patches.unflatten(1, side), self.patch_size)  # (B, 3, w * p, w * p)
        return self.backbone(windows, mask.is_masked().unflatten(1, side))[0][:, self.backbone.num_extra_tokens :]

    @torch.no_grad()
    def _tokenize(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """(N, 3, H', W') -> (N, h, w) int64."""
        logits = self.target_generator(images)
        if tuple(logits.shape[2:]) != tuple(grid):
            raise ValueError(
                f'the second image is {tuple(images.shape[2:])} px, of which the tokenizer makes '
                f'{tuple(logits.shape[2:])} tokens, but the first has {tuple(grid)} patches: change second_size of '
                'RandomResizedCropAndInterpolationWithTwoPic, so that each patch has a token'
            )
        if logits.shape[1] != self.head.cls_head.out_features:
            raise ValueError(
                f'head.num_embed is {self.head.cls_head.out_features}, but the tokenizer has {logits.shape[1]} tokens'
            )
        return logits.argmax(dim=1)


@MODELS.register_module()
class LoMaRBEiTViT(BEiTViT):
    """MMPretrain's BEiT, started from windows: a whole image has more relative positions than a window.

    MMPretrain resizes tables of relative positions as BEiT does, but with a function that SciPy no longer has (1.14),
    and not far enough for 5x5 windows at 224 px or 7x7 windows at 384 px. This class resizes them itself, and raises
    where a checkpoint does not fit. Its arguments are those of MMPretrain's ``BEiTViT``.
    """

    # A pre-training checkpoint holds these though a fine-tuned backbone does not.
    PRETRAINING_ONLY = ('mask_token', 'ln1.weight', 'ln1.bias')

    def init_weights(self) -> None:
        """Initialise as MMPretrain does, or load a checkpoint strictly (see :func:`start_from_checkpoint`)."""
        if not start_from_checkpoint(self):
            super().init_weights()

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give each layer the shared table of relative positions, resize tables, and start the last norm as it is."""
        own, shared = self.state_dict(), state.get(SHARED)
        tables = [name for name in own if name.endswith(TABLE)]
        adapted = {name: value for name, value in state.items() if not name.endswith(INDEX)}
        if tables:
            adapted.pop(SHARED, None)
        for name in tables:
            if name in state or shared is not None:
                adapted[name] = resize_bias_table(state.get(name, shared), _side(own[name]))
        for name, value in own.items():
            if name.endswith(INDEX) or (name.startswith('ln2.') and name not in state):
                adapted[name] = value
        return adapted


def _side(table: Tensor) -> int:
    """Differences of rows, and of columns, in the table of a square image."""
    return round((len(table) - CLASS_BUCKETS) ** 0.5)


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """Stretch a table of relative positions, as BEiT does (arXiv 2106.08254, its published code).

    The old differences are placed at distances whose gaps grow geometrically from 1 until the largest is the new
    largest one, so that neighbours keep their values, and a cubic spline runs through them. A smaller table is cut out
    of the middle.

    Args:
        table (Tensor): (S * S + 3, H): S x S differences of rows and columns, then the class token's; H heads.
        side (int): S of the new table, odd.
    Returns:
        Tensor: (side * side + 3, H).
    Raises:
        ValueError: If the table is not that of a square.
    """
    old = _side(table)
    if old % 2 == 0 or len(table) != old**2 + CLASS_BUCKETS:
        raise ValueError(
            f'{TABLE} has {len(table)} rows, but a table of square images has S * S + {CLASS_BUCKETS} with S odd'
        )
    if old == side:
        return table
    targets = torch.arange(-(side // 2), side // 2 + 1, dtype=torch.float64)
    weights = _spline_weights(_geometric_places(old // 2, side // 2), targets)
    differences = table[:-CLASS_BUCKETS].double().unflatten(0, (old, old))
    differences = torch.einsum('ra,cb,abh->rch', weights, weights, differences).flatten(0, 1)
    return torch.cat((differences.to(table.dtype), table[-CLASS_BUCKETS:]))


def _geometric_places(count: int, last: int) -> Tensor:
    """-last ... -1, 0, 1 ... last, ``count`` on each side, with gaps that grow by a constant factor of at least 1."""
    low, high = 1.0, float(last)
    for _ in range(60):  # bisection
        factor = (low + high) / 2
        gaps = factor ** torch.arange(count, dtype=torch.float64)
        low, high = (low, factor) if gaps.sum() > last else (factor, high)
    places = gaps.cumsum(0)
    return torch.cat((-places.flip(0), places.new_zeros(1), places))


def _spline_weights(places: Tensor, targets: Tensor) -> Tensor:
    """(T, P) weights of values at ``places`` in their cubic spline ("not a knot" at the ends) at ``targets``."""
    powers = torch.arange(min(4, len(places)))

    def basis(x: Tensor) -> Tensor:
        x, knots = x[:, None] / places[-1], places[2:-2] / places[-1]
        return torch.cat((x**powers, (x - knots).clamp(min=0) ** 3), dim=1)

    return torch.linalg.solve(basis(places), basis(targets), left=False)
