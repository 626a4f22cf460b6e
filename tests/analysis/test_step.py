"""Training steps: batches, updates, FLOPs, memory and results."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from torch import nn

from mm_ummae.analysis import Settings, measure_steps, read_config, step
from mm_ummae.analysis.measuring import peak_memory
from mm_ummae.analysis.step import TrainingStep
from tests.configs.leaves import config, leaf

LEAVES = dict(
    ummae='ummae_swin-test_1xb16-coslr-20e_demo-128px',
    simmim='simmim_swin-test_1xb16-coslr-20e_demo-128px',
    classifier='um-swin-test_classification_1xb8-200it_demo-128px',
    detector='mask-rcnn_um-swin-test_1xb4-400it_demo-128px',
    segmentor='upernet_um-swin-test_1xb8-150it_demo-128px',
)
ARCH = dict(_delete_=True, embed_dims=32, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16])


@cache
def stock_simmim() -> Config:
    """MMPretrain's, with a small Swin at 128 px."""
    options = {
        'model.backbone.arch': ARCH,
        'model.backbone.img_size': 128,
        'model.backbone.stage_cfgs.block_cfgs.window_size': 4,
        'model.neck.in_channels': 256,
        'train_dataloader.dataset.pipeline.3.input_size': 128,
    }
    return read_config('mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py', options)


def read(kind: str) -> Config:
    return stock_simmim() if kind == 'stock' else config(leaf(LEAVES[kind]))


def made(kind: str, batch: int = 2, shape: tuple[int, int] = (128, 128), **settings: str) -> TrainingStep:
    return TrainingStep.on_random_images(read(kind), shape, batch, Settings(**settings))


@pytest.mark.parametrize('kind', [*LEAVES, 'stock'])
def test_a_step_changes_weights_and_keeps_no_gradients(kind: str) -> None:
    """Counting does not; Adam's moments stay."""
    run = made(kind)
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    resident = run.resident()
    for call, changes in ((run.flops, False), (run, True)):
        call()
        assert all(parameter.grad is None for parameter in run.model.parameters())
        changed = [not torch.equal(old, new) for old, new in zip(before, trained, strict=True)]
        assert sum(changed) > 0.9 * len(changed) if changes else not any(changed)
        assert (run.resident() > resident + 7 * sum(map(torch.numel, before))) == changes
    assert run.model.training


@pytest.mark.parametrize(('kind', 'shape'), [('ummae', (128, 64)), ('simmim', (128, 128))])
def test_pretraining_gets_the_same_noise_every_time_and_draws_its_masks(kind: str, shape: tuple[int, int]) -> None:
    run, again = (made(kind, shape=shape) for _ in range(2))
    assert run.inputs.shape == (2, 3, *shape) and run.data_samples is None
    assert abs(run.inputs.mean()) < 0.05 and abs(run.inputs.std() - 1) < 0.05
    assert torch.equal(run.inputs, again.inputs)


def test_masks_of_the_stock_simmim_are_those_of_its_pipeline() -> None:
    """Six tenths of 4 x 4 squares of 32 px, on a grid of 32 x 32 patches."""
    first, second = (torch.stack([sample.mask for sample in made('stock').data_samples]) for _ in range(2))
    assert first.shape == (2, 32, 32) and not torch.equal(first[0], first[1])
    assert first.flatten(1).sum(1).tolist() == [10 * 8 * 8] * 2
    assert torch.equal(first, second)


def test_a_classifier_gets_labels_and_a_detector_boxes() -> None:
    assert [int(sample.gt_label) for sample in made('classifier', 12).data_samples] == [*range(10), 0, 1]
    assert [len(sample.gt_instances.bboxes) for sample in made('detector').data_samples] == [20, 20]


def test_a_batch_of_a_loader_goes_through_the_preprocessor() -> None:
    """Bytes in BGR become RGB of zero mean."""
    run = made('ummae')
    images = torch.zeros(3, 3, 128, 128, dtype=torch.uint8)
    images[:, 0] = 255
    run.take(dict(inputs=images, data_samples=[DataSample() for _ in images]))
    expected = torch.tensor([-123.675 / 58.395, -116.28 / 57.12, (255 - 103.53) / 57.375])
    torch.testing.assert_close(run.inputs, expected[:, None, None].expand(3, 3, 128, 128))
    assert len(run.data_samples) == 3
    run()


def test_two_views_of_an_image_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, 'build_network', lambda config: nn.Linear(1, 1))
    cfg = config(leaf('lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px'))
    with pytest.raises(ValueError, match=r'model.type is mm_ummae.LoMaRBEiT, which takes two views .*--measure train'):
        TrainingStep.on_random_images(cfg, (224, 224), 1, Settings())


# FLOPs and memory


def test_flops_of_a_step_are_three_times_those_of_forward_and_grow_with_the_batch() -> None:
    """Nearly: the image needs no gradient."""
    one, two = (made('simmim', batch).flops() for batch in (2, 4))
    assert 2.9 * one['forward'] < one['step'] <= 3 * one['forward']
    assert two['forward'] == pytest.approx(2 * one['forward'], rel=1e-2)


def test_memory_holds_weights_gradients_moments_and_activations() -> None:
    found = []
    for batch in (1, 4):
        run = made('simmim', batch)
        run()
        trained = 4 * sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
        weights = sum(tensor.nbytes for tensor in [*run.model.parameters(), *run.model.buffers()])
        assert run.resident() == weights + 2 * trained + 4 * len(run.optimizer.state)
        assert run.memory() == run.resident() + peak_memory(run, 'cpu') >= run.resident() + trained
        found.append(run.memory() - run.resident())
    assert found[1] > 2 * found[0]


# Results


def test_results() -> None:
    calls = []
    rows = measure_steps(
        {kind: read(kind) for kind in ('ummae', 'simmim')},
        (128, 128),
        2,
        Settings(rounds=2, warmup=1),
        beside=dict(other=lambda: calls.append(0)),
    )
    assert json.loads(json.dumps(rows)) == rows
    assert [row['name'] for row in rows] == ['ummae', 'simmim', 'other'] and len(calls) == 3
    ours, simmim, other = rows
    assert set(other) == {'name', 'seconds'} and len(other['seconds']) == 2
    for row in (ours, simmim):
        assert row['images_per_second'] == [2 / each for each in row['seconds']] and len(row['seconds']) == 2
        assert row['parameters'] > 1e6 and row['memory'] > 16 * row['parameters'] and row['batch'] == 2
    assert ours['flops']['forward'] < simmim['flops']['forward'] / 2


def test_only_the_loss_is_compiled_and_flops_are_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    flops = TrainingStep.flops

    def compile_(function: Callable) -> Callable:
        events.append('compile')
        return lambda *args: events.append('loss') or function(*args)

    monkeypatch.setattr(torch, 'compile', compile_)
    monkeypatch.setattr(TrainingStep, 'flops', lambda run: events.append('count') or flops(run))
    (row,) = measure_steps(dict(a=read('ummae')), (128, 128), 1, Settings(rounds=2, warmup=0), compiled=True)
    assert events == ['count', 'compile', 'loss', 'loss', 'loss']
    assert row['memory'] is None, 'compiled code hides its tensors on a CPU'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(configs={}), 'configs is 0, but it must be at least 1'),
        (dict(shape=(128, 0)), r'shape is \(128, 0\), but it must be a height and a width of at least one pixel'),
        (dict(batch=0), 'batch is 0, but it must be at least 1'),
    ],
    ids=str,
)
def test_illegal_arguments_are_named_before_anything_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_steps(**(dict(configs=dict(a=None)) | options))
