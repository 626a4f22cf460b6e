"""Multiply-adds against formulas, detectors of random weights that work like trained ones, times in turn, reports."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import mmcv
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import base_dense_head
from mmdet.models.layers import bbox_nms
from mmengine.config import Config, ConfigDict
from mmpretrain.models import SwinTransformer
from torch import Tensor, nn

from mm_ummae.analysis import Prediction, benchmark, build_network, count_multiply_adds, environment, markdown_table, measuring, network_table, peak_memory, prediction, random_image, read_config, report, time_interleaved, write_json
from mm_ummae.models import UMPVT, UMSwin

from .leaves import ROOT, leaf
from .test_dense import shrink

SHAPE = (100, 150)  # padded to whole strides of 32: 128 x 160
DEMO = {
    'detector': leaf('mask-rcnn_um-swin-test_1xb8-200it_demo-128px'),
    'segmentor': leaf('upernet_um-swin-test_1xb8-150it_demo-128px'),
    'classifier': leaf('um-swin-test_classification_1xb16-100it_demo-128px'),
}


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def narrow(settings: Any) -> None:
    """A published detector with a sixteenth of its channels, at any depth of its config."""
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        if isinstance(value, (dict, list)):
            narrow(value)
        elif value in (256, 1024) and str(key).endswith('channels'):
            settings[key] = value // 16


@cache
def small_config(kind: str) -> Config:
    if kind == 'gfl':
        config = read_config(leaf('gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco'))
        shrink(config.model)
        config.model.neck[0].in_channels = [32, 64, 128, 256]
    elif kind == 'cascade':
        config = read_config('mmdet::htc/htc_r50_fpn_1x_coco.py')
        narrow(config.model)
        config.model.backbone = ConfigDict(
            type='mm_ummae.UMSwin', arch='test', img_size=128, out_indices=(0, 1, 2, 3), final_norm=False
        )
        config.model.neck.in_channels = [32, 64, 128, 256]
    else:
        config = read_config(DEMO[kind])
    return config


def predict(kind: str, **options) -> Prediction:
    return Prediction(copy.deepcopy(small_config(kind)), SHAPE, **options)


def total(model: nn.Module, *inputs: Tensor) -> int:
    with torch.no_grad():
        return sum(count_multiply_adds(model, lambda: model(*inputs)).values())


# Multiply-adds against formulas


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


@pytest.mark.parametrize(
    ('layer', 'shape', 'expected'),
    [
        (nn.Linear(5, 7), (2, 3, 4, 5), 2 * 3 * 4 * 5 * 7),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 11, 9), 2 * 6 * 5 * 12 * 8 * 9),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), (2, 8, 6, 5), 2 * 6 * 5 * 12 * 2 * 9),
        (nn.ConvTranspose2d(8, 12, 2, 2), (2, 8, 5, 4), 2 * 5 * 4 * 12 * 8 * 4),
        (nn.LayerNorm(5), (2, 3, 5), 0),
    ],
    ids=['linear', 'convolution', 'grouped convolution', 'transposed convolution', 'norm'],
)
def test_layers_count_as_their_formulas(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert total(layer, torch.randn(shape)) == expected


@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_attention_counts_both_products(dtype: torch.dtype, with_bias: bool) -> None:
    """Whichever kernel PyTorch takes: 3 images, 4 heads, 10 queries, 7 keys of 8 channels."""
    query, key, value = (torch.randn(3, 4, tokens, 8, dtype=dtype) for tokens in (10, 7, 7))
    bias = torch.randn(1, 4, 10, 7, dtype=dtype) if with_bias else None
    assert total(Attention(), query, key, value, bias) == 3 * 4 * (10 * 8 * 7 + 10 * 7 * 8)


@pytest.mark.parametrize(('height', 'width'), [(256, 128), (100, 150)])
def test_windows_of_swin_count_as_their_formula(height: int, width: int) -> None:
    """Linear layers of all tokens with the padding, both products of attention, and the position MLP."""
    model = UMSwin('test', img_size=128, window_size=4, out_indices=(0, 1, 2, 3)).eval()
    window, h, w = 4, -(-height // 4), -(-width // 4)
    expected = 4 * 4 * 3 * 32 * h * w
    for i in range(4):
        dims, heads = 32 * 2**i, 2 * 2**i
        if i:
            h, w = -(-h // 2), -(-w // 2)
            expected += 2 * 2 * dims // 2 * dims * h * w
        padded = (h + -h % window) * (w + -w % window)
        for _ in range(2):
            expected += padded * 4 * dims * dims  # query, key, value and projection
            expected += padded * window**2 * dims * 2
            expected += h * w * 2 * 4 * dims * dims
            expected += (2 * window - 1) ** 2 * 8 * (2 + heads)
    assert total(model, torch.randn(1, 3, height, width)) == expected


def test_pooled_attention_of_pvt_counts_as_its_formula() -> None:
    """In one block of stage 1: 32 x 32 tokens of 32 channels attend to 4 x 4 pooled ones."""
    block = UMPVT('test', img_size=128).stages[0].blocks[0].eval()
    tokens, keys, dims = 32 * 32, 4 * 4, 32
    hidden = block.ffn.layers[0][0].out_features
    expected = (
        tokens * dims * dims * 2  # query and projection
        + keys * dims * dims * 3  # reduction, key and value
        + tokens * keys * dims * 2
        + tokens * dims * hidden * 2
    )
    assert total(block, torch.randn(1, 32, 32, dims), 8) == expected


class Parts(nn.Module):
    """A head is used past its own ``forward``, as hosts do; the last product belongs to no part."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 5)))
        self.head = nn.ModuleDict(dict(first=nn.Linear(5, 3), second=nn.Linear(5, 2)))
        self.idle = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return self.head['first'](x) @ torch.ones(3, 8) + self.head['second'](x) @ torch.ones(2, 8)


