"""The pyramids in the hosts' models: memory layout of maps, necks, and the prefix of registered names.

Training steps and predictions of classifiers, detectors and segmentors are in tests/configs/test_steps.py, loading in
tests/checkpoints/test_loading.py.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from mm_ummae.models import UMPVT, AvgPoolNorm, StageProjection, UMSwin, UMViT
from tests.builders import ALL, SMALL, VIT, Pyramid, seeded


@pytest.mark.parametrize('backbone', SMALL, ids=lambda backbone: backbone.__name__)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('kwargs', [dict(final_norm=False), dict(with_cp=True)], ids=str)
def test_maps_are_contiguous(kwargs: dict, memory_format: torch.memory_format, backbone: Pyramid) -> None:
    """In both modes and for images of either layout, from the backbone and from the projections after it.

    MMCV's RoIAlign reads channels-last memory as if it were contiguous, without an error.
    """
    model = backbone('test', img_size=128, out_indices=ALL, **kwargs)
    necks = [StageProjection(model.num_features, 16, with_norm=norm) for norm in (True, False)]
    images = seeded(2, 3, 128, 96).contiguous(memory_format=memory_format)
    for mode in (True, False):
        maps = model.train(mode)(images)
        for x in (*maps, *necks[0](maps), *necks[1](maps)):
            assert x.is_contiguous(), x.stride()
            assert x.shape[1] > 1 and x.shape[2] > 1, 'a map this small is contiguous in both layouts'


def test_average_pooling_neck() -> None:
    neck, x = AvgPoolNorm(8), seeded(2, 8, 3, 5)
    expected = nn.functional.layer_norm(x.flatten(2).mean(2), (8,), eps=1e-6)
    torch.testing.assert_close(neck((seeded(2, 4, 6, 10), x))[0], expected)


def test_stage_projection() -> None:
    """LayerNorm and a linear layer per position, after the extra layer of the last stage."""
    extra = dict(type='mm_ummae.GlobalAttention', in_channels=8, num_heads=2)
    neck, maps = StageProjection([4, 8], 6, extra_layer=extra), (seeded(2, 4, 4, 6), seeded(2, 8, 2, 3))
    nn.init.normal_(neck.extra_layer.proj.weight)
    inputs = (maps[0], neck.extra_layer(maps[1]))
    for i, out in enumerate(neck(maps)):
        x = neck.norms[i](inputs[i][1, :, 1, 2])
        torch.testing.assert_close(out[1, :, 1, 2], neck.projections[i](x))
    with pytest.raises(ValueError, match='3 maps came, but in_channels has 2 entries'):
        neck((*maps, maps[1]))


PARTS = [
    (dict(type='mm_ummae.UMSwin', arch=SMALL[UMSwin]), UMSwin),
    (dict(type='mm_ummae.UMPVT', arch=SMALL[UMPVT]), UMPVT),
    (dict(type='mm_ummae.UMViT', arch=VIT), UMViT),
    (dict(type='mm_ummae.StageProjection', in_channels=[8, 16]), StageProjection),
    (dict(type='mm_ummae.AvgPoolNorm', in_channels=8), AvgPoolNorm),
]


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_the_prefix_builds_under_each_host(scope: str) -> None:
    """From MMEngine's registry, as the runner does, and from the host's own, as its models do."""
    host = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    for cfg, kind in PARTS:
        with DefaultScope.overwrite_default_scope(scope):
            assert type(MMENGINE_MODELS.build(dict(cfg))) is kind
            assert type(host.build(dict(cfg))) is kind


@pytest.mark.integration
def test_the_prefix_alone_imports_the_package() -> None:
    """No custom_imports: a new process that has imported nothing of mm_ummae builds its models by name."""
    code = (
        'import sys\n'
        'from mmdet.registry import MODELS\n'
        'from mmengine.registry import init_default_scope\n'
        'init_default_scope("mmdet")\n'
        'assert "mm_ummae" not in sys.modules\n'
        'print(type(MODELS.build(dict(type="mm_ummae.StageProjection", in_channels=[8]))).__name__)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == 'StageProjection'
