"""LoMaR: draw local windows, encode each on its own, predict the masked patches (arXiv 2206.00790)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_ummae.masking import (
    WindowMask,
    WindowSampler,
    check_pairing,
    check_window_mask,
    check_windows,
    take_units,
    unit_shape,
)
from mm_ummae.models.backbones.lomar_vit import LoMaRViT
from mm_ummae.models.heads.pixel_heads import LoMaRHead
from mm_ummae.models.necks.lomar_decoder import LoMaRDecoder
from mm_ummae.registry import MODELS

from .masked_pixel_model import MaskedPixelModel


@MODELS.register_module()
class LoMaR(MaskedPixelModel):
    """Local Masked Reconstruction: each image is seen through a few windows, each of which is a sequence of its own.

    Without a neck, as published, the encoder sees all patches of a window, masked ones as its mask token, and the head
    predicts from its output. With one, :class:`LoMaRDecoder`, it sees the visible patches only and the decoder adds the
    others: the asymmetric architecture of the paper's ablation. Relative or absolute positions are the backbone's
    and the decoder's ``positions``.

    Args:
        backbone (dict): :class:`LoMaRViT`, with ``mask_token=True`` unless there is a neck.
        head (dict): :class:`LoMaRHead`.
        neck (dict, optional): :class:`LoMaRDecoder`. Default none.
        window_size (int): Side of a window in patches. Default 7.
        num_windows (int): Windows of a step, the same for all images. Default 4.
        mask_ratio (float): Share of a window's patches that is masked. Default 0.8.
        pairing (str): ``all`` shows each image through every window. ``published`` pairs images and windows as the
            authors' code does: wherever the number of windows divides the batch, each image is seen through one
            window, several times. Default ``all``.
        kwargs: ``data_preprocessor``, ``init_cfg``, ... of MMPretrain's ``BaseSelfSupervisor``.

    Raises:
        ValueError: If a part is of another kind or width, images of the backbone's ``img_size`` are no grid of patches
            or too small for the windows, nothing or everything would be masked, the pairing is unknown, patch sizes
            differ, or there is not exactly one mask token.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        window_size: int = 7,
        num_windows: int = 4,
        mask_ratio: float = 0.8,
        pairing: str = 'all',
        **kwargs,
    ) -> None:
        super().__init__(backbone=backbone, neck=neck, head=head, **kwargs)
        if not isinstance(self.backbone, LoMaRViT) or not isinstance(self.head, LoMaRHead):
            raise ValueError(
                f'backbone is {type(self.backbone).__name__} and head {type(self.head).__name__}, but LoMaR needs '
                'mm_ummae.LoMaRViT, which encodes windows, and mm_ummae.LoMaRHead'
            )
        grid = unit_shape(tuple(self.backbone.img_size), self.backbone.patch_size)
        check_windows(grid, window_size, num_windows, mask_ratio)
        self.sampler = WindowSampler(window_size, num_windows, mask_ratio, check_pairing(pairing))
        if self.backbone.patch_size != self.head.patch_size:
            raise ValueError(
                f'backbone.patch_size is {self.backbone.patch_size} and head.patch_size {self.head.patch_size}, but '
                'they must be the same: a token predicts the pixels of its patch'
            )
        if self.with_neck and not isinstance(self.neck, LoMaRDecoder):
            raise ValueError(f'neck is {type(self.neck).__name__}, but LoMaR takes mm_ummae.LoMaRDecoder, or none')
        self.check_widths()
        if (self.backbone.mask_token is None) != self.with_neck:
            raise ValueError(
                f'backbone.mask_token is {self.backbone.mask_token is not None} and neck {neck}, but exactly one of '
                'them adds the masked patches: set backbone.mask_token=True, or give a neck mm_ummae.LoMaRDecoder'
            )

    def draw_mask(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> WindowMask:
        """Draw windows and masks as training does; see :meth:`MaskedPixelModel.draw_mask`."""
        return self.sampler.draw(batch_size, unit_shape(image_size, self.backbone.patch_size), device, generator)

    def check_mask(self, mask: WindowMask, batch_size: int, image_size: tuple[int, int]) -> None:
        """Raise ValueError if a mask that a user passed in does not fit."""
        check_window_mask(mask, batch_size, unit_shape(image_size, self.backbone.patch_size))

    def _decode(self, inputs: Tensor, mask: WindowMask) -> Tensor:
        """(N, 3, H, W) -> (B, M, C), tokens of the masked patches."""
        tokens = self.backbone(inputs, mask)[0]
        if self.with_neck:
            tokens = self.neck(tokens, mask)
        tokens = tokens[:, tokens.shape[1] - mask.window_size**2 :]  # without class token
        return take_units(tokens, mask.masked)

    def _results(self, tokens: Tensor, inputs: Tensor, mask: WindowMask, from_visible: bool) -> dict[str, Tensor]:
        """Fields of :meth:`predict`.

        Beside the common ones: ``window_corner``, (W, 2) int64, row and column of a window's first patch;
        ``window_masked``, (W, w, w) bool; ``window_reconstruction``, (W, 3, w * p, w * p), the window's prediction of
        masked patches among the visible ones, in pixel values. In ``reconstruction``, of the whole image, a patch is
        the mean over the windows that mask it, and the mean colour outside all windows.
        """
        sequences, size = mask.by_image(), mask.window_size
        reconstruction, windows = self.head.predict(tokens, inputs, mask, from_visible)
        return dict(
            reconstruction=self.denormalize(reconstruction),
            unsampled=mask.unsampled().view(-1, *mask.grid),
            hidden=mask.hidden().view(-1, *mask.grid),
            window_corner=mask.corner[sequences],
            window_masked=mask.is_masked()[sequences].unflatten(2, (size, size)),
            window_reconstruction=self.denormalize(windows)[sequences],
        )
