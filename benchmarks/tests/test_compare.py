"""Comparisons: networks of equal size, targets, generated photographs, results and plots."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch import nn

from benchmarks import compare, results
from benchmarks.compare import MatrixProduct, main, ratio_table
from benchmarks.entries import DETECTORS, LOADERS, PRETRAINING, Entry
from benchmarks.photographs import IMAGE_SIZE, on_images, write_images
from benchmarks.plots import step_figure
from benchmarks.targets import Target, product_share, target_table, targets
from mm_ummae.analysis.loading import build_loader
from mm_ummae.analysis.measuring import flop_counter
from mm_ummae.datasets import PretrainImages

DEMO = 'configs/demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py'
PLAIN = dict(PRETRAINING[1].changes)
STOCK = {
    'model.backbone.arch': dict(_delete_=True, embed_dims=32, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16]),
    'model.backbone.img_size': 128,
    'model.backbone.stage_cfgs.block_cfgs.window_size': 4,
    'model.neck.in_channels': 256,
    'train_dataloader.dataset.pipeline.3.input_size': 128,
}
TINY = (
    Entry('UM-MAE', DEMO),
    Entry('UM-MAE, plain formulation', DEMO, PLAIN),
    Entry('SimMIM', 'configs/demo/simmim_swin-test_1xb16-coslr-20e_demo-128px.py'),
    Entry('MMPretrain: SimMIM', PRETRAINING[3].config, STOCK),
    Entry('MMPretrain: MAE, ViT-B', DEMO),
)

pytestmark = pytest.mark.slow


@cache
def full(name: str) -> nn.Module:
    """At full size without values, or on the CPU what computes with values while it is built."""
    (entry,) = (entry for entry in (*PRETRAINING, *DETECTORS) if entry.name == name)
    config = entry.read()
    import_modules_from_strings(config.get('custom_imports', {}).get('imports', []))
    device = 'cpu' if name.startswith('MM') else 'meta'
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device(device):
        return MODELS.build(config.model)


# Networks


def test_pretraining_has_swin_tiny_at_256_px_and_mae_its_vit() -> None:
    ours, plain, simmim, stock, mae = (full(entry.name) for entry in PRETRAINING)
    assert [type(model).__name__ for model in (ours, plain)] == ['UMMAE', 'PlainUMMAE']
    first, second = (entry.read().model.to_dict() for entry in PRETRAINING[:2])
    assert first | dict(type='mm_ummae.PlainUMMAE') == second
    for model in (ours, plain, simmim, stock):
        assert model.backbone.patch_embed.projection.out_channels == 96
        assert [len(stage.blocks) for stage in model.backbone.stages] == [2, 2, 6, 2]
    assert [entry.read().model.backbone.img_size for entry in PRETRAINING] == [256] * 5
    assert {block.attn.window_size for stage in stock.backbone.stages for block in stage.blocks} == {8}
    masks = PRETRAINING[3].read().train_dataloader.dataset.pipeline[3]
    assert masks.type.endswith('SimMIMMaskGenerator') and masks.input_size == 256
    assert len(mae.backbone.layers) == 12 and mae.neck.decoder_pos_embed.shape == (1, 1 + 16 * 16, 512)


def test_detectors_have_the_same_heads_and_backbones_of_the_same_size() -> None:
    models = [full(entry.name) for entry in DETECTORS]
    assert [type(model.backbone).__name__ for model in models] == ['UMSwin', 'UMSwin', 'SwinTransformer']
    heads = [
        {name: value.shape for name, value in model.named_parameters() if name.startswith(('rpn_head', 'roi_head'))}
        for model in models
    ]
    assert heads[0] == heads[1] == heads[2] and len(heads[0]) > 20
    assert [entry.read().model.backbone.window_size for entry in DETECTORS] == [16, 7, 7]
    sizes = [sum(map(torch.numel, model.backbone.parameters())) for model in models]
    assert sizes[0] == sizes[1] == pytest.approx(sizes[2], rel=0.02)


# Photographs


def test_photographs_are_always_the_same_and_have_coarse_contrast(tmp_path: Path) -> None:
    paths, again = (write_images(tmp_path / name, 3, 90) for name in 'ab')
    low = write_images(tmp_path / 'low', 3, 75)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert len({path.read_bytes() for path in paths}) == 3
    for path, worse in zip(paths, low, strict=True):
        with Image.open(path) as image:
            assert (image.size, image.mode) == (IMAGE_SIZE, 'RGB')
            assert [tuple(layer[1:3]) for layer in image.layer] == [(2, 2), (1, 1), (1, 1)], 'not 4:2:0'
            pixels = np.asarray(image, dtype=float)
        # More than half of the contrast is in what is larger than 20 px, but not all
        means = cv2.resize(pixels, (25, 19), interpolation=cv2.INTER_AREA)
        assert 25 < pixels.std() < 100 and 0.5 < means.std() / pixels.std() < 0.98
        assert 30_000 < 1.3 * worse.stat().st_size < path.stat().st_size < 150_000


def test_both_pipelines_crop_the_same_boxes_of_the_same_photographs(tmp_path: Path) -> None:
    write_images(tmp_path, 3, 90)
    inputs = []
    for entry, kind in zip(LOADERS, (CustomDataset, PretrainImages), strict=True):
        loader = build_loader(on_images(entry.read(), tmp_path, 96), 3, 1)
        assert type(loader.dataset) is kind and len(loader.dataset) == 3
        np.random.seed(0)
        (data,) = loader
        inputs.append(data['inputs'].float())
    assert inputs[0].shape == (3, 3, 96, 96)
    assert (inputs[0] - inputs[1]).abs().mean() < 0.1


# Results and targets


def test_a_matrix_product_has_the_flops_it_says() -> None:
    product = MatrixProduct('cpu', 'float32')
    with flop_counter() as counter:
        result = product()
    assert counter.get_total_flops() == product.flops == 2 * 2048**3
    assert result.shape == (2048, 2048)


def made_network(name: str, seconds: list[float], step: int = 1200, memory: int | None = 10**9) -> dict[str, Any]:
    flops = dict(forward=step // 3 * 10**9, step=step * 10**9)
    return dict(name=name, batch=4, parameters=10**7, flops=flops, seconds=seconds, memory=memory)


def made_run(device: str = 'cpu', dtype: str = 'float32', with_memory: bool = True) -> dict[str, Any]:
    """Medians of ratios differ from ratios of medians."""
    ours, plain, simmim, stock, mae = (entry.name for entry in PRETRAINING)
    networks = [
        made_network(ours, [2.0, 3.0, 10.0]),
        made_network(plain, [4.0, 30.0, 8.0], memory=2 * 10**9),
        made_network(simmim, [5.0, 5.0, 20.0], step=3000, memory=4 * 10**9),
        made_network(stock, [10.0, 10.0, 10.0]),
        made_network(mae, [1.0, 1.0, 1.0]),
    ]
    if not with_memory:
        networks = [network | dict(memory=None) for network in networks]
    product = dict(flops=1000 * 10**9, seconds=[1.0, 4.0, 2.0])
    return dict(arguments=dict(batch=4, device=device, dtype=dtype), matrix_product=product, networks=networks)


def test_ratios_are_medians_of_those_of_the_rounds() -> None:
    run = made_run()
    assert product_share(run, run['networks'][0]) == pytest.approx(0.6)  # of 0.6, 1.6 and 0.24
    lines = ratio_table(run).splitlines()
    assert lines[2] == '| UM-MAE | 1.00 | 1.00 | 0.60 |'
    assert lines[3] == '| UM-MAE, plain formulation | 2.00 | 2.00 | 0.30 |'  # of 2, 10 and 0.8


@pytest.mark.parametrize(
    ('device', 'dtype', 'limits'),
    [
        ('cpu', 'float32', [0.75, 1.05 * 0.4, 0.35, 0.8, 0.7, 0.4]),
        ('cpu', 'bfloat16', [0.6, 1.05 * 0.4, 0.35, 0.5, 0.7, 0.4]),
        ('cuda', 'bfloat16', [0.4, 1.1 * 0.4, 0.35, 0.35, 0.4, 0.35]),
    ],
)
def test_targets_have_the_limits_of_their_device_and_precision(device: str, dtype: str, limits: list[float]) -> None:
    """SimMIM has 2.5 times the FLOPs."""
    found = targets(made_run(device, dtype))
    assert [target.limit for target in found] == pytest.approx(limits)
    assert [target.value for target in found] == pytest.approx([0.5, 0.5, 0.3, 0.6, 0.5, 0.25])
    assert [target.at_most for target in found] == [True, True, True, False, True, True]
    assert targets(made_run(device, dtype, with_memory=False)) == found[:4]


def test_the_table_says_which_targets_are_reached() -> None:
    reached = [Target('', 0.5, value, at_most=side).reached() for side in (True, False) for value in (0.4, 0.5, 0.6)]
    assert reached == [True, True, False, False, True, True]
    lines = target_table(targets(made_run())).splitlines()
    assert lines[0] == '| target | limit | measured | reached |'
    assert lines[2:4] == [
        '| step time, to plain formulation | ≤ 0.75 | 0.5 | yes |',
        '| step time, to SimMIM (1.05 x FLOPs) | ≤ 0.42 | 0.5 | no |',
    ]
    assert lines[5] == '| share of matrix products | ≥ 0.8 | 0.6 | no |'


# Command line


def test_steps_are_compared_profiled_stored_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The run is appended to those of the file."""
    monkeypatch.setattr(compare, 'PRETRAINING', TINY)
    monkeypatch.setattr(compare, 'SIZE', 128)
    out, plot = tmp_path / 'runs.json', tmp_path / 'new' / 'plot.png'
    before = made_run() | dict(measure='step')
    results.add_run(out, before)
    words = f'step --batch 1 --rounds 1 --warmup 0 --device cpu --out {out} --plot {plot} --profile'
    run = main(words.split())
    printed = capsys.readouterr().out
    assert 'share of matrix products' in printed and '| step time, to plain formulation |' in printed
    assert json.loads(out.read_text())['runs'] == [before, json.loads(json.dumps(run))]
    assert (run['measure'], run['arguments']['dtype']) == ('step', 'float32')
    assert {network['name'] for network in run['networks']} == set(run['profiles']) == {entry.name for entry in TINY}
    assert run['networks'][1]['changes'] == PLAIN and run['networks'][1]['config'] == DEMO
    assert {'commit', 'cpu', 'versions'} <= set(run['environment'])
    assert len(step_figure([before, run]).axes) == 4 and plot.read_bytes()[1:4] == b'PNG'
    assert str(Path.home()) not in out.read_text()


