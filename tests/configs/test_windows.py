"""Nominal sizes of the backbones of detectors and segmentors: the windows of UMSwin, the positions of UMPVT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mm_ummae.models import UMPVT
from tests.configs.leaves import LEAVES, config, full_model

DENSE = [path for path in LEAVES if re.match('gfl|mask-rcnn_um|htcpp|upernet_um', path.stem)]
SWIN = [path for path in DENSE if 'swin' in path.stem]
# Window and shift in tokens of stages 1 to 4 in the published networks, by nominal side in pixels: of the classifier,
# the segmentors, the detectors. Those of 640 px and of the demo's 128 px follow from the rule.
PUBLISHED = {
    256: [(16, 8), (16, 8), (16, 0), (8, 0)],
    512: [(16, 8), (16, 8), (16, 8), (16, 0)],
    1024: [(16, 8), (16, 8), (16, 8), (16, 8)],
}
NOMINAL = {'^(gfl|mask-rcnn|htcpp)(?!.*demo)': 1024, '_ade20k-512x512': 512, '_ade20k-640x640': 640, '_demo': 128}


def stages_by_rule(side: int) -> list[tuple[int, int]]:
    """A window that would not be smaller than the map of its stage is that map, and does not shift."""
    sides = [-(-side // stride) for stride in (4, 8, 16, 32)]
    return [(16, 8) if tokens > 16 else (tokens, 0) for tokens in sides]


def test_the_rule_gives_the_published_table() -> None:
    assert {side: stages_by_rule(side) for side in PUBLISHED} == PUBLISHED


def training_sides(path: Path) -> Iterator[int]:
    """Shorter sides of the images that a detector or segmentor is trained on, at most."""
    steps = {step.type: step for step in config(path).train_dataloader.dataset.pipeline}
    if 'RandomCrop' in steps:
        yield min(steps['RandomCrop'].crop_size)
    elif 'demo' in path.stem and 'upernet' in path.stem:
        yield min(config(path).crop_size)  # the generated images are not resized
    else:
        (step,) = (step for kind, step in steps.items() if kind.endswith('Resize'))
        scales = step.get('scales', step.get('scale'))
        yield from map(min, scales if isinstance(scales, list) else [scales])


@pytest.mark.parametrize('path', SWIN, ids=lambda path: path.stem)
def test_windows_of_a_dense_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that its blocks get on its largest training images are the published ones, so training gives no warning."""
    warnings: list[str] = []
    monkeypatch.setattr('mm_ummae.models.backbones.um_swin.print_log', lambda message, *_: warnings.append(message))
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # does not know `meta`
    (nominal,) = (side for pattern, side in NOMINAL.items() if re.search(pattern, path.stem))
    backbone = full_model(path).backbone
    seen: list[list[tuple[int, int]]] = [[] for _ in backbone.stages]
    hooks = [
        block.register_forward_pre_hook(lambda _, args, seen=seen[i]: seen.append((args[1].window, args[1].shift)))
        for i, stage in enumerate(backbone.stages)
        for block in stage.blocks
    ]
    side = max(training_sides(path))
    with torch.no_grad():
        backbone(torch.empty(1, 3, side, side, device='meta'))
    for hook in hooks:
        hook.remove()
    expected = stages_by_rule(nominal)
    assert seen == [
        [(window, shift if i % 2 else 0) for i in range(depth)]
        for (window, shift), depth in zip(expected, backbone.depths, strict=True)
    ]
    assert stages_by_rule(side) == expected and not warnings


@pytest.mark.parametrize('path', sorted(set(DENSE) - set(SWIN)), ids=lambda path: path.stem)
def test_positions_of_a_dense_config(path: Path) -> None:
    """The published detectors keep the size of pre-training, 64x64 tokens, and resize them to images of every size."""
    backbone = full_model(path).backbone
    assert isinstance(backbone, UMPVT)
    assert backbone.grid == (64, 64) and backbone.pos_embed.shape == (1, 4096, 64) and backbone.pos_embed.requires_grad
