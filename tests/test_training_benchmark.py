"""The benchmark of training steps: what a step is, what is compared, what is counted, and what a report says."""

from __future__ import annotations

import copy
import json
import os
import pickle
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mm_ummae.analysis import measuring, training
from mm_ummae.analysis.measuring import MatrixProduct, flop_counter, process_growth
from mm_ummae.analysis.networks import Entry
from mm_ummae.analysis.training import COMPARISON, DENSE, Target, TrainingStep, benchmark_training, count_operations, make_step, product_share, target_table, targets, time_ratio, training_table

from .leaves import build_model, leaf

UMMAE = Entry('ours', str(leaf('ummae_swin-test_1xb64-coslr-20e_demo-128px')))
SIMMIM = Entry('SimMIM', str(leaf('simmim_swin-test_1xb64-coslr-20e_demo-128px')))
STOCK = Entry(
    'stock SimMIM',
    COMPARISON[3].config,
    {
        'model.backbone.arch': dict(_delete_=True, embed_dims=32, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16]),
        'model.backbone.img_size': 128,
        'model.backbone.stage_cfgs.block_cfgs.window_size': 4,
        'model.neck.in_channels': 256,
        'train_dataloader.dataset.pipeline.3.input_size': 128,
    },
)
NETWORKS = dict(
    ummae=UMMAE,
    simmim=SIMMIM,
    stock=STOCK,
    classifier=Entry('classifier', str(leaf('um-swin-test_classification_1xb16-100it_demo-128px'))),
    detector=Entry('detector', str(leaf('mask-rcnn_um-swin-test_1xb8-200it_demo-128px'))),
    segmentor=Entry('segmentor', str(leaf('upernet_um-swin-test_1xb8-150it_demo-128px'))),
)
OPTIONS = dict(shape=(128, 128), batch=2)


def seen(step: TrainingStep) -> list[tuple[Tensor, list | None]]:
    """What the model gets in a forward pass."""
    calls = []
    handle = step.model.register_forward_pre_hook(lambda model, args: calls.append(args))
    step.forward()
    handle.remove()
    return calls


# Steps


@pytest.mark.parametrize('kind', NETWORKS)
def test_a_step_changes_the_weights_and_the_others_do_not(kind: str) -> None:
    """And none leaves gradients."""
    step = make_step(NETWORKS[kind], OPTIONS)
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    resident = step.resident()
    for run, changes in ((step.forward, False), (step.backward, False), (step, True)):
        run()
        assert all(parameter.grad is None for parameter in step.model.parameters())
        changed = [not torch.equal(old, new) for old, new in zip(before, trained, strict=True)]
        assert sum(changed) > 0.9 * len(changed) if changes else not any(changed)
        assert (step.resident() > resident + 7 * sum(map(torch.numel, before))) == changes, 'moments of Adam'
    assert step.model.training


@pytest.mark.parametrize('kind', ['ummae', 'simmim'])
def test_pretraining_gets_noise_and_draws_its_masks_itself(kind: str) -> None:
    shape = (128, 64) if kind == 'ummae' else (128, 128)
    step, again = (make_step(NETWORKS[kind], dict(shape=shape, batch=2)) for _ in range(2))
    ((inputs, data_samples),) = seen(step)
    assert inputs is step.inputs and inputs.shape == (2, 3, *shape) and data_samples is None
    assert abs(inputs.mean()) < 0.05 and abs(inputs.std() - 1) < 0.05
    assert torch.equal(inputs, again.inputs)


def test_masks_of_the_stock_simmim_are_those_of_its_pipeline() -> None:
    """Six tenths of 4 x 4 squares of 32 px, told for each of 32 x 32 patches."""
    ((_, data_samples),) = seen(make_step(STOCK, OPTIONS))
    masks = torch.stack([sample.mask for sample in data_samples])
    assert masks.shape == (2, 32, 32) and not torch.equal(masks[0], masks[1])
    assert masks.flatten(1).sum(1).tolist() == [10 * 8 * 8] * 2
    ((_, again),) = seen(make_step(STOCK, OPTIONS))
    assert all(torch.equal(sample.mask, other.mask) for sample, other in zip(data_samples, again, strict=True))


def test_a_classifier_gets_labels_and_a_detector_boxes() -> None:
    ((_, data_samples),) = seen(make_step(NETWORKS['classifier'], OPTIONS | dict(batch=12)))
    assert [int(sample.gt_label) for sample in data_samples] == [*range(10), 0, 1]
    ((_, data_samples),) = seen(make_step(NETWORKS['detector'], OPTIONS))
    assert [len(sample.gt_instances.bboxes) for sample in data_samples] == [20, 20]


