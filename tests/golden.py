"""Golden cases: outputs of the published implementation on tiny models (see data/golden/README.md)."""

from __future__ import annotations

import json
import re
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / 'data' / 'golden'
TINY = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), position_dims=8)


class GoldenCase:
    """One case: ``meta`` (loss, gradient norms, published names) and ``arrays``.

    Args:
        name (str): File name without suffix.
    """

    def __init__(self, name: str) -> None:
        self.meta = json.loads((FOLDER / f'{name}.json').read_text())
        with np.load(FOLDER / f'{name}.npz') as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def load_into(self, model: nn.Module, prefixes: dict[str, str]) -> None:
        """Give ``model`` the case's weights; every published parameter must find its place, and the reverse."""
        state = {
            our_name(name, prefixes): made_weight(name, **spec)
            for name, spec in self.meta['params'].items()
            if spec['kind'] != 'sincos'
        }
        own = {name: value.shape for name, value in model.state_dict().items() if 'data_preprocessor' not in name}
        # Published 1x1 convolutions and broadcast tokens have extra axes of length 1.
        state = {name: value.reshape(own[name]) for name, value in state.items()}
        model.load_state_dict(state, strict=True)

    def check_gradients(self, model: nn.Module, prefixes: dict[str, str], rtol: float = 1e-4) -> None:
        """Compare every gradient norm."""
        parameters = dict(model.named_parameters())
        expected = self.meta['grad_norms']
        assert {our_name(name, prefixes) for name in expected} == set(parameters)
        # A constant added to all logits cancels in softmax, so the true gradient of posmlp.2.bias is 0 and the
        # published norm is rounding noise, 1e-8 of the largest norm: the absolute term covers just that.
        noise = 1e-7 * max(expected.values())
        found = {name: parameters[our_name(name, prefixes)].grad.norm().item() for name in expected}
        wrong = {
            name: (found[name], norm)
            for name, norm in expected.items()
            if abs(found[name] - norm) > rtol * norm + noise
        }
        assert not wrong, wrong


def made_weight(name: str, shape: list[int], kind: str) -> Tensor:
    """The weight that belongs to a published name."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(prod(shape)).reshape(shape)
    value = {
        'weight': lambda: n / np.sqrt(prod(shape[1:])),
        'bias': lambda: 0.1 * n,
        'norm_weight': lambda: 1 + 0.1 * n,
        'token': lambda: 0.5 * n,
    }[kind]()
    return torch.from_numpy(value.astype(np.float32))


def made_images(seed: int, n: int, height: int, width: int) -> Tensor:
    """Normalised images of a case."""
    values = np.random.RandomState(seed).standard_normal((n, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def our_name(name: str, prefixes: dict[str, str], depths: tuple[int, ...] = TINY['depths']) -> str:
    """Published parameter name -> ours; ``prefixes`` says where the parts of the model hang."""
    found = re.fullmatch(r'blocks\.(\d+)\.(.+)', name)
    if found:
        number, stage = int(found[1]), 0
        while number >= depths[stage]:
            number -= depths[stage]
            stage += 1
        rest = found[2].replace('posmlp.0', 'position_bias.fc1').replace('posmlp.2', 'position_bias.fc2')
        rest = rest.replace('mlp.fc1', 'ffn.layers.0.0').replace('mlp.fc2', 'ffn.layers.1')
        if rest.startswith('downsample.'):
            return f'{prefixes["backbone"]}stages.{stage}.{rest.replace("proj", "projection")}'
        return f'{prefixes["backbone"]}stages.{stage}.blocks.{number}.{rest}'
    found = re.fullmatch(r'decoder_blocks\.(\d+)\.(.+)', name)
    if found:
        rest = found[2].replace('norm1', 'ln1').replace('norm2', 'ln2')
        rest = rest.replace('mlp.fc1', 'ffn.layers.0.0').replace('mlp.fc2', 'ffn.layers.1')
        return f'{prefixes["neck"]}blocks.{found[1]}.{rest}'
    found = re.fullmatch(r'up(\d)\.([01])\.(.+)', name)
    if found:
        return f'{prefixes["neck"]}{("norms", "projections")[int(found[2])]}.{int(found[1]) - 1}.{found[3]}'
    for published, part, ours in (
        ('patch_embed.proj', 'backbone', 'patch_embed.projection'),
        ('patch_embed.norm', 'backbone', 'patch_embed.norm'),
        ('vis_mask_token', 'backbone', 'secondary_token'),
        ('norm', 'backbone', 'norm'),
        ('decoder_embed', 'neck', 'expand'),
        ('decoder_norm', 'neck', 'norm'),
        ('mask_token', 'neck', 'mask_token'),
        ('decoder_pred', 'head', 'pred'),
        ('fc_norm', 'neck', 'norm'),
        ('head', 'head', 'fc'),
    ):
        if name == published or name.startswith(published + '.'):
            return prefixes[part] + ours + name.removeprefix(published)
    raise KeyError(f'no place for the published parameter {name}')
