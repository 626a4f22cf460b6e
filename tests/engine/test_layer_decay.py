"""Layer-wise learning rate decay of models that do not know the depth of their layers."""

from __future__ import annotations

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mm_ummae.models import UMPVT, UMSwin

OPTIM_WRAPPER = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
    constructor='mm_ummae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.5, bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
)


class Model(nn.Module):
    """A backbone and a head, as in a detector."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 2)


@pytest.mark.parametrize('backbone', [UMSwin, UMPVT], ids=lambda kind: kind.__name__)
def test_each_block_is_a_layer_of_the_backbone(backbone: type[nn.Module]) -> None:
    model = Model(backbone('test', img_size=64))
    groups = {group['param_name']: group for group in build_optim_wrapper(model, OPTIM_WRAPPER).optimizer.param_groups}
    assert groups.keys() == dict(model.named_parameters()).keys()
    rates = {name: group['lr'] for name, group in groups.items()}
    depth = sum(model.backbone.depths)
    assert rates['head.weight'] == rates['head.bias'] == rates['backbone.norm.weight'] == 1.0
    assert rates['backbone.patch_embed.projection.weight'] == 0.5 ** (depth + 1)
    layer = 0
    for stage, blocks in enumerate(model.backbone.depths):
        for block in range(blocks):
            layer += 1
            assert rates[f'backbone.stages.{stage}.blocks.{block}.norm1.weight'] == 0.5 ** (depth + 1 - layer)
    # Weight decay follows the rules of the parent
    for name, group in groups.items():
        assert group['weight_decay'] == (0.0 if model.get_parameter(name).ndim == 1 else 0.05), name


def test_a_backbone_without_layers_is_an_error() -> None:
    message = 'neither Model nor its backbone Linear has get_layer_depth, which maps a parameter name to its layer'
    with pytest.raises(ValueError, match=message):
        build_optim_wrapper(Model(nn.Linear(2, 2)), OPTIM_WRAPPER)
