"""BEiT's pre-training on LoMaR's local windows, with MMPretrain's parts (arXiv 2206.00790, 2106.08254)."""

from __future__ import annotations

import torch
from mmpretrain.models.selfsup import BEiT
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.checkpoints.loading import load_pretrained, pretrained_cfg
from mm_ummae.masking import (
    WindowMask,
    WindowSampler,
    check_pairing,
    check_windows,
    images_to_units,
    take_units,
    unit_shape,
    units_to_images,
)
from mm_ummae.registry import MODELS


@MODELS.register_module()
class LoMaRBEiT(BEiT):
    """BEiT that sees each image through a few windows and predicts the tokens of their masked patches.

    A window is an image of its own to the network: MMPretrain's ``BEiTPretrainViT`` with ``img_size`` of a window,
    so that its relative positions are those within one. The tokenizer sees the second image once and as a whole.

    The paper reports the result of LoMaR in BEiT, but neither the mask ratio nor the positions: the ratio
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
        width, taken = self.backbone.embed_dims, self.head.cls_head.in_features
        if taken != width:
            raise ValueError(
                f'head.embed_dims is {taken}, but the tokens of the backbone have {width} channels: set '
                f'model.head.embed_dims={width}'
            )
        check_windows(grid, window_size, 1, mask_ratio)  # num_windows depends on the images
        self.sampler = WindowSampler(window_size, num_windows, mask_ratio, check_pairing(pairing))
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
        return self.sampler.draw(batch_size, unit_shape(image_size, self.patch_size), device, generator)

    def loss(self, inputs: list[Tensor], data_samples: list[DataSample] | None = None) -> dict[str, Tensor]:
        """Cross entropy of the masked patches' tokens, the mean over all windows.

        Args:
            inputs (list[Tensor]): (N, 3, H, W) for the network and (N, 3, H', W') for the tokenizer, which makes one
                token of it for each patch.
            data_samples (list[DataSample], optional): Not used.
        Returns:
            dict[str, Tensor]: ``loss``.
        Raises:
            ValueError: If there are not two images, or patches, tokens, windows and head do not fit each other.
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
        tokens = mask.select_targets(self._tokenize(second, mask.grid))  # (N, h, w) -> (B, M)
        return dict(loss=self.head.loss_module(logits.flatten(0, 1), tokens.flatten()))

    def _encode(self, images: Tensor, mask: WindowMask) -> Tensor:
        """Encode the windows: (N, 3, H, W) -> (B, w * w, C)."""
        patches = mask.select(images_to_units(images, self.patch_size))  # (B, w * w, p * p * 3)
        side = (mask.window_size, mask.window_size)
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