def test_another_batch_goes_through_the_preprocessor() -> None:
    """Bytes in BGR become RGB of zero mean."""
    step = make_step(UMMAE, OPTIONS)
    pictures = torch.zeros(3, 3, 128, 128, dtype=torch.uint8)
    pictures[:, 0] = 255
    data_samples = [DataSample() for _ in pictures]
    step.take(dict(inputs=pictures, data_samples=data_samples))
    expected = torch.tensor([-123.675 / 58.395, -116.28 / 57.12, (255 - 103.53) / 57.375])
    torch.testing.assert_close(step.inputs, expected[:, None, None].expand(3, 3, 128, 128))
    ((inputs, got),) = seen(step)
    assert inputs is step.inputs and len(got) == 3
    step()


def test_other_dtypes_are_those_of_autocast() -> None:
    step, dtypes = make_step(UMMAE, OPTIONS | dict(dtype='bfloat16')), []
    step.model.backbone.stages[0].blocks[0].attn.qkv.register_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype)
    )
    step()
    assert dtypes == [torch.bfloat16]
    assert {parameter.dtype for parameter in step.model.parameters()} == {torch.float32}


def test_only_the_loss_is_compiled_and_operations_are_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    count = training.count_operations

    def compile_(function: Any) -> Any:
        events.append('compile')
        return lambda *args: events.append('loss') or function(*args)

    monkeypatch.setattr(torch, 'compile', compile_)
    monkeypatch.setattr(training, 'count_operations', lambda step: events.append('count') or count(step))
    report = benchmark_training([UMMAE], (128, 128), 1, compiled=True, rounds=2, warmup=1, memory=False)
    assert events == ['count', 'compile', 'loss', 'loss', 'loss']
    assert report['arguments']['compiled']


def test_two_views_of_an_image_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, 'build_network', lambda config: nn.Identity())
    entry = Entry('BEiT', str(leaf('lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px')))
    message = 'the model is a mm_ummae.LoMaRBEiT, which takes two views of each image: it is not measured'
    with pytest.raises(ValueError, match=message):
        make_step(entry, OPTIONS)


# What is compared


@cache
def read(name: str) -> Config:
    (entry,) = (entry for entry in (*COMPARISON, *DENSE) if entry.name == name)
    return entry.read()


@cache
def full(name: str) -> nn.Module:
    """At full size: on `meta`, or on the CPU what computes with values while it is built."""
    config = copy.deepcopy(read(name))
    return build_model(config, 'cpu' if name.startswith('MM') else 'meta')


def test_entries_are_read_from_anywhere_and_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for entry in (COMPARISON[1], STOCK):
        changes = json.dumps(entry.changes)
        first, second = entry.read().to_dict(), entry.read().to_dict()
        assert json.dumps(entry.changes) == changes
        assert first == second
    assert '_delete_' not in first['model']['backbone']['arch']


def test_the_plain_formulation_is_ummae_with_another_type() -> None:
    ours, plain = (read(entry.name).model.to_dict() for entry in COMPARISON[:2])
    assert (ours.pop('type'), plain.pop('type')) == ('mm_ummae.UMMAE', 'mm_ummae.PlainUMMAE')
    assert ours == plain
    assert [type(full(entry.name)).__name__ for entry in COMPARISON[:2]] == ['UMMAE', 'PlainUMMAE']


@pytest.mark.parametrize('name', [entry.name for entry in COMPARISON[:3]])
def test_our_pretraining_has_a_swin_tiny_at_256_px(name: str) -> None:
    backbone = full(name).backbone
    assert backbone.patch_embed.projection.out_channels == 96
    assert [len(stage.blocks) for stage in backbone.stages] == [2, 2, 6, 2]
    assert read(name).model.backbone.img_size == 256


def test_stock_simmim_has_the_same_backbone_at_the_same_size() -> None:
    model = full('MMPretrain: SimMIM')
    assert (type(model).__name__, type(model.backbone).__name__) == ('SimMIM', 'SimMIMSwinTransformer')
    assert model.backbone.patch_embed.init_out_size == (64, 64)
    assert model.backbone.patch_embed.projection.out_channels == 96
    assert [len(stage.blocks) for stage in model.backbone.stages] == [2, 2, 6, 2]
    windows = {block.attn.window_size for stage in model.backbone.stages for block in stage.blocks}
    assert windows == {8}
    assert model.neck.decoder[0].in_channels == 768
    masks = read('MMPretrain: SimMIM').train_dataloader.dataset.pipeline[3]
    assert masks.type.endswith('SimMIMMaskGenerator') and masks.input_size == 256


