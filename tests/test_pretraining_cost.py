"""Cost of pre-training: counts by hand, what memory contains, where operations belong, reports."""

from __future__ import annotations

import importlib.util
import json
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

import pytest
import torch

from benchmarks import pretraining_cost as measuring
from benchmarks import profile
from benchmarks.profile import OTHERS, profile_step
from mm_ummae.analysis.memory import PeakMemory
from mm_ummae.models import UMMAE
from benchmarks.pretraining_cost import DEFAULT_METHODS, METHODS, SIZES, Step, cost_figure, cost_profile_table, cost_table, count_step, network_config, num_windows, pretraining_cost, speed_ratio, step_memory

from .leaves import ROOT

PLAIN = ['mae', 'lomar', 'um-mae']
# Of the encoder `test`, and what is the same at 128 px: 8 x 8 patches
DIMS, LAYERS, HIDDEN, PIXELS = 96, 4, 384, 16 * 16 * 3


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('pretraining_tool', ROOT / 'tools' / 'benchmark_pretraining.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the tool measures in small; `folder` is where it wrote."""
    folder = tmp_path_factory.mktemp('cost')
    words = f'--methods {" ".join(PLAIN)} --sizes 128 192 --arch test --batch 1 --rounds 2 --profile 128 --device cpu'
    return tool().main([*words.split(), '--out', str(folder)]) | dict(folder=folder)


def rows(report: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [row for row in report['rows'] if row['method'] == method]


# What is built


@pytest.mark.parametrize(('size', 'windows'), [(224, 4), (384, 6), (448, 9), (672, 20), (896, 36), (128, 1)])
def test_windows_are_the_published_ones_and_follow_the_area_beyond(size: int, windows: int) -> None:
    assert num_windows(size) == windows


@pytest.mark.parametrize('method', DEFAULT_METHODS)
def test_only_sizes_change_in_a_config(method: str) -> None:
    """With the published size nothing does but what says the same in other words."""
    changed, published = network_config(method, 224).model, network_config(method, 672).model
    assert changed.keys() == published.keys()
    different = {
        f'{key}.{name}' if isinstance(changed[key], dict) else key
        for key in changed
        for name in (changed[key] if isinstance(changed[key], dict) else [None])
        if changed[key] != published[key] and (name is None or changed[key][name] != published[key][name])
    }
    second = {'mae': 'neck.num_patches', 'lomar': 'num_windows', 'um-mae': 'neck.img_size'}[method[:6].split('-2')[0]]
    assert different == {'backbone.img_size', second}


@pytest.mark.parametrize('method', METHODS)
def test_every_method_makes_a_step(method: str) -> None:
    step = Step(method, 128, 'test', batch=1)
    before = [parameter.clone() for parameter in step.model.parameters() if parameter.requires_grad]
    step()
    after = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_explicit_attention_computes_the_same_and_holds_the_scores() -> None:
    losses, kept = {}, {}
    for method in ('mae', 'mae-2022'):
        step = Step(method, 128, 'test', batch=2)
        torch.manual_seed(0)
        with PeakMemory() as memory:
            loss = step.loss()
        losses[method], kept[method] = loss, memory.live
    assert losses['mae'].item() == pytest.approx(losses['mae-2022'].item(), rel=1e-5)
    scores = 4 * 2 * (16 * 65**2 * 8 + 4 * 17**2 * LAYERS)  # float32; decoder and encoder
    fused = 4 * 2 * (16 * 65 * 8 + 4 * 17 * LAYERS)  # what it keeps of a row of scores
    assert kept['mae-2022'] - kept['mae'] == pytest.approx(scores, abs=4 * fused)


# Multiply-adds by hand


def block(tokens: int, dims: int, hidden: int, products: int = 2) -> int:
    """Linear layers, and as many attention products of (tokens, tokens, dims)."""
    return tokens * dims * (4 * dims + 2 * hidden) + products * tokens**2 * dims


def expected_counts(method: str) -> dict[str, int]:
    """At 128 px: 64 patches. MAE and UM-MAE keep 16, LoMaR has one window of 49, of which 10 are visible."""
    if method == 'lomar':  # the third product is that of relative positions
        encoder = 10 * PIXELS * DIMS + LAYERS * block(50, DIMS, HIDDEN, 3)
        return dict(encoder=encoder, decoder=39 * DIMS * PIXELS, attention=LAYERS * 3 * 50**2 * DIMS)
    depth = 8 if method.startswith('mae') else 2
    embedded = 64 if method.startswith('mae') else 16  # MAE embeds all patches
    predicted = 65 if method.startswith('mae') else 48
    encoder = embedded * PIXELS * DIMS + LAYERS * block(17, DIMS, HIDDEN)
    decoder = 17 * DIMS * 512 + depth * block(65, 512, 2048) + predicted * 512 * PIXELS
    return dict(encoder=encoder, decoder=decoder, attention=2 * (LAYERS * 17**2 * DIMS + depth * 65**2 * 512))


@pytest.mark.parametrize('method', DEFAULT_METHODS)
def test_multiply_adds_are_those_counted_by_hand(method: str) -> None:
    """Of one image, whatever the batch; attention counts the same whether it is fused or not."""
    assert count_step(Step(method, 128, 'test', batch=2)) == expected_counts(method)


# Memory and profile


@pytest.mark.parametrize('method', PLAIN)
def test_memory_holds_weights_gradients_and_moments(method: str) -> None:
    step = Step(method, 128, 'test', batch=1)
    step()
    trained = 4 * sum(parameter.numel() for parameter in step.model.parameters() if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in [*step.model.parameters(), *step.model.buffers()])
    counters = 4 * len(step.optimizer.state)  # of steps
    assert step.resident() == weights + 2 * trained + counters
    assert step_memory(step, 'cpu') >= step.resident() + trained


def test_memory_grows_with_size_and_batch() -> None:
    """Where activations are more than gradients."""
    found = []
    for size, batch in ((128, 4), (192, 4), (192, 8)):
        step = Step('lomar', size, 'test', batch=batch)
        step()
        found.append(step_memory(step, 'cpu') - step.resident())
    # Two windows instead of one, then twice the images
    assert found[1] == pytest.approx(2 * found[0], rel=0.15)
    assert found[2] == pytest.approx(2 * found[1], rel=0.15)


def test_operations_belong_to_the_part_and_the_kind_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once an operation: each product of forward has two in backward."""
    clock = count()
    monkeypatch.setattr(profile.time, 'process_time', lambda: next(clock))
    step = Step('mae-2022', 128, 'test', batch=1)
    step()
    found = profile_step(step, 'cpu')
    assert list(found) == ['encoder', 'decoder', 'head', 'optimiser']
    assert found['encoder']['attention products'] == 3 * 2 * LAYERS
    assert found['decoder']['attention products'] == 3 * 2 * 8
    assert found['encoder']['linear layers'] == 3 * 4 * LAYERS
    assert found['decoder']['linear layers'] == 3 * (4 * 8 + 2)
    assert found['encoder']['convolution'] == 2  # no gradient for the images
    assert (found['encoder']['softmax'], found['decoder']['softmax']) == (2 * LAYERS, 2 * 8)
    assert (found['encoder']['norms'], found['decoder']['norms']) == (2 * (2 * LAYERS + 1), 2 * (2 * 8 + 1))
    assert set(found['head']) == set(found['optimiser']) == {OTHERS}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in step.model.modules())


def test_a_method_without_decoder_has_none_in_its_profile(report: dict[str, Any]) -> None:
    parts = {row['method']: set(row['profile']) for row in report['rows'] if row['size'] == 128}
    assert parts['lomar'] == {'encoder', 'head', 'optimiser'}
    assert parts['mae'] == parts['um-mae'] == {'encoder', 'decoder', 'head', 'optimiser'}


# Reports


def test_report_has_a_row_for_each_method_at_each_size(report: dict[str, Any]) -> None:
    assert [(row['size'], row['method']) for row in report['rows']] == [(s, m) for s in (128, 192) for m in PLAIN]
    for row in report['rows']:
        assert len(row['seconds']) == len(row['processor_seconds']) == 2
        assert min(row['seconds'] + row['processor_seconds']) > 0
        assert row['memory'] > row['resident'] > 12 * row['parameters'] * 0.9
        assert set(row['multiply_adds']) == {'encoder', 'decoder', 'attention'}
        assert (row['windows'] is None) == (row['method'] != 'lomar')
        assert (row['profile'] is None) == (row['size'] != 128)
        assert row['error'] is None
    for method in PLAIN:
        small, large = rows(report, method)
        assert large['multiply_adds']['encoder'] > small['multiply_adds']['encoder']
        assert large['memory'] >= small['memory']


def test_everything_is_written_without_names_of_a_machine(report: dict[str, Any]) -> None:
    written = report['folder'] / 'pretraining_cost.json'
    (run,) = json.loads(written.read_text())['runs']
    assert run == json.loads(json.dumps({key: value for key, value in report.items() if key != 'folder'}))
    assert str(Path.home()) not in written.read_text() and str(ROOT) not in written.read_text()
    assert {'device', 'cpu', 'threads', 'versions', 'commit'} <= set(report['environment'])
    assert (report['folder'] / 'pretraining_cost.png').read_bytes()[1:4] == b'PNG'


def test_plot_has_a_line_for_each_method(report: dict[str, Any]) -> None:
    for axis in cost_figure([report]).axes:
        assert [line.get_label() for line in axis.lines] == [METHODS[method].name for method in PLAIN]
        assert all(list(line.get_xdata()) == [128, 192] for line in axis.lines)


def test_runs_are_added_and_share_panels_where_they_are_of_a_kind(report: dict[str, Any], tmp_path: Path) -> None:
    words = ['--methods', 'lomar', '--arch', 'test', '--rounds', '1', '--device', 'cpu', '--out', str(tmp_path)]
    (tmp_path / 'pretraining_cost.json').write_text(
        json.dumps(dict(runs=[{key: value for key, value in report.items() if key != 'folder'}]))
    )
    tool().main([*words, '--add', '--sizes', '160', '--batch', '1'])
    tool().main([*words, '--add', '--sizes', '128', '--batch', '2'])
    runs = json.loads((tmp_path / 'pretraining_cost.json').read_text())['runs']
    assert [run['arguments']['sizes'] for run in runs] == [[128, 192], [160], [128]]
    first, _, second, _ = cost_figure(runs).axes
    sizes = {line.get_label(): list(line.get_xdata()) for line in first.lines}
    assert sizes == {'MAE': [128, 192], 'LoMaR': [128, 160, 192], 'UM-MAE': [128, 192]}
    assert [list(line.get_xdata()) for line in second.lines] == [[128]]
    tool().main([*words, '--sizes', '128', '--batch', '1'])
    assert len(json.loads((tmp_path / 'pretraining_cost.json').read_text())['runs']) == 1


def made_up(method: str, seconds: list[float], **changes) -> dict[str, Any]:
    counts = dict(encoder=2 * 10**9, decoder=10**9, attention=5 * 10**8)
    row = dict(method=method, name=METHODS[method].name, size=224, windows=None, parameters=10**6)
    row |= dict(seconds=seconds, processor_seconds=[value / 2 for value in seconds])
    return row | dict(multiply_adds=counts, memory=2 * 10**9, resident=10**9, profile=None, error=None) | changes


def made_up_report(*rows: dict[str, Any], threads: int = 2) -> dict[str, Any]:
    return dict(environment=dict(device='cpu', threads=threads), rows=list(rows))


def test_table_compares_with_mae_round_by_round() -> None:
    rounds = made_up('mae', [2.0, 6.0, 4.0]), made_up('lomar', [1.0, 2.0, 4.0], windows=4)
    lines = cost_table(made_up_report(*rounds)).splitlines()
    assert lines[2] == '| 224 | MAE | 1.0 | 3.0 | 2.0 | 1.0 | 0.5 | 4 (2 to 6) | 1.00 | 2.00 |'
    assert lines[3] == '| 224 | LoMaR, 4 windows | 1.0 | 3.0 | 2.0 | 1.0 | 0.5 | 2 (1 to 4) | 2.00 | 2.00 |'
    assert speed_ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == 2.0
    (alone,) = cost_table(made_up_report(rounds[1])).splitlines()[2:]
    assert alone.endswith('| 2 (1 to 4) | – | 2.00 |')


def test_one_thread_is_told_by_processor_time() -> None:
    """Half of the clock's in these rows; with two threads of a CPU, or with a GPU, the clock's."""
    row = made_up('mae', [2.0, 6.0, 4.0])
    report = made_up_report(row, threads=1)
    assert '| 2 (1 to 3) |' in cost_table(report)
    report['arguments'] = dict(arch='base', batch=1, device='cpu', dtype='float32')
    assert list(cost_figure([report]).axes[0].lines[0].get_ydata()) == [2.0]
    report['environment']['device'] = 'cuda'
    assert '| 4 (2 to 6) |' in cost_table(report)


def test_cost_profile_table_leaves_out_what_takes_no_time() -> None:
    profile = dict(encoder={'linear layers': 1.0, 'GELU': 1e-5}, optimiser={OTHERS: 0.25})
    lines = cost_profile_table(dict(rows=[made_up('lomar', [1.0], profile=profile)])).splitlines()
    assert lines[0] == '| seconds per image | LoMaR, 224 px |'
    assert lines[2:] == [
        '| encoder: linear layers | 1.000 |',
        f'| optimiser: {OTHERS} | 0.250 |',
        '| all | 1.250 |',
    ]


@pytest.mark.parametrize(
    ('fails_in', 'error'),
    [
        ('__call__', torch.cuda.OutOfMemoryError('CUDA out of memory')),
        ('resident', RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_lack_of_memory_is_told_in_the_row(fails_in: str, error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first step, or later when the other networks lie beside."""
    original = getattr(Step, fails_in)

    def fail(step: Step) -> Any:
        if isinstance(step.model, UMMAE):
            raise error
        return original(step)

    monkeypatch.setattr(Step, fails_in, fail)
    report = pretraining_cost(['lomar', 'um-mae'], [128], arch='test', batch=1, rounds=1)
    measured, failed = report['rows']
    assert measured['error'] is None and measured['seconds']
    assert failed['error'] == 'out of memory' and failed['seconds'] is failed['memory'] is None
    assert '| 128 | UM-MAE | – | – | – | – | – | out of memory | – | – |' in cost_table(report)
    assert [list(line.get_xdata()) for line in cost_figure([report]).axes[0].lines] == [[128], []]


def test_networks_of_a_size_are_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: WeakSet[torch.nn.Module] = WeakSet()
    original, before = measuring._first_step, []

    def spy(*args) -> Step:
        before.append(len(alive))
        step = original(*args)
        alive.add(step.model)
        return step

    monkeypatch.setattr(measuring, '_first_step', spy)
    pretraining_cost(['lomar', 'um-mae'], [128, 160], arch='test', batch=1, rounds=1)
    assert before == [0, 1, 0, 1]


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: Step) -> None:
        raise RuntimeError('shapes differ')

    monkeypatch.setattr(Step, '__call__', fail)
    with pytest.raises(RuntimeError, match='shapes differ'):
        pretraining_cost(['lomar'], [128], arch='test', batch=1, rounds=1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(methods=[]), r'methods is \[\], but it must be some of mae, mae-2022'),
        (dict(methods=['mae', 'mae']), 'none of them twice'),
        (dict(methods=['beit']), r"methods is \['beit'\]"),
        (dict(sizes=[]), r'sizes is \[\]'),
        (dict(sizes=[224, 100]), r'sizes is \[224, 100\], but each must be a multiple of 32 pixels, at least 128'),
        (dict(sizes=[96]), 'at least 128'),
        (dict(arch='huge'), "arch is 'huge', but it must be one of test, small, base"),
        (dict(batch=0), 'batch is 0, but it must be at least 1'),
        (dict(rounds=0), 'rounds is 0, but it must be at least 1'),
        (dict(device='tpu'), "device is 'tpu'"),
        (dict(dtype='float64'), "dtype is 'float64'"),
        (dict(dtype='float16'), "dtype is 'float16', but .* on a CPU not float16"),
        (dict(profile=256), r'profile is 256, but it must be one of the sizes \[224, 384, 448, 672\]'),
    ],
    ids=lambda value: None if isinstance(value, str) else '-'.join(map(str, value.items())),
)
def test_illegal_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretraining_cost(**arguments)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='device is cuda, but PyTorch finds no GPU here'):
        pretraining_cost(device='cuda')


def test_tool_refuses_no_threads() -> None:
    with pytest.raises(ValueError, match='--threads is 0, but at least one is needed'):
        tool().parse_args(['--threads', '0'])


def test_tool_measures_the_documented_sizes_by_default() -> None:
    args = tool().parse_args([])
    assert (tuple(args.sizes), tuple(args.methods), args.arch) == (SIZES, DEFAULT_METHODS, 'base')
