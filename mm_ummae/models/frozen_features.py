"""Features of whole images by a network that is left as it is: eval mode, no gradients, no mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmpretrain.models.utils import TwoNormDataPreprocessor
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; restores the mode of each module, because ``train()`` would also reach frozen ones."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def token_map(model: nn.Module, images: Tensor) -> Tensor:
    """The last output of a pre-training model's backbone as a map.

    Args:
        model (nn.Module): A pre-training model of this package or of MMPretrain, in eval mode.
        images (Tensor): (N, 3, H, W) uint8 BGR, as :func:`~mm_ummae.datasets.image_files.load_batch` gives them.
    Returns:
        Tensor: (N, C, h, w) float32, without class token; (N, C, 1, 1) of a network that returns vectors.
    """
    # BEiT's preprocessor takes two images, of which the second is for the tokenizer
    pair = isinstance(model.data_preprocessor, TwoNormDataPreprocessor)
    data = dict(inputs=[images, images] if pair else images, data_samples=None)
    inputs = model.data_preprocessor(data, training=False)['inputs']
    outputs = model.extract_feat(inputs[0] if pair else inputs)
    last = (outputs[-1] if isinstance(outputs, (list, tuple)) else outputs).float()
    if last.dim() == 4:
        return last
    if last.dim() == 2:
        return last[..., None, None]
    tokens = last[:, getattr(model.backbone, 'num_extra_tokens', 0) :]  # (N, h * w, C)
    side = round(tokens.shape[1] ** 0.5)  # images are square
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def frozen_features(model: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """One vector for each image, the mean over the last map.

    Args:
        model (nn.Module): See :func:`token_map`; its modules keep their modes.
        images (Tensor): (N, 3, H, W) uint8 BGR.
        batch_size (int): Images that are encoded at a time. Default 32.
    Returns:
        Tensor: (N, C) float32 on the CPU.
    """
    with evaluating(model):
        return torch.cat([token_map(model, batch).mean((2, 3)).cpu() for batch in images.split(batch_size)])
