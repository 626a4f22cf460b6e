"""Small models, masks, images and references that several test modules use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mm_ummae.masking import (
    UniformMask,
    UnitMask,
    WindowMask,
    draw_random_mask,
    draw_uniform_mask,
    draw_window_mask,
)
from mm_ummae.models import UMMAE, UMPVT, UMSimMIM, UMSwin
from mm_ummae.registry import MODELS

Pyramid = type[UMSwin] | type[UMPVT]
SMALL = {
    UMSwin: dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), position_dims=4),
    UMPVT: dict(embed_dims=(8, 16, 24, 32), depths=(2, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(8, 8, 4, 4)),
}
VIT = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
ALL = (0, 1, 2, 3)  # out_indices
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SAMPLINGS = {'uniform': draw_uniform_mask, 'random': draw_random_mask}


# Images and masks


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_mask(
    sampling: str, n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0
) -> UniformMask | UnitMask:
    """Masks of n images, by ``uniform`` or ``random`` sampling; ``ratio`` is that of Secondary Masking."""
    return SAMPLINGS[sampling](n, size, secondary_ratio=ratio, generator=torch.Generator().manual_seed(seed))


def draw(n: int, size: tuple[int, int], ratio: float = 0.25, seed: int = 0) -> UniformMask:
    """Uniform masks of n images."""
    return draw_mask('uniform', n, size, ratio, seed)


def draw_replaced(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(N, H / 16, W / 16) bool, as SimMIM draws it."""
    return draw_mask('random', n, size, 0, seed).unsampled().view(n, size[0] // 16, size[1] // 16)


def draw_windows(n: int, grid: tuple[int, int], *args: float, seed: int = 0, **kwargs: str) -> WindowMask:
    """Windows of n images; ``args`` are window_size, num_windows and mask_ratio, by default 4 and 3 at 0.8."""
    generator = torch.Generator().manual_seed(seed)
    return draw_window_mask(n, grid, *(args or (4, 3)), generator=generator, **kwargs)


def secondary_units(mask: UniformMask | UnitMask) -> Tensor:
    """(N, L) bool in raster order, True = kept but hidden again."""
    return mask.hidden() & ~mask.unsampled()


def pixels(units: Tensor, height: int, side: int = 16) -> Tensor:
    """(N, L) bool over units of ``side`` pixels -> (N, 1, H, W) over pixels."""
    units = units.view(len(units), 1, height // side, -1)
    return units.repeat_interleave(side, 2).repeat_interleave(side, 3)


def noisy(images: Tensor, hidden: Tensor) -> Tensor:
    """The images with strong noise where ``hidden`` (N, 1, H, W) is True."""
    changed = torch.where(hidden, 100 * seeded(*images.shape, seed=1), images)
    assert not torch.equal(changed, images)
    return changed


# Models


def disturbed(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """The same model with every parameter moved away from zero or one, so that each has an effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((1 if 'position_bias' in name else scale) * torch.randn_like(parameter))
    return model


def made(kind: Pyramid, arch: str | dict | None = None, img_size: int | tuple[int, int] = 128, **kwargs) -> nn.Module:
    """A small pyramid with disturbed weights."""
    torch.manual_seed(0)
    return disturbed(kind(arch or SMALL[kind], img_size=img_size, **kwargs))


@torch.no_grad()
def maps(model: nn.Module, images: Tensor, *masks: UniformMask | None, **kwargs: Tensor) -> tuple[Tensor, ...]:
    """The maps of a backbone in eval mode."""
    model.eval()  # MMPretrain's ViT returns nothing here
    return model(images, *masks, **kwargs)


def blocks(model: nn.Module) -> list[nn.Module]:
    """All transformer blocks of a pyramid."""
    return [block for stage in model.stages for block in stage.blocks]


def layers(names: Iterable[str], depths: dict[str, int]) -> dict[str, int]:
    """The expected layer of each parameter, by the prefix of its name; every prefix must occur."""
    names = list(names)
    assert all(any(name.startswith(start) for name in names) for start in depths)
    return {name: next(depth for start, depth in depths.items() if name.startswith(start)) for name in names}


# Algorithms

BACKBONES = {
    'swin': dict(type='mm_ummae.UMSwin', arch=SMALL[UMSwin]),
    'pvt': dict(type='mm_ummae.UMPVT', arch=SMALL[UMPVT], learn_positions=False),
    'vit': dict(type='mm_ummae.UMViT', arch=VIT, learn_positions=False),
}
WIDTHS = {'swin': 64, 'pvt': 32, 'vit': 16}  # channels of the last map


def made_ummae(
    kind: str = 'swin',
    sampling: str = 'uniform',
    norm_pix: bool = True,
    backbone: dict | None = None,
    neck: dict | None = None,
    head: dict | None = None,
    **kwargs: Any,
) -> UMMAE:
    """A model built as from a config, with disturbed weights."""
    torch.manual_seed(0)
    decoder = dict(embed_dims=32, depth=1, num_heads=2, img_size=128, in_channels=WIDTHS[kind])
    decoder['type'] = 'mm_ummae.UMViTDecoder' if kind == 'vit' else 'mm_ummae.UMMAEDecoder'
    cfg = dict(
        type='mm_ummae.UMMAE',
        backbone={**BACKBONES[kind], 'img_size': 128, 'secondary_token': True, **(backbone or {})},
        neck={**decoder, **(neck or {})},
        head={'type': 'mm_ummae.UMMAEHead', 'in_channels': 32, 'norm_pix': norm_pix, **(head or {})},
        sampling=sampling,
    )
    return disturbed(MODELS.build(dict(cfg, **kwargs)), 0.1)


def made_simmim(
    kind: str = 'swin', sampling: str = 'random', backbone: dict | None = None, head: dict | None = None, **kwargs: Any
) -> UMSimMIM:
    """A model built as from a config, with disturbed weights."""
    torch.manual_seed(0)
    cfg = dict(
        type='mm_ummae.UMSimMIM',
        backbone={**BACKBONES[kind], 'img_size': 128, 'mask_token': True, **(backbone or {})},
        head={'type': 'mm_ummae.UMSimMIMHead', 'in_channels': WIDTHS[kind], **(head or {})},
        sampling=sampling,
    )
    return disturbed(MODELS.build(dict(cfg, **kwargs)), 0.1)


# Training


def check_training(model: nn.Module, images: Tensor, mask: Any = None) -> None:
    """One step of an algorithm: a finite loss, and every trained weight gets a gradient."""
    loss = model.train()(images, mode='loss', mask=mask)['loss']
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if name == 'backbone.pos_embed':
            assert parameter.grad is None
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A window of one token has nothing to attend to, and a bias that all keys share cancels in softmax
        if 'attn' not in name:
            assert parameter.grad.abs().max() > 0, name


def train_losses(model: nn.Module, steps: int, mask: Any) -> list[float]:
    """Losses before and after each step on one batch of 2 images of 64 px, from initial weights."""
    torch.manual_seed(0)
    model.init_weights()
    model.train()
    images = nn.functional.interpolate(seeded(2, 3, 8, 8), (64, 64), mode='bicubic')  # unlike noise they can be learned
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps + 1):
        loss = model(images, mode='loss', mask=mask)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Recorder(TorchDispatchMode):
    """Names of all operations, and in ``waiting`` of those for whose result the host must wait for the device."""

    WAITING = ('_local_scalar_dense', 'nonzero', 'masked_select', 'item', 'is_nonzero', 'equal', 'unique')

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.waiting: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        self.names.add(name)
        indices = args[1] if name.startswith(('index', '_index')) and len(args) > 1 else ()
        boolean = any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (indices if isinstance(indices, (list, tuple)) else (indices,))
        )
        # Without its output size, repeating by a tensor counts values on the host
        counted = name == 'repeat_interleave' and (kwargs or {}).get('output_size') is None
        if name.startswith(self.WAITING) or boolean or counted:
            self.waiting.add(name)
        return func(*args, **(kwargs or {}))


# References


def all_indices(shape: tuple[int, ...]) -> list[list[int]]:
    """The indices of all elements of a tensor of two or more dimensions."""
    return torch.cartesian_prod(*map(torch.arange, shape)).tolist()


def slow_unit(offset: int, row: int, column: int) -> tuple[int, int]:
    """Row and column in the image of the unit that cell (row, column) keeps."""
    return 2 * row + (offset >= 2), 2 * column + (offset in (1, 3))


def slow_target(image: Tensor, row: int, column: int, norm_pix: bool, side: int = 16) -> Tensor:
    """Pixels of a unit by (row, column, channel), standardised by its unbiased variance."""
    rows, columns = (slice(side * place, side * place + side) for place in (row, column))
    unit = image[:, rows, columns].permute(1, 2, 0).flatten()
    if not norm_pix:
        return unit
    mean = unit.sum() / len(unit)
    variance = (unit - mean).square().sum() / (len(unit) - 1)
    return (unit - mean) / (variance + 1e-6).sqrt()
