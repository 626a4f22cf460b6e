"""UM-MAE with Swin in its plain formulation, step by step as in the paper (arXiv 2205.10063, section 3).

It has the same loss, gradients and reconstructions as :class:`mm_ummae.models.UMMAE`, without the ideas that make that
fast: the baseline of the comparisons. The whole image is embedded, each token carries its position in it, and the
position MLP runs on every pair of tokens of every window of every image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_ummae.masking import UniformMask, images_to_units
from mm_ummae.models import UMMAE, UMSwin
from mm_ummae.models.layers import LogPositionBias, SwinBlock, WindowAttention
from mm_ummae.registry import MODELS

TOKENS = 4  # along a unit's side, at stage 1
SHIFT_PENALTY = -100.0  # added to the logits of two tokens that only the cyclic shift brought into one window


@MODELS.register_module()
class PlainUMMAE(UMMAE):
    """:class:`UMMAE` with a Swin encoder in the plain formulation.

    It is built from the config of a :class:`UMMAE` with another ``type`` and has the same parameters, so it loads the
    same checkpoints. The maps of all stages must consist of whole windows, and activations are always kept (``with_cp``
    has no effect).

    Args:
        args, kwargs: Those of :class:`UMMAE`.

    Raises:
        ValueError: If the backbone is not :class:`UMSwin`, or lacks the norm after its last stage.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.backbone, UMSwin):
            raise ValueError(
                f'backbone is {type(self.backbone).__name__}, but the plain formulation is written for mm_ummae.UMSwin'
            )
        if self.backbone.norm is None:
            raise ValueError(
                f'backbone.out_indices is {self.backbone.out_indices} and backbone.norm is None, but the plain '
                'formulation decodes the last stage after its norm: it needs final_norm=True and 3 in out_indices'
            )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mask: UniformMask | None = None
    ) -> dict[str, Tensor]:
        """Predict all units and weight their mean squared error by the mask: (N, 3, H, W) -> ``dict(loss=scalar)``."""
        mask = self._mask(inputs, mask)
        pixels = self.head.pred(self._decode(inputs, mask)).flatten(1, 2)  # (N, L, 768)
        target = images_to_units(inputs).flatten(1, 2)
        if self.head.norm_pix:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + self.head.EPS).sqrt()
        error = (pixels - target).square().mean(-1)  # float32 also under autocast, as the images are
        counts = mask.unsampled()
        return dict(loss=(error * counts).sum() / counts.sum())

    def _decode(self, inputs: Tensor, mask: UniformMask) -> Tensor:
        """(N, 3, H, W) -> (N, H / 16, W / 16, D), a token for each unit in raster order (section 3.3)."""
        neck, latent = self.neck, self._encode(inputs, mask)
        n, rows, columns = mask.offsets.shape
        kept, height, width = rows * columns, 2 * rows, 2 * columns
        # (N, h, w, 4D) -> (N, D, 2h, 2w) -> (N, V, D) in cell order; an odd number of cells was padded
        sampled = F.linear(latent, neck.expand.weight, neck.expand.bias)
        sampled = F.pixel_shuffle(sampled.permute(0, 3, 1, 2), 2)
        sampled = sampled[:, :, :rows, :columns].flatten(2).transpose(1, 2)

        row, column = _sampled_positions(mask.offsets, 1)
        cells = (row * width + column).flatten(1)  # (N, V), raster index of the sampled unit of each cell
        raster = mask.unsampled().byte().argsort(dim=1, stable=True)  # (N, L), sampled units first
        unsampled = raster[:, kept:]
        positions = neck._positions(height, width, inputs.device).flatten(0, 1)
        sampled = sampled + positions[raster[:, :kept] if neck.published_positions else cells]
        tokens = torch.cat((sampled, neck.mask_token + positions[unsampled]), dim=1)
        for block in neck.blocks:
            tokens = tokens + block.attn(block.ln1(tokens))
            tokens = tokens + block.ffn.layers(block.ln2(tokens))
        tokens = neck.norm(tokens)
        restore = torch.cat((cells, unsampled), dim=1).argsort(dim=1)
        tokens = tokens.gather(1, restore[..., None].expand_as(tokens))
        return tokens.view(n, height, width, -1)

    def _encode(self, images: Tensor, mask: UniformMask) -> Tensor:
        """(N, 3, H, W) -> (N, H / 64, W / 64, C), the last map of the sampled units."""
        backbone = self.backbone
        x = backbone.patch_embed(images)  # (N, H / 4, W / 4, C)
        n, height, width, channels = x.shape
        if backbone.secondary_token is not None:
            token = backbone.patch_embed.norm(backbone.secondary_token).to(x.dtype)
            # Units that were not sampled are hidden too; they are dropped below
            hidden = mask.hidden().view(n, height // TOKENS, width // TOKENS)
            hidden = hidden.repeat_interleave(TOKENS, 1).repeat_interleave(TOKENS, 2)
            x = torch.where(hidden[..., None], token, x)

        rows, columns = _sampled_positions(mask.offsets, TOKENS)
        index = (rows * width + columns).flatten(1)[..., None].expand(-1, -1, channels)
        x = x.flatten(1, 2).gather(1, index).view(n, height // 2, width // 2, channels)
        positions = torch.stack((rows, columns), dim=-1).to(backbone.patch_embed.projection.weight.dtype)
        for number, stage in enumerate(backbone.stages, start=1):
            if stage.downsample is not None:
                x, positions = stage.downsample(x), positions[:, ::2, ::2] / 2
            window, shift = stage.window_and_shift(masked=True)
            _check_whole_windows(number, x.shape[1], x.shape[2], window)
            for i, block in enumerate(stage.blocks):
                x = _run_block(block, x, positions, window, shift if i % 2 else 0)
        return backbone.norm(x)


def _check_whole_windows(stage: int, height: int, width: int, window: int) -> None:
    if height % window or width % window:
        raise ValueError(
            f'the map of stage {stage} has {height}x{width} tokens, but the plain formulation does not pad: its sides '
            f'must be multiples of the window, {window} tokens'
        )


def _sampled_positions(offsets: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Positions of the sampled units in the full image: (N, gh, gw) -> rows and columns, (N, gh * side, gw * side).

    ``side`` is the side of a unit in the tokens that are counted: 1 for units, 4 at stage 1.
    """
    offsets = offsets.repeat_interleave(side, 1).repeat_interleave(side, 2)
    row = torch.arange(offsets.shape[1], device=offsets.device)[:, None]
    column = torch.arange(offsets.shape[2], device=offsets.device)
    rows = (2 * (row // side) + offsets // 2) * side + row % side
    columns = (2 * (column // side) + offsets % 2) * side + column % side
    return rows, columns


def _run_block(block: SwinBlock, x: Tensor, positions: Tensor, window: int, shift: int) -> Tensor:
    """(N, h, w, C), (N, h, w, 2) -> (N, h, w, C)."""
    height, width = x.shape[1:3]
    y, shifted = block.norm1(x), None
    if shift:
        y, positions = (value.roll((-shift, -shift), (1, 2)) for value in (y, positions))
        shifted = _shift_mask(height, width, window, shift, x.device)
    y, positions = _to_windows(y, window), _to_windows(positions, window)  # (N * windows, T, C) and (..., T, 2)
    y = _attend(block.attn, y, _bias(block.attn.position_bias, positions, shifted))
    y = _from_windows(y, height, width, window)
    if shift:
        y = y.roll((shift, shift), (1, 2))
    x = x + block.drop_path(y)
    return x + block.drop_path(block.ffn.layers(block.norm2(x)))


def _bias(position_bias: LogPositionBias, positions: Tensor, shifted: Tensor | None) -> Tensor:
    """Bias of every pair of tokens of every window.

    Args:
        position_bias (LogPositionBias): The position MLP.
        positions (Tensor): (N * windows, T, 2), rows and columns in the full image, in tokens of the stage.
        shifted (Tensor | None): (windows, T, T) bool, True for pairs that must not attend to each other.
    Returns:
        Tensor: (N * windows, heads, T, T).
    """
    difference = positions[:, None] - positions[:, :, None]  # (B, query, key, 2), key minus query
    spaced = difference.sign() * (1 + difference.abs()).log()
    bias = position_bias.fc2(F.relu(position_bias.fc1(spaced))).permute(0, 3, 1, 2)
    if shifted is None:
        return bias
    by_window = bias.unflatten(0, (-1, len(shifted)))  # (N, windows, heads, T, T)
    return (by_window + SHIFT_PENALTY * shifted[:, None].to(bias.dtype)).flatten(0, 1)


def _attend(attn: WindowAttention, x: Tensor, bias: Tensor) -> Tensor:
    """Attention with all scores in memory: (B, T, C) and a bias (B, heads, T, T) -> (B, T, C)."""
    batch, tokens, channels = x.shape
    # (B, T, 3C) -> (3, B, heads, T, C / heads)
    qkv = attn.qkv(x).view(batch, tokens, 3, attn.num_heads, channels // attn.num_heads).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
    x = logits.softmax(dim=-1) @ value
    return attn.proj(x.transpose(1, 2).reshape(batch, tokens, channels))


def _shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, T, T) bool, True for a token that the cyclic shift moved across an edge and one that it did not."""
    row = torch.arange(height, device=device) >= height - shift
    column = torch.arange(width, device=device) >= width - shift
    region = _to_windows((2 * row[:, None] + 1 * column)[None, ..., None], window).squeeze(-1)  # (windows, T)
    return region[:, :, None] != region[:, None]


def _to_windows(x: Tensor, window: int) -> Tensor:
    """(N, h, w, C) -> (N * windows, T, C)."""
    n, height, width, channels = x.shape
    x = x.view(n, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, channels)


def _from_windows(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Inverse of :func:`_to_windows`: (N * windows, T, C) -> (N, h, w, C)."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, x.shape[-1])
