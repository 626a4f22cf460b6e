"""First convolution of weights that were trained on images with another number of channels."""

from __future__ import annotations

import torch
from mmengine.logging import print_log
from torch import Tensor

COLOURS = 3


def fit_channels(state: dict[str, Tensor], name: str, channels: int) -> dict[str, Tensor]:
    """Adapt the first convolution of three-channel weights to images with another number of channels.

    One channel takes the sum over the colours, which gives what a grey image gave as three equal ones. Of C channels,
    number c takes the weights of colour c modulo 3 (red, green, blue), times 3 / C, so that the output keeps its scale;
    four bands of which the first three are red, green and blue thus start with what the network knows of them.
    Everything else stays as it is, and a difference that is none of channels is left to the caller's check of shapes.

    Args:
        state (dict[str, Tensor]): Parameters by name; unchanged.
        name (str): Name of the weights, (C_out, 3, k, k).
        channels (int): Channels of the images.
    Returns:
        dict[str, Tensor]: The parameters, with weights (C_out, channels, k, k).
    """
    weight = state.get(name)
    if weight is None or weight.dim() != 4 or weight.shape[1] != COLOURS or channels == COLOURS:
        return state
    if channels == 1:
        adapted = weight.sum(1, keepdim=True)
    else:
        adapted = weight[:, torch.arange(channels) % COLOURS] * (COLOURS / channels)
    print_log(
        f'{name}: the weights of {COLOURS} channels are adapted to {channels}: '
        f'{"their sum" if channels == 1 else f"repeated in turn, times {COLOURS}/{channels}"}',
        'current',
    )
    return {**state, name: adapted}
