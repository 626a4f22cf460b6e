"""Layer-wise learning-rate decay of networks whose class does not know the depth of its layers."""

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


class Network(nn.Module):
    """A backbone and a head, as a detector has them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 2)


def groups(network: nn.Module) -> dict[str, dict]:
    return {group['param_name']: group for group in build_optim_wrapper(network, OPTIM_WRAPPER).optimizer.param_groups}


@pytest.mark.parametrize('backbone', [UMSwin, UMPVT], ids=lambda kind: kind.__name__)
def test_each_block_is_a_layer_of_the_backbone(backbone: type[nn.Module]) -> None:
    network = Network(backbone('test', img_size=64))
    found = groups(network)
    assert found.keys() == dict(network.named_parameters()).keys()
    depth = sum(network.backbone.depths)
    assert found['head.weight']['lr'] == found['head.bias']['lr'] == found['backbone.norm.weight']['lr'] == 1.0
    assert found['backbone.patch_embed.projection.weight']['lr'] == 0.5 ** (depth + 1)
    layer = 0
    for stage, blocks in enumerate(network.backbone.depths):
        for block in range(blocks):
            layer += 1
            assert found[f'backbone.stages.{stage}.blocks.{block}.norm1.weight']['lr'] == 0.5 ** (depth + 1 - layer)


def test_weight_decay_follows_the_same_rules_as_without() -> None:
    network = Network(UMSwin('test', img_size=64))
    for name, group in groups(network).items():
        assert group['weight_decay'] == (0.0 if network.get_parameter(name).ndim == 1 else 0.05), name


def test_a_backbone_without_layers_is_named() -> None:
    message = 'neither Network nor its backbone Linear has get_layer_depth'
    with pytest.raises(ValueError, match=message):
        build_optim_wrapper(Network(nn.Linear(2, 2)), OPTIM_WRAPPER)
