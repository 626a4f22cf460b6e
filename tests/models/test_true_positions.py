"""Swin V2 with true positions: the parameters of the host at the differences of the full image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_ummae.masking import compact, sampled_positions
from mm_ummae.models import UMBackbone
from mm_ummae.models.backbones.true_positions import CompactMap, TruePositionAttention, point_bias
from mm_ummae.models.layers import WholeImagePositions
from mm_ummae.registry import MODELS
from tests.builders import draw, seeded

SIZES = dict(embed_dims=16, depths=[2, 2, 1, 1], num_heads=[1, 2, 2, 2], extra_norm_every_n_blocks=2)
# Windows of 3 are padded at all stages, also at the sizes below
COMMON = dict(type='mmpretrain.SwinTransformerV2', arch=SIZES, pad_small_map=True, out_indices=(0, 1, 2, 3))
NETWORKS: dict[str, dict[str, Any]] = {
    'windows of 3': dict(COMMON, window_size=3, drop_path_rate=0.0),
    'pre-trained with windows of 6': dict(
        COMMON, window_size=4, drop_path_rate=0.0, pretrained_window_sizes=[0, 6, 0, 0]
    ),
}
every_network = pytest.mark.parametrize('name', NETWORKS)


def built(name: str, **options: Any) -> UMBackbone:
    """With random weights everywhere, tables and biases too."""
    torch.manual_seed(0)
    backbone = UMBackbone(NETWORKS[name], img_size=128, true_positions=True, secondary_token=True, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone


def attention(name: str, shift: int) -> nn.Module:
    block = built(name).network.stages[0].blocks[1 if shift else 0]
    assert isinstance(block.attn, TruePositionAttention)
    return block.attn


@every_network
@torch.no_grad()
def test_whole_images_are_those_of_the_host(name: str) -> None:
    """The same class with the same weights gives the same bits, at an odd size that is padded."""
    backbone = built(name)
    stock = MODELS.build(NETWORKS[name])
    state = {key: value for key, value in backbone.state_dict().items() if key != 'secondary_token'}
    assert state.keys() == stock.state_dict().keys()
    stock.load_state_dict(state, strict=False)  # it drops tables that it computes
    stock.eval()  # MMPretrain's returns None
    images = seeded(2, 3, 100, 76)
    assert all(map(torch.equal, backbone(images), stock(images)))


@every_network
@torch.no_grad()
def test_bias_at_the_positions_of_a_window_is_that_of_the_host(name: str) -> None:
    """Of every pair of tokens, with and without another window of the weights' pre-training."""
    backbone = built(name)
    for stage in backbone.network.stages[:2]:
        part = stage.blocks[0].attn.w_msa
        window = part.window_size[0]
        positions = WholeImagePositions(window, 0)()
        ours = positions.expand_bias(point_bias(part, positions.points))[0]
        index = part.relative_position_index.flatten()
        table = 16 * part.cpb_mlp(part.relative_coords_table).view(-1, part.num_heads).sigmoid()
        theirs = table[index].view(window**2, window**2, -1).permute(2, 0, 1)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def pair_bias(part: nn.Module, row: int, column: int) -> Tensor:
    """Bias of one pair, query minus key in tokens of the full image, from the definition."""
    window = part.window_size[0]
    scaled = 8 * torch.tensor([row, column]) / (window - 1)
    return 16 * part.cpb_mlp(scaled.sign() * (scaled.abs() + 1).log2() / 3).sigmoid()


