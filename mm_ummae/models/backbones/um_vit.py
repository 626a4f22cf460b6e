"""ViT with Uniform Sampling and Secondary Masking, or plain MAE's Random Sampling (arXiv 2205.10063, 2111.06377)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mm_ummae.masking import UNIT, UniformMask, UnitMask, images_to_units, take_units, unit_shape
from mm_ummae.models.layers import encode_none, keep_traced_size
from mm_ummae.registry import MODELS

from .plain_vit import PlainViT


@MODELS.register_module()
class UMViT(PlainViT):
    """MMPretrain's ViT with 16-px patches that can skip masked units.

    Without a mask it is MMPretrain's class, with the same parameter names. With one, only the kept units are embedded.

    Args:
        arch (str | dict): Architecture, as in MMPretrain's ``VisionTransformer``. Default ``base``.
        img_size (int | tuple[int, int]): Nominal image size in pixels, that of the position embedding, which is resized
            bicubically for other inputs. Default 224.
        learn_positions (bool): Train the position embedding, which starts from sine-cosine values. Pre-training keeps
            it fixed. Default True.
        secondary_token (bool): Create the token that replaces secondary-masked units. Only pre-training needs it;
            without it ``mask.secondary`` has no effect. Default False.
        out_type (str): Kind of output for whole images, as in MMPretrain's class. Default ``featmap``: (N, C, h, w),
            as pyramids return it, so that the same necks fit.
        kwargs: Others of MMPretrain's ``VisionTransformer``; the class token is always there.

    Raises:
        ValueError: If the patches are not 16 px, or there is no class token.
    """

    PRETRAINING_ONLY = ('secondary_token', *PlainViT.PRETRAINING_ONLY)
    SAMPLING = ('uniform', 'random')  # kinds of sampling it can encode: a sequence of any units

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 224,
        learn_positions: bool = True,
        secondary_token: bool = False,
        out_type: str = 'featmap',
        **kwargs,
    ) -> None:
        if not kwargs.get('with_cls_token', True):
            raise ValueError('with_cls_token is False, but the decoder takes the class token too')
        super().__init__(arch, img_size, learn_positions, out_type, **kwargs)
        projection = self.patch_embed.projection
        if projection.kernel_size != (UNIT, UNIT) or projection.stride != (UNIT, UNIT):
            raise ValueError(
                f'patches have {projection.kernel_size} px and a stride of {projection.stride} px, '
                f'but a patch is a unit of {UNIT} px'
            )
        self.secondary_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims)) if secondary_token else None

    def forward(self, images: Tensor, mask: UniformMask | UnitMask | None = None) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            images (Tensor): (N, 3, H, W), normalised. With a mask the sides must be multiples of 16.
            mask (UniformMask | UnitMask, optional): Units to keep and to hide again. Default: the whole image.
        Returns:
            tuple[Tensor, ...]: Without a mask what ``out_type`` says. With one a single (N, 1 + V, C): class token,
            then the kept units in raster order.
        Raises:
            ValueError: If the mask is for other images, or a side is no multiple of 16.
        """
        if mask is None:
            encode = super().forward
            return encode(keep_traced_size(images)) if images.shape[0] else encode_none(encode, images)
        mask = mask.by_index()
        units = unit_shape(tuple(images.shape[2:]))
        if tuple(mask.grid) != units or len(mask.kept) != len(images):
            raise ValueError(
                f'mask is for {len(mask.kept)} images of {tuple(mask.grid)} units, '
                f'but {len(images)} images of {units} came'
            )
        x = self._embed_patches(take_units(images_to_units(images).flatten(1, 2), mask.kept))  # (N, V, C)
        if self.secondary_token is not None:
            x = torch.where(mask.secondary[..., None], self.secondary_token.to(x.dtype), x)
        class_position, positions = self._resized_positions(mask.grid).tensor_split((1,), dim=1)
        x = x + take_units(positions.expand(len(x), -1, -1), mask.kept)
        x = torch.cat(((self.cls_token + class_position).expand(len(x), -1, -1), x), dim=1)
        x = self.pre_norm(self.drop_after_pos(x))
        for layer in self.layers:
            x = layer(x)
        return (self.ln1(x) if self.final_norm else x,)
