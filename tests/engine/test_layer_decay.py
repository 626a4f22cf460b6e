"""Layer-wise learning rate decay of models that do not know the depth of their layers."""

from __future__ import annotations

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mm_ummae.models import UMSwin

OPTIM_WRAPPER = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
    constructor='mm_ummae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.5, bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
)


def detector(backbone: nn.Module) -> nn.Module:
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(4, 2)))


def test_each_block_is_a_layer_of_the_backbone() -> None:
    """Weight decay follows the rules of the parent."""
    model = detector(UMSwin('test', img_size=64))
    groups = {group['param_name']: group for group in build_optim_wrapper(model, OPTIM_WRAPPER).optimizer.param_groups}
    assert groups.keys() == dict(model.named_parameters()).keys()
    rates = {name: group['lr'] for name, group in groups.items()}
    assert rates['head.weight'] == rates['head.bias'] == rates['backbone.norm.weight'] == 1.0
    assert rates['backbone.patch_embed.projection.weight'] == 0.5**9
    blocks = [(stage, block) for stage in range(4) for block in range(2)]
    for layer, (stage, block) in enumerate(blocks, start=1):
        assert rates[f'backbone.stages.{stage}.blocks.{block}.norm1.weight'] == 0.5 ** (9 - layer)
    for name, group in groups.items():
        assert group['weight_decay'] == (0.0 if model.get_parameter(name).ndim == 1 else 0.05), name


def test_a_backbone_without_layers_is_an_error() -> None:
    message = 'neither ModuleDict nor its backbone Linear has get_layer_depth, which maps a parameter name to its layer'
    with pytest.raises(ValueError, match=message):
        build_optim_wrapper(detector(nn.Linear(2, 2)), OPTIM_WRAPPER)