def test_loaders_and_decoders_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(compare, 'FILES', 4)
    monkeypatch.setattr(compare, 'SIZE', 64)
    loaders = main(['loading', '--batch', '2', '--rounds', '1', '--warmup', '0', '--device', 'cpu'])['loaders']
    names = ['MMPretrain: MAE', 'UM-MAE', 'decoding by OpenCV', 'decoding by Pillow']
    assert [(row['quality'], row['name']) for row in loaders] == [
        (quality, name) for quality in (75, 95) for name in names
    ]
    assert loaders[0]['bytes_per_file'] < loaders[-1]['bytes_per_file']
    assert all(min(row['images_per_second']) > 0 for row in loaders)
    assert 'JPEG quality 95' in capsys.readouterr().out


def test_training_from_files_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMPretrain's SimMIM gets the masks of its pipeline."""
    monkeypatch.setattr(compare, 'FILES', 4)
    monkeypatch.setattr(compare, 'PRETRAINING', TINY)
    monkeypatch.setattr(compare, 'SIZE', 128)
    networks = main(
        ['training', '--batch', '1', '--rounds', '1', '--warmup', '0', '--workers', '0', '--device', 'cpu']
    )['networks']
    assert [network['name'] for network in networks] == ['UM-MAE', 'MMPretrain: SimMIM']


@pytest.mark.parametrize('measure', ['detector-step', 'detector-inference'])
def test_detectors_are_compared(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry('a', 'configs/demo/mask-rcnn_um-swin-test_1xb4-400it_demo-128px.py')
    monkeypatch.setattr(
        compare, 'DETECTORS', (entry, entry._replace(name='b', changes={'model.backbone.window_size': 8}))
    )
    monkeypatch.setattr(compare, 'DETECTOR_SHAPES', {'detector-step': (64, 64), 'detector-inference': (64, 64)})
    networks = main([measure, '--rounds', '1', '--warmup', '0', '--device', 'cpu'])['networks']
    assert [network['name'] for network in networks] == ['a', 'b']