def test_multiply_adds_are_split_by_child() -> None:
    """Nested modules count once; a child that does nothing is left out; no hook stays behind."""
    model, x = Parts(), torch.randn(10, 4)
    for _ in range(2):
        with torch.no_grad():
            counts = count_multiply_adds(model, lambda: model(x))
        assert counts == dict(backbone=10 * (24 + 30), head=10 * (15 + 10), other=10 * (24 + 16))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_heads_of_a_detector_count_the_boxes_they_got() -> None:
    """Each proposal goes through the box head, each detection through the mask head."""
    prediction = predict('detector')
    counts = count_multiply_adds(prediction.model, prediction)
    assert list(counts) == ['backbone', 'neck', 'rpn_head', 'roi_head']
    box = 7 * 7 * 64 * 64 * 9 + 7 * 7 * 64 * 256 + 256 * (11 + 4)
    mask = 14 * 14 * 64 * 64 * 9 * 2 + 14 * 14 * 64 * 64 * 4 + 28 * 28 * 64
    found = prediction.found
    assert found['proposals'] == found['detections'] == 100
    assert counts['roi_head'] == found['proposals'] * box + found['detections'] * mask
    assert counts['backbone'] == total(prediction.model.backbone, prediction.inputs)


@pytest.mark.parametrize(('arch', 'published'), [('tiny', 4.5), ('small', 8.7)])
def test_swin_has_the_published_multiply_adds(arch: str, published: float) -> None:
    """Of the stock Swin at 224 x 224, as table 1 of its paper (arXiv 2103.14030) says."""
    assert total(SwinTransformer(arch), torch.randn(1, 3, 224, 224)) / 1e9 == pytest.approx(published, abs=0.05)


# Detectors of random weights