@pytest.mark.parametrize('shift', [0, 1], ids=['plain', 'shifted'])
@every_network
@torch.no_grad()
def test_attention_pair_by_pair(name: str, shift: int) -> None:
    """Stage 1 of a compact image of 8x8 tokens, whose windows are padded; another mask for each image."""
    attn, mask, side = attention(name, shift), draw(2, (64, 64)), 8
    part = attn.w_msa
    window = part.window_size[0]
    shift *= window // 2
    x = seeded(2, side * side, 16)
    ours = attn(x, CompactMap(side, side, window, 4, mask)).view(2, side, side, 16)

    padded = -(-side // window) * window
    rows, columns = sampled_positions(F.pad(mask.offsets, (0, 1, 0, 1)), 4)  # padding continues the grid of cells
    x = F.pad(x.view(2, side, side, 16), (0, 0, 0, padded - side, 0, padded - side))
    query, key, value = projected(part, x)
    for n in range(2):
        for r, c in ((0, 0), (1, 5), (4, 3), (7, 7), (7, 0)):
            # The tokens of the same shifted window, but not those that the shift brought from the other end
            keys = [
                (i, j)
                for i in range(padded)
                for j in range(padded)
                if region(i, window, shift, padded) == region(r, window, shift, padded)
                and region(j, window, shift, padded) == region(c, window, shift, padded)
            ]
            logits = torch.stack(
                [
                    (query[n, r, c] * key[n, i, j]).sum(-1)
                    + pair_bias(part, int(rows[n, r, c] - rows[n, i, j]), int(columns[n, r, c] - columns[n, i, j]))
                    for i, j in keys
                ]
            )  # (keys, heads)
            weights = logits.softmax(0)
            mixed = sum(weight[:, None] * value[n, i, j] for weight, (i, j) in zip(weights, keys, strict=True))
            expected = part.proj(mixed.flatten())
            torch.testing.assert_close(ours[n, r, c], expected, atol=1e-4, rtol=1e-4)


def region(place: int, window: int, shift: int, padded: int) -> tuple[int, bool]:
    """Window of a row or column after the cyclic shift, and whether the shift moved it to the far end."""
    return (place - shift) % padded // window, place < shift


def projected(part: nn.Module, x: Tensor) -> list[Tensor]:
    """Queries and keys, scaled, and values: (N, h, w, C) -> (N, h, w, heads, d) each."""
    bias = torch.cat((part.q_bias, torch.zeros_like(part.q_bias), part.v_bias))
    query, key, value = F.linear(x, part.qkv.weight, bias).unflatten(-1, (3, part.num_heads, -1)).unbind(3)
    scale = part.logit_scale.clamp(max=torch.tensor(100.0).log()).exp()[:, 0]
    return [F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), value]


@every_network
def test_masked_maps_and_gradients(name: str) -> None:
    """Every output, of half the side; recomputing activations gives the same gradients."""
    gradients = []
    images, mask = seeded(2, 3, 128, 96), draw(2, (128, 96))
    for with_cp in (False, True):
        backbone = built(name)
        for module in backbone.network.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = with_cp
        outs = backbone.train()(images, mask)
        assert [out.shape[2:] for out in outs] == [(16, 12), (8, 6), (4, 3), (2, 2)]
        sum(out.square().mean() for out in outs).backward()
        gradients.append([each.grad for each in backbone.parameters() if each.requires_grad])
    assert all(first is not None and first.abs().sum() for first in gradients[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    'network',
    [
        dict(type='mmdet.ResNet', depth=18),
        dict(type='mmpretrain.SwinTransformer'),
        dict(COMMON, img_size=64, window_size=4, use_abs_pos_embed=True),
    ],
    ids=['network', 'table', 'absolute'],
)
def test_other_networks_are_refused(network: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"true_positions is True, but \w+ is not MMPretrain's SwinTransformerV2 without"
    ):
        UMBackbone(network, img_size=128, true_positions=True)


@torch.no_grad()
def test_positions_change_the_result() -> None:
    """The same pixels sampled from other places of their cells."""
    backbone, images = built('windows of 3'), seeded(1, 3, 64, 64)
    masks = [
        draw(1, (128, 128), seed=seed)._replace(secondary=torch.zeros(1, 4, 4, dtype=torch.bool)) for seed in (0, 1)
    ]
    outs = []
    for mask in masks:
        whole = torch.zeros(1, 3, 128, 128)
        for row in range(4):
            for column in range(4):
                offset = int(mask.offsets[0, row, column])
                top, left = 16 * (2 * row + offset // 2), 16 * (2 * column + offset % 2)
                whole[..., top : top + 16, left : left + 16] = images[
                    ..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16
                ]
        assert torch.equal(compact(whole, mask.offsets), images)
        outs.append(backbone(whole, mask)[0])
    assert (outs[0] - outs[1]).abs().max() > 0.01
