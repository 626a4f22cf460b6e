"""Small models, masks and images that several test modules build."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mm_ummae.masking import UniformMask, draw_random_mask, draw_uniform_mask
from mm_ummae.models import UMPVT, UMSwin

Pyramid = type[UMSwin] | type[UMPVT]
SMALL = {
    UMSwin: dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), position_dims=4),
    UMPVT: dict(embed_dims=(8, 16, 24, 32), depths=(2, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(8, 8, 4, 4)),
}
ALL = (0, 1, 2, 3)  # out_indices


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    """Masks of n images."""
    return draw_uniform_mask(n, size, ratio, generator=torch.Generator().manual_seed(seed))


def draw_replaced(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(N, H / 16, W / 16) bool, as SimMIM draws it."""
    mask = draw_random_mask(n, size, generator=torch.Generator().manual_seed(seed))
    return mask.unsampled().view(n, size[0] // 16, size[1] // 16)


def disturbed(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """The same model with every parameter moved: nothing is left at zero or one, so each matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((1 if 'position_bias' in name else scale) * torch.randn_like(parameter))
    return model


def made(kind: Pyramid, arch: str | dict | None = None, img_size: int | tuple[int, int] = 128, **kwargs) -> nn.Module:
    """A small pyramid with disturbed weights."""
    torch.manual_seed(0)
    return disturbed(kind(arch or SMALL[kind], img_size=img_size, **kwargs))


def pixels(units: Tensor, height: int) -> Tensor:
    """(N, L) bool over units -> (N, 1, H, W) over pixels."""
    units = units.view(len(units), 1, height // 16, -1)
    return units.repeat_interleave(16, 2).repeat_interleave(16, 3)


def noisy(images: Tensor, hidden: Tensor) -> Tensor:
    """The images with strong noise where ``hidden`` (N, 1, H, W) says so."""
    changed = torch.where(hidden, 100 * seeded(*images.shape, seed=1), images)
    assert not torch.equal(changed, images)
    return changed


@torch.no_grad()
def maps(model: nn.Module, images: Tensor, *masks: UniformMask | None, **kwargs: Tensor) -> tuple[Tensor, ...]:
    """The maps of a backbone in eval mode."""
    model.eval()  # MMPretrain's ViT returns nothing here
    return model(images, *masks, **kwargs)


# References: masking by cells, written as the paper explains it


def raster_to_cells(units: Tensor) -> Tensor:
    """Inverse of :func:`cells_to_raster`: (N, 2 gh, 2 gw, ...) -> (N, gh, gw, 4, ...)."""
    n, height, width, *rest = units.shape
    units = units.view(n, height // 2, 2, width // 2, 2, *rest).transpose(2, 3)
    return units.reshape(n, height // 2, width // 2, 4, *rest)


def take_sampled(cells: Tensor, offsets: Tensor) -> Tensor:
    """The sampled unit of each cell: (N, gh, gw, 4, ...) -> (N, gh, gw, ...)."""
    index = offsets.view(*offsets.shape, 1, *([1] * (cells.dim() - 4))).expand(*cells.shape[:3], 1, *cells.shape[4:])
    return cells.gather(3, index).squeeze(3)


def take_unsampled(cells: Tensor, offsets: Tensor) -> Tensor:
    """The three units of each cell that were not sampled, in offset order: (N, gh, gw, 4, ...) -> (N, gh, gw, 3, ...).

    Example: offset 1 leaves units 0, 2, 3. Nothing here depends on values, so nothing synchronises.
    """
    order = torch.arange(3, device=offsets.device)
    index = order + (order >= offsets[..., None])  # (N, gh, gw, 3)
    index = index.view(*index.shape, *([1] * (cells.dim() - 4))).expand(*index.shape, *cells.shape[4:])
    return cells.gather(3, index)