def scores_for_suppression(kind: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many boxes each later call of the last non-maximum suppression gets."""
    module = base_dense_head if kind == 'gfl' else bbox_nms
    original, sizes = module.batched_nms, []

    def spy(boxes: Tensor, scores: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        sizes.append(len(scores))
        return original(boxes, scores, *args, **kwargs)

    monkeypatch.setattr(module, 'batched_nms', spy)
    return sizes


@pytest.mark.parametrize('candidates', [300, 40])
@pytest.mark.parametrize('kind', ['detector', 'gfl', 'cascade'])
def test_as_many_candidates_as_asked_reach_suppression(
    kind: str, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one stage, two and a cascade; the report says what happens in each later prediction."""
    prediction = predict(kind, candidates=candidates)
    assert prediction.found['candidates'] == candidates
    sizes = scores_for_suppression(kind, monkeypatch)
    results = [prediction()[0].pred_instances for _ in range(2)]
    assert sizes == [candidates, candidates]
    assert [len(result) for result in results] == [prediction.found['detections']] * 2
    assert 0 < prediction.found['detections'] <= min(candidates, 100)
    assert torch.equal(results[0].bboxes, results[1].bboxes)
    assert results[0].scores.min() > prediction.found['score_thr'] > 0
    assert kind == 'gfl' or results[0].masks.shape == (len(results[0]), *SHAPE)
    assert ('proposals' in prediction.found) == (kind != 'gfl')


def test_all_boxes_are_candidates_where_there_are_fewer_than_asked() -> None:
    """100 proposals of 10 classes."""
    found = predict('detector', candidates=5000).found
    assert found['candidates'] == 1000 and found['score_thr'] < 1e-9


def test_ties_do_not_let_too_many_through() -> None:
    """All scores but five are the same: of those none passes."""
    scores = torch.cat([torch.full((995,), 0.25), torch.linspace(0.5, 0.9, 5)])
    threshold = prediction._threshold(lambda value: int((scores > value).sum()), 100)
    assert int((scores > threshold).sum()) == 5


@pytest.mark.parametrize('kind', ['segmentor', 'classifier'])
def test_nothing_is_calibrated_without_boxes(kind: str) -> None:
    prediction = predict(kind)
    assert prediction.found == {}
    (result,) = prediction()
    assert 'pred_sem_seg' in result or 'pred_score' in result


def test_a_failed_calibration_leaves_the_head_as_it_was() -> None:
    model = predict('detector').model
    head = model.roi_head.bbox_head

    def fail() -> list:
        raise RuntimeError('no image')

    with pytest.raises(RuntimeError, match='no image'):
        prediction.calibrate(model, fail, 100)
    assert 'predict_by_feat' not in vars(head)


# What is built


def test_weights_are_random_but_always_the_same() -> None:
    """The config names a checkpoint that does not exist, and stays as it is."""
    config = copy.deepcopy(small_config('detector'))
    assert config.model.backbone.init_cfg.type == 'Pretrained'
    before = copy.deepcopy(config.model)
    first, second = build_network(config).state_dict(), build_network(config).state_dict()
    assert config.model == before
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first['backbone.stages.0.blocks.0.attn.qkv.weight'].std() > 0.01


def test_batch_norm_stands_in_for_the_synchronised() -> None:
    """With one process there is nothing to synchronise, and on a CPU it would not run."""
    config = read_config(leaf('upernet_um-pvt-small_8xb2-amp-160k_ade20k-512x512-whole'))
    assert config.model.decode_head.norm_cfg.type == 'SyncBN'
    config.model.backbone.arch = 'test'
    config.model.neck.in_channels = [32, 64, 80, 128]
    model = build_network(config)
    assert not model.training
    assert any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


@pytest.mark.parametrize(('kind', 'padded'), [('detector', (128, 160)), ('segmentor', SHAPE), ('classifier', SHAPE)])
def test_the_picture_is_padded_as_the_host_pads(kind: str, padded: tuple[int, int]) -> None:
    prediction = predict(kind)
    assert prediction.inputs.shape == (1, 3, *padded) and prediction.inputs.dtype == torch.float32
    inside = prediction.inputs[..., : SHAPE[0], : SHAPE[1]]
    assert inside.mean().abs() < 1 and 0.5 < inside.std() < 2  # normalised noise
    assert not prediction.inputs[..., SHAPE[0] :, :].any()


def test_pictures_are_noise_of_a_fixed_seed() -> None:
    first, second = (random_image('mmseg', (20, 30)) for _ in range(2))
    assert torch.equal(first['inputs'][0], second['inputs'][0])
    assert first['inputs'][0].shape == (3, 20, 30) and first['inputs'][0].dtype == torch.uint8
    assert first['data_samples'][0].ori_shape == (20, 30)


def test_mixed_precision_is_that_of_autocast() -> None:
    prediction = predict('segmentor', dtype='bfloat16')
    assert prediction()[0].seg_logits.data.dtype == torch.bfloat16
    assert prediction.model.backbone.patch_embed.projection.weight.dtype == torch.float32


def test_a_detector_in_mixed_precision_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match='dtype is bfloat16, but a detector on a CPU must have float32'):
        predict('gfl', dtype='bfloat16')