def test_mae_has_a_vit_base_at_256_px() -> None:
    model = full('MMPretrain: MAE, ViT-B')
    assert type(model).__name__ == 'MAE' and len(model.backbone.layers) == 12
    assert model.backbone.pos_embed.shape == (1, 1 + 16 * 16, 768)
    assert model.neck.decoder_pos_embed.shape == (1, 1 + 16 * 16, 512)


def test_detectors_have_the_same_heads_and_backbones_of_the_same_size() -> None:
    models = [full(entry.name) for entry in DENSE]
    assert [type(model.backbone).__name__ for model in models] == ['UMSwin', 'UMSwin', 'SwinTransformer']
    necks = [dict(model.neck.named_modules()) for model in models]
    assert [sum(type(module).__name__ == 'FPN' for module in neck.values()) for neck in necks] == [1, 1, 1]
    heads = [
        {name: value.shape for name, value in model.named_parameters() if name.startswith(('rpn_head', 'roi_head'))}
        for model in models
    ]
    assert heads[0] == heads[1] == heads[2] and len(heads[0]) > 20
    windows = [read(entry.name).model.backbone.window_size for entry in DENSE]
    assert windows == [16, 7, 7]
    for model in models:
        assert [len(stage.blocks) for stage in model.backbone.stages] == [2, 2, 6, 2]
    sizes = [sum(map(torch.numel, model.backbone.parameters())) for model in models]
    assert sizes[0] == sizes[1] == pytest.approx(sizes[2], rel=0.02)


# Operations


class Layer(nn.Module):
    """A convolution of the image, a linear layer, and attention without bias: 3 images of 6 x 5 patches, 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 32, 4, 4)
        self.linear = nn.Linear(32, 96)

    def loss(self) -> Tensor:
        x = self.convolution(torch.ones(3, 3, 24, 20)).flatten(2).transpose(1, 2)
        query, key, value = self.linear(x).view(3, 30, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).sum()


def test_operations_of_forward_and_backward_are_those_counted_by_hand() -> None:
    """Backward of the convolution is one product, as the image needs no gradient, and of the linear layer two.

    That of fused attention on a CPU is five: four, and the scores once more.
    """
    layer = Layer()
    found = count_operations(SimpleNamespace(loss=layer.loss, optimizer=torch.optim.AdamW(layer.parameters())))
    convolution, linear, product = 90 * 32 * 48, 90 * 32 * 96, 3 * 4 * 30 * 30 * 8
    assert found['forward'] == 2 * (convolution + linear + 2 * product)
    assert found['step'] - found['forward'] == 2 * (convolution + 2 * linear + 5 * product)
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_counting_does_not_update() -> None:
    step = make_step(SIMMIM, OPTIONS)
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    one = count_operations(step)
    assert all(torch.equal(old, new) for old, new in zip(before, step.model.parameters(), strict=True))
    assert 2.9 * one['forward'] < one['step'] < 3.2 * one['forward']
    two = count_operations(make_step(SIMMIM, OPTIONS | dict(batch=4)))
    assert two['forward'] == pytest.approx(2 * one['forward'], rel=1e-2)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_matrix_product_has_the_operations_that_it_says(dtype: str) -> None:
    product = MatrixProduct('cpu', dtype)
    with flop_counter() as counter:
        result = product()
    assert counter.get_total_flops() == product.operations == 2 * 2048**3
    assert result.dtype == getattr(torch, dtype) and result.shape == (2048, 2048)


# Memory


def filling(megabytes: int, also: str = 'None') -> partial:
    """Makes something that fills memory bit by bit when it is called, evaluates ``also``, and drops what it filled."""
    return partial(partial, eval, f'([bytearray(2**16) for _ in range({16 * megabytes})], {also})')


def test_a_process_grows_by_what_it_takes_and_not_by_what_warming_up_took() -> None:
    """A trifle that stays, as libraries leave them, keeps the C library from giving back what is below it."""
    warmup = filling(100, also='__import__("sys").__dict__.setdefault("trifle", bytearray(2**16))')
    assert process_growth(filling(200), warmup) == pytest.approx(200 * 2**20, rel=0.05)


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match='the process whose memory is measured was killed: memory may not suffice'):
        process_growth(filling(1), partial(os._exit, 1))


def test_a_process_has_to_run_something() -> None:
    with pytest.raises(ValueError, match='runs is 0, but it must be at least 1'):
        process_growth(filling(1), filling(1), runs=0)


def test_memory_is_asked_of_every_network_at_the_batch_after_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(*makes: partial) -> int:
        asked.append(pickle.loads(pickle.dumps(makes)))  # as on the way to the process
        return 7 * len(asked)

    monkeypatch.setattr(training, 'process_growth', measure)
    report = benchmark_training([UMMAE, SIMMIM], (128, 128), 2, rounds=1, warmup=0)
    assert [network['memory'] for network in report['networks']] == [7, 14]
    for entry, (make, warmup) in zip((UMMAE, SIMMIM), asked, strict=True):
        assert make.func is warmup.func is make_step
        assert make.args[0] == warmup.args[0] == entry
        assert (make.args[1]['batch'], warmup.args[1]['batch']) == (2, 1)
        assert {**make.args[1], 'batch': 1} == warmup.args[1]


def test_memory_of_a_gpu_is_what_a_step_adds_to_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others that hold 1000 bytes: 300 stay, and a step takes 500 more."""
    peak = [9999]
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: 1300)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: peak.__setitem__(0, 1300))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: peak[0])

    class Step:
        def __call__(self) -> None:
            peak[0] = max(peak[0], 1800)

        def resident(self) -> int:
            return 300

    assert training.gpu_memory(Step()) == 800