def test_a_detector_of_one_stage_in_mixed_precision_is_refused() -> None:
    with pytest.raises(ValueError, match='dtype is float16, but a detector of one stage must have float32'):
        predict('gfl', device='cuda', dtype='float16')


# Times and memory


def test_runs_take_turns() -> None:
    """Warm-up rounds are run and not kept."""
    order: list[str] = []
    seconds = time_interleaved({name: lambda name=name: order.append(name) for name in 'ab'}, rounds=3, warmup=2)
    assert order == ['a', 'b'] * 5
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, b=3)


def test_times_cover_the_work_that_a_gpu_still_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run only queues its work; waiting for it, here a clock that jumps, belongs to the time."""
    clock, queued = [0.0], [7.0]

    def wait() -> None:
        clock[0] += queued.pop() if queued else 0.0

    monkeypatch.setattr(torch.cuda, 'synchronize', wait)
    monkeypatch.setattr(measuring.time, 'perf_counter', lambda: clock[0])
    # What lay in the queue before a run is not its time
    seconds = time_interleaved(dict(a=lambda: queued.append(2.0)), rounds=2, warmup=0, device='cuda')
    assert seconds == dict(a=[2.0, 2.0])


def test_memory_is_that_of_one_network_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others hold 1000 bytes; the network holds 40 of weights and takes 300 more while it runs."""
    model, peak = nn.Linear(4, 2), [5000]
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: 1040)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: peak.__setitem__(0, 1040))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: peak[0])
    assert peak_memory(model, lambda: peak.__setitem__(0, 1340), 'cuda') == 40 + 300
    assert peak_memory(model, lambda: None, 'cpu') is None


# Reports


def test_the_environment_names_hardware_versions_and_commit() -> None:
    found = environment('cpu')
    assert found['cpu'] and found['cores'] >= 1 and found['threads'] == torch.get_num_threads()
    # A build's own label, as in 2.1.2+cu121, is no part of what pip knows
    assert found['versions']['torch'].partition('+')[0] == torch.__version__.partition('+')[0]
    assert found['versions']['mmcv'] == mmcv.__version__
    assert found['commit'] is None or re.fullmatch(r'[0-9a-f]{40}(-dirty)?', found['commit'])
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d', found['date'])
    assert json.loads(json.dumps(found)) == found


def git(folder: Path, *words: str) -> str:
    command = ['git', '-C', str(folder), '-c', 'user.name=a', '-c', 'user.email=a@b.c', *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_says_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    assert environment('cpu')['commit'] is None
    git(tmp_path, 'init')
    (tmp_path / 'file').write_text('one')
    git(tmp_path, 'add', 'file')
    git(tmp_path, 'commit', '-m', 'first')
    git(tmp_path, 'tag', '-a', '-m', 'a release', 'v1')
    commit = git(tmp_path, 'rev-parse', 'HEAD')
    assert environment('cpu')['commit'] == commit
    (tmp_path / 'file').write_text('two')
    assert environment('cpu')['commit'] == f'{commit}-dirty'


def test_tables_are_markdown() -> None:
    table = markdown_table(['name', 'a', 'b'], [['x', '1', '2'], ['y', '3', '4']])
    assert table.splitlines() == ['| name | a | b |', '| --- | ---: | ---: |', '| x | 1 | 2 |', '| y | 3 | 4 |']


def test_the_table_of_networks_shows_medians_shares_and_memory() -> None:
    network = dict(
        name='net',
        parameters=12_340_000,
        multiply_adds=dict(backbone=5 * 10**9, neck=10**9, rpn_head=10**9, roi_head=3 * 10**9),
        seconds=[0.5, 0.2, 0.25],
        peak_memory=3_210_000_000,
    )
    (row,) = network_table([network]).splitlines()[2:]
    assert row == '| net | 12.3 | 10.0 | 50 % | 10 % | 40 % | 0.250 (0.200 to 0.500) | 4 | 3.21 |'
    counted = {key: network[key] for key in ('name', 'parameters', 'multiply_adds')}
    assert network_table([counted]).splitlines()[2:] == ['| net | 12.3 | 10.0 | 50 % | 10 % | 40 % |']
    assert 'memory' not in network_table([network | dict(peak_memory=None)])


def test_the_tool_measures_all_hosts_and_writes_every_time(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'new' / 'report.json'
    words = [*map(str, DEMO.values()), '--shape', '96', '128', '--rounds', '2', '--warmup', '0', '--device', 'cpu']
    tool().main([*words, '--threads', '1', '--candidates', '50', '--out', str(out)])
    report = json.loads(out.read_text())
    assert report['arguments']['shape'] == [96, 128] and report['environment']['threads'] == 1
    assert [network['config'] for network in report['networks']] == [str(path) for path in DEMO.values()]
    for network in report['networks']:
        assert len(network['seconds']) == 2 and min(network['seconds']) > 0
        assert network['parameters'] > 2e6 and network['multiply_adds']['backbone'] > 1e8
    assert report['networks'][0]['found']['candidates'] == 50
    printed = capsys.readouterr().out
    assert network_table(report['networks']) in printed and str(out) in printed
    assert 'INFO' not in printed


def test_counting_alone_takes_no_times(tmp_path: Path) -> None:
    words = [str(DEMO['classifier']), '--shape', '64', '64', '--flops-only', '--out', str(tmp_path / 'report.json')]
    (network,) = tool().main(words)['networks']
    assert 'seconds' not in network and network['multiply_adds']['head'] == 256 * 10


def test_hosts_of_dense_tasks_are_not_needed_to_import_it() -> None:
    code = (
        'import sys; sys.modules.update(dict.fromkeys(("mmdet", "mmseg")));'
        'from mm_ummae.benchmark import random_image; random_image("mmpretrain", (8, 8))'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


# Errors


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(configs=[]), r'configs is \[\], but there must be at least one'),
        (dict(configs=['a.py', 'a.py']), r"configs is \['a.py', 'a.py'\], but .* none of them twice"),
        (dict(shape=(0, 64)), r'shape is \(0, 64\), but it must be a height and a width of at least one pixel'),
        (dict(shape=(64,)), r'shape is \(64,\), but it must be a height and a width'),
        (dict(device='tpu'), "device is 'tpu', but it must be cpu or cuda"),
        (dict(dtype='int8'), "dtype is 'int8', but it must be one of float32, float16, bfloat16"),
        (dict(dtype='float16'), 'dtype is float16, but on a CPU it must be float32 or bfloat16'),
        (dict(rounds=0), 'rounds is 0, but it must be at least 1'),
        (dict(warmup=-1), 'warmup is -1, but it must be at least 0'),
        (dict(candidates=0), 'candidates is 0, but it must be at least 1'),
    ],
    ids=str,
)
def test_illegal_arguments_are_refused_before_anything_is_built(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark(**(dict(configs=['no/such/config.py']) | options))


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='device is cuda, but PyTorch finds no GPU here'):
        benchmark([str(DEMO['detector'])], device='cuda')


def test_the_tool_refuses_no_threads() -> None:
    with pytest.raises(ValueError, match='--threads is 0, but at least one is needed'):
        tool().main([str(DEMO['detector']), '--threads', '0'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('default_scope = "mmdet"', r'the config .*some\.py has no model'),
        (
            'model = dict()',
            r'default_scope of the config .*some\.py is None, but it must be one of mmdet, mmseg, mmpre',
        ),
        ('model = dict(); default_scope = "mmpose"', "is 'mmpose', but it must be one of"),
    ],
)
def test_configs_without_a_network_to_measure_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / 'some.py').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / 'some.py')


def test_a_config_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'missing\.py'):
        read_config(tmp_path / 'missing.py')


def test_a_report_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(dict(value=object()), tmp_path / 'report.json')
    assert not list(tmp_path.iterdir())