# Reports


@pytest.fixture(scope='module')
def report() -> dict[str, Any]:
    measures = ('forward', 'backward', 'step')
    return benchmark_training([UMMAE, SIMMIM], (128, 128), 2, measures=measures, rounds=2, warmup=0, memory=False)


def test_every_measure_of_every_network_is_timed_in_every_round(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert [network['name'] for network in report['networks']] == ['ours', 'SimMIM']
    for network in report['networks']:
        assert list(network['seconds']) == ['forward', 'backward', 'step']
        assert all(len(times) == 2 and min(times) > 0 for times in network['seconds'].values())
        assert network['parameters'] > 1e6 and network['memory'] is None
    ours, simmim = (network['operations']['forward'] for network in report['networks'])
    assert ours < simmim / 2
    assert len(report['matrix_product']['seconds']) == 2
    assert report['arguments']['shape'] == [128, 128] and report['environment']['device'] == 'cpu'
    lines = training_table(report).splitlines()
    assert len(lines) == 2 + 6 and 'memory' not in lines[0]


def made_up(name: str, seconds: list[float], step: int = 1200, memory: int | None = 10**9) -> dict[str, Any]:
    operations = dict(forward=step // 3 * 10**9, step=step * 10**9)
    return dict(name=name, parameters=12_340_000, operations=operations, seconds=dict(step=seconds), memory=memory)


def made_up_report(device: str = 'cpu', dtype: str = 'float32', with_memory: bool = True) -> dict[str, Any]:
    """Medians of ratios differ from ratios of medians."""
    ours, plain, simmim, stock, mae = (entry.name for entry in COMPARISON)
    networks = [
        made_up(ours, [2.0, 3.0, 10.0]),
        made_up(plain, [4.0, 30.0, 8.0], memory=2 * 10**9),
        made_up(simmim, [5.0, 5.0, 20.0], step=3000, memory=4 * 10**9),
        made_up(stock, [10.0, 10.0, 10.0]),
        made_up(mae, [1.0, 1.0, 1.0]),
    ]
    if not with_memory:
        networks = [network | dict(memory=None) for network in networks]
    product = dict(operations=1000 * 10**9, seconds=[1.0, 4.0, 2.0])
    return dict(arguments=dict(batch=4, device=device, dtype=dtype), matrix_product=product, networks=networks)


def test_ratios_are_medians_of_those_of_the_rounds() -> None:
    report = made_up_report()
    ours, plain, *_ = (entry.name for entry in COMPARISON)
    assert time_ratio(report, ours, plain) == 0.5  # of 0.5, 0.1 and 1.25
    assert time_ratio(report, ours, ours) == 1
    assert product_share(report, report['networks'][0]) == pytest.approx(0.6)  # of 0.6, 1.6 and 0.24
    forward = report['networks'][0] | dict(seconds=dict(forward=[1.0, 2.0, 2.0]))
    assert product_share(report, forward, 'forward') == pytest.approx(0.4)  # a third of the operations


def test_the_table_has_medians_ratios_and_memory() -> None:
    lines = training_table(made_up_report()).splitlines()
    assert lines[0].count('|') == lines[2].count('|') == 11
    assert lines[2] == '| UM-MAE | step | 12.3 | 300.0 | 3 (2 to 10) | 1.33 | 1.00 | 0.60 | 1.00 | 1.00 |'
    assert lines[3].endswith('| step | 12.3 | 300.0 | 8 (4 to 30) | 0.5 | 2.00 | 0.30 | 2.00 | 2.00 |')
    assert training_table(made_up_report(with_memory=False)).splitlines()[2].endswith('| 1.00 | 0.60 |')


@pytest.mark.parametrize(
    ('device', 'dtype', 'limits'),
    [
        ('cpu', 'float32', [0.75, 1.05 * 0.4, 0.35, 0.8, 0.7, 0.4]),
        ('cpu', 'bfloat16', [0.6, 1.05 * 0.4, 0.35, 0.5, 0.7, 0.4]),
        ('cuda', 'bfloat16', [0.4, 1.1 * 0.4, 0.35, 0.35, 0.4, 0.35]),
    ],
)
def test_targets_have_the_limits_of_their_machine(device: str, dtype: str, limits: list[float]) -> None:
    """SimMIM has 2.5 times the operations."""
    found = targets(made_up_report(device, dtype))
    assert [target.limit for target in found] == pytest.approx(limits)
    assert [target.value for target in found] == pytest.approx([0.5, 0.5, 0.3, 0.6, 0.5, 0.25])
    assert [target.at_most for target in found] == [True, True, True, False, True, True]
    without = targets(made_up_report(device, dtype, with_memory=False))
    assert without == found[:4]


def test_a_target_is_reached_on_its_side_of_the_limit() -> None:
    assert [Target('', 0.5, value).reached() for value in (0.4, 0.5, 0.6)] == [True, True, False]
    assert [Target('', 0.5, value, at_most=False).reached() for value in (0.4, 0.5, 0.6)] == [False, True, True]


def test_the_table_of_targets_says_what_is_reached() -> None:
    lines = target_table(targets(made_up_report())).splitlines()
    assert lines[0] == '| target | limit | measured | reached |'
    assert lines[2:] == [
        '| step time, to plain formulation | ≤ 0.75 | 0.5 | yes |',
        '| step time, to SimMIM (1.05 x operations) | ≤ 0.42 | 0.5 | no |',
        "| step time, to MMPretrain's SimMIM | ≤ 0.35 | 0.3 | yes |",
        '| share of matrix products | ≥ 0.8 | 0.6 | no |',
        '| memory, to plain formulation | ≤ 0.7 | 0.5 | yes |',
        '| memory, to SimMIM | ≤ 0.4 | 0.25 | yes |',
    ]


# Errors


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(entries=[]), r'entries are \[\], but there must be at least one and no name twice'),
        (dict(entries=[UMMAE, UMMAE]), r"entries are \['ours', 'ours'\], but .* no name twice"),
        (dict(shape=(128,)), r'shape is \(128,\), but it must be a height and a width of at least one pixel'),
        (dict(shape=(128, 0)), r'shape is \(128, 0\), but'),
        (dict(measures=[]), r'measures is \[\], but it must be some of forward, backward, step'),
        (dict(measures=['step', 'epoch']), r"measures is \['step', 'epoch'\], but"),
        (dict(dtype='float64'), "dtype is 'float64', but it must be one of float32, float16, bfloat16"),
        (dict(dtype='float16'), "dtype is 'float16', but .* on a CPU not float16"),
        (dict(batch=0), 'batch is 0, but it must be at least 1'),
        (dict(rounds=0), 'rounds is 0, but it must be at least 1'),
        (dict(warmup=-1), 'warmup is -1, but it must be at least 0'),
        (dict(device='tpu'), "device is 'tpu', but it must be cpu or cuda"),
    ],
)
def test_illegal_arguments_are_named_before_anything_is_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark_training(**(dict(entries=[Entry('none', 'no/such/config.py')]) | arguments))


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='device is cuda, but PyTorch finds no GPU here'):
        benchmark_training([UMMAE], device='cuda')
